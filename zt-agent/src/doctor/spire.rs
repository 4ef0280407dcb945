// SPDX-License-Identifier: Apache-2.0
//! The SPIRE agent of the node: whether it answers, and for how long the agent's own certificate is good.

use std::path::Path;
use std::time::Duration;

use super::finding::Finding;
use crate::config::{Config, IdentitySource};
use crate::identity::spire::{Refused, Rights, ask, own};

/// How long SPIRE may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A certificate that is about to end and was not renewed.
const SOON: i64 = 60;

/// Asks SPIRE what the agent asks it, as this process. `agent`: the process of the agent that runs.
pub(super) async fn look(config: &Config, agent: Option<u32>, now: i64) -> Vec<Finding> {
    let delegated = if config.identity.has(IdentitySource::Spire) {
        let socket = &config.identity.spire_admin_socket;
        Some(ask(socket, &config.trust_domain, PATIENCE).await)
    } else {
        None
    };
    let svid = if config.api.tls.spire {
        let socket = &config.identity.spire_socket;
        Some(own::ask(socket, &config.trust_domain, PATIENCE).await)
    } else {
        None
    };
    let socket = &config.identity.spire_admin_socket;
    let closed = rights(agent).and_then(|rights| rights.refused(socket));
    vec![
        admin_socket(socket, delegated.as_ref(), closed.as_ref()),
        own_svid(svid.as_ref(), now),
    ]
}

/// Those of the agent; where none runs, of one that this user would start.
fn rights(agent: Option<u32>) -> Option<Rights> {
    match agent {
        Some(pid) => Rights::of_process(pid).ok(),
        None => Rights::of_this_process().ok().map(Rights::as_granted),
    }
}

/// `answer`: of the Delegated Identity API; `None` where nobody has to ask it. `closed`: what keeps the agent from the socket,
/// which may have more rights here than there.
fn admin_socket(socket: &Path, answer: Option<&Result<(), String>>, closed: Option<&Refused>) -> Finding {
    const CHECK: &str = "spire.admin_socket";
    match answer {
        None => Finding::not_applicable(CHECK, "no identity comes from SPIRE (`identity.source`)"),
        Some(Ok(())) => match closed {
            None => Finding::ok(CHECK, format!("SPIRE answers at {}", socket.display())),
            Some(refused) => Finding::warning(
                CHECK,
                format!("SPIRE answers this process, which has more rights than the agent: {refused}"),
                "an agent that is in a group which is let in needs nothing else: docs/spire.md (A SPIRE agent that is not root)",
            ),
        },
        Some(Err(error)) => Finding::failed(
            CHECK,
            error,
            "docs/spire.md has what the SPIRE agent's configuration needs: `admin_socket_path`, in a directory that is mounted into the pod, and this agent's SPIFFE ID among `authorized_delegates`. SPIRE looks at who asks: run this as the agent runs, in its container or by its unit",
        ),
    }
}

/// `answer`: of the Workload API, who this process is and until when (Unix seconds); `None` where nobody has to ask it.
fn own_svid(answer: Option<&Result<(String, i64), String>>, now: i64) -> Finding {
    const CHECK: &str = "spire.own_svid";
    match answer {
        None => Finding::not_applicable(CHECK, "the agent's certificate is none of SPIRE's (`api.tls`)"),
        Some(Ok((id, expires))) => {
            let left = expires - now;
            let found = format!("{id}, valid for {} minutes more", left.max(0) / 60);
            if left < SOON {
                let remedy =
                    "SPIRE does not renew it: see the logs of the SPIRE agent and server, and both clocks";
                Finding::failed(CHECK, found, remedy)
            } else {
                Finding::ok(CHECK, found)
            }
        }
        Some(Err(error)) => Finding::failed(
            CHECK,
            error,
            "SPIRE needs an entry with the selectors of the agent (docs/spire.md), and `trustDomain` must be SPIRE's. SPIRE looks at who asks: run this as the agent runs",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn a_certificate_that_is_not_renewed_is_found_before_it_ends() {
        let judge = |answer| own_svid(Some(&answer), 1000);
        assert_eq!(own_svid(None, 0).status, Status::NotApplicable);
        let found = judge(Ok(("spiffe://a/b".to_owned(), 1000 + 600)));
        assert_eq!(
            (found.status, found.found.as_str()),
            (Status::Ok, "spiffe://a/b, valid for 10 minutes more")
        );
        assert_eq!(
            judge(Ok(("spiffe://a/b".to_owned(), 1030))).status,
            Status::Failed
        );
        assert_eq!(judge(Ok(("spiffe://a/b".to_owned(), 7))).status, Status::Failed);
        assert_eq!(judge(Err("no entry".to_owned())).status, Status::Failed);
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().expect("tempdir");
        let mut config = Config::default();
        config.identity.sources = vec![IdentitySource::Spire];
        config.api.tls.spire = true;
        config.identity.spire_admin_socket = directory.path().join("admin.sock");
        config.identity.spire_socket = directory.path().join("agent.sock");
        let found = look(&config, None, 0).await;
        for (finding, socket) in found.iter().zip(["admin.sock", "agent.sock"]) {
            assert_eq!(finding.status, Status::Failed);
            assert!(finding.found.contains(socket), "{finding:?}");
        }
    }
}
