// SPDX-License-Identifier: Apache-2.0
//! The policy engine that the node follows: whether it answers here, with policies that could come into force.

use std::time::Duration;

use super::finding::Finding;
use crate::app;
use crate::config::Config;
use crate::policy_follow::{self, Asked};

const CHECK: &str = "policy.engine";
/// How long the engine may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
const REMEDY: &str = "start the engine, or correct `engineUrl` and see to the way there; with https the certificates are those of `api.tls`: docs/engine.md";

/// Asks the engine what an agent asks it. `in_force`: the digest that the agent enforces, where one runs.
pub(super) async fn look(config: &Config, in_force: Option<&str>) -> Finding {
    match app::engine_to_follow(config) {
        None => Finding::not_applicable(CHECK, "policy comes from no engine (`policySource`)"),
        Some(settings) => {
            let asked = policy_follow::ask(&settings, PATIENCE).await;
            judge(&settings.url, &asked, in_force)
        }
    }
}

fn judge(url: &str, asked: &Asked, in_force: Option<&str>) -> Finding {
    let short = |digest: &str| -> String { digest.chars().take(12).collect() };
    let error = match &asked.engine {
        Ok(answered) => {
            let found = format!(
                "{url} answers: revision {} of {} policies, digest {}",
                answered.revision,
                answered.policies,
                short(&answered.digest)
            );
            return match in_force {
                None => Finding::ok(CHECK, found),
                Some(digest) if digest == answered.digest => Finding::ok(CHECK, format!("{found}, in force")),
                Some(digest) => Finding::warning(
                    CHECK,
                    format!("{found}; the agent enforces {}", short(digest)),
                    "within seconds it should be the same: see `agent.policy`, and the agent's log",
                ),
            };
        }
        Err(error) => error,
    };
    if in_force.is_some() {
        return Finding::warning(CHECK, format!("{error}; what is in force stays"), REMEDY);
    }
    match &asked.copy {
        Ok(digest) => Finding::warning(
            CHECK,
            format!(
                "{error}; an agent that starts takes the last good policy, digest {}, which may be old",
                short(digest)
            ),
            REMEDY,
        ),
        Err(copy) => Finding::failed(
            CHECK,
            format!("{error}; nor is there a last good policy, so that no agent can start: {copy}"),
            REMEDY,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;
    use crate::config::PolicySource;
    use crate::policy_follow::{Answered, FollowError};

    const URL: &str = "http://127.0.0.1:1";

    fn asked(answers: bool, copy: Result<&str, &str>) -> Asked {
        let answered = Answered {
            revision: 7,
            policies: 2,
            digest: "cd384f4305e2aa33".to_owned(),
        };
        let silent = FollowError::Slow { url: URL.to_owned() };
        Asked {
            engine: if answers { Ok(answered) } else { Err(silent) },
            copy: copy.map(str::to_owned).map_err(str::to_owned),
        }
    }

    #[test]
    fn an_engine_is_missed_as_much_as_a_start_depends_on_it() {
        let none = Err("policy.json: no such file");
        for (asked, in_force, status, found) in [
            (asked(true, none), None, Status::Ok, "2 policies"),
            (
                asked(true, none),
                Some("cd384f4305e2aa33"),
                Status::Ok,
                "in force",
            ),
            (
                asked(true, none),
                Some("another"),
                Status::Warning,
                "the agent enforces another",
            ),
            (asked(false, none), Some("another"), Status::Warning, "stays"),
            (
                asked(false, Ok("aa33")),
                None,
                Status::Warning,
                "last good policy, digest aa33",
            ),
            (asked(false, none), None, Status::Failed, "no such file"),
        ] {
            let judged = judge(URL, &asked, in_force);
            assert_eq!(judged.status, status, "{judged:?}");
            assert!(judged.found.contains(found), "{judged:?}");
            assert!(judged.found.contains(URL), "{judged:?}");
        }
    }

    #[tokio::test]
    async fn an_engine_is_asked_where_there_is_one_to_follow_whether_an_agent_runs_or_not() {
        let directory = tempfile::tempdir().expect("tempdir");
        let mut config = Config::default();
        assert_eq!(look(&config, None).await.status, Status::NotApplicable);
        config.policy_source = PolicySource::Engine;
        config.engine_url = Some(URL.to_owned());
        config.audit.dsn = format!("sqlite://{}", directory.path().join("audit.db").display());
        let found = look(&config, None).await;
        assert_eq!(found.status, Status::Failed, "{found:?}");
        assert!(found.found.contains(URL), "{found:?}");
    }
}
