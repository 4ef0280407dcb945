// SPDX-License-Identifier: Apache-2.0
//! What the operator wrote: the configuration, policies, workloads, certificates.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::finding::Finding;
use crate::config::{Config, ConfigError, DEFAULT_FILE, IdentitySource, PolicySource, SETTINGS, Sources};
use crate::identity::file as workloads;
use crate::policy;
use crate::policy_dir;
use crate::problem::Problem;
use crate::tls;

/// Seconds before its end in which a certificate should have been replaced.
const SOON: i64 = 7 * 86_400;
/// How many problems are told of each file.
const MOST: usize = 3;

/// `file`: the one that was named.
pub(super) fn configuration(file: Option<&Path>, loaded: &Result<Config, ConfigError>) -> Vec<Finding> {
    const CHECK: &str = "config";
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    let shown = path.display();
    let mut findings = vec![match loaded {
        Ok(_) if path.exists() => Finding::ok(CHECK, format!("{shown} is valid")),
        Ok(_) => Finding::ok(
            CHECK,
            format!("{shown} is not there: every setting has its default"),
        ),
        Err(error) => Finding::failed(
            CHECK,
            problems(&error.problems),
            "correct it: an agent does not start with it. Everything below is by the defaults",
        ),
    }];
    // What the environment and flags say is not in it. What is wrong with it has been said.
    let alone = Config::load(&Sources {
        file: file.map(Path::to_path_buf),
        ..Sources::default()
    });
    let with_secret = alone.ok().and_then(|config| {
        let mut dsns = config.audit.dsns();
        dsns.find(|(_, dsn)| has_password(dsn)).map(|(key, _)| key)
    });
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.mode() & 0o777);
    if let Some(key) = with_secret.filter(|_| mode & 0o044 != 0) {
        let variable = SETTINGS.iter().find(|setting| setting.key == key);
        let variable = variable.map_or("the environment", |setting| setting.variable);
        findings.push(Finding::warning(
            "config.permissions",
            format!(
                "{shown} has a password in `{key}` and mode {mode:03o}: others of this machine can read it"
            ),
            format!("chmod 600 {shown}, or give it in {variable}"),
        ));
    }
    findings
}

/// Whether a DSN has a password in it.
fn has_password(dsn: &str) -> bool {
    let authority = dsn.split_once("://").map_or("", |(_, rest)| rest);
    let user = authority
        .split(['/', '?'])
        .next()
        .unwrap_or_default()
        .rsplit_once('@');
    user.is_some_and(|(user, _)| user.contains(':')) || dsn.contains("password=")
}

/// The first of some problems, and how many more there are.
fn problems(problems: &[Problem]) -> String {
    let shown: Vec<String> = problems.iter().take(MOST).map(ToString::to_string).collect();
    let more = match problems.len().saturating_sub(MOST) {
        0 => String::new(),
        count => format!("; and {count} more"),
    };
    format!("{}{more}", shown.join("; "))
}

/// `in_force`: the digest that the agent enforces, where one runs.
pub(super) fn policies(config: &Config, in_force: Option<&str>) -> Finding {
    const CHECK: &str = "policy.files";
    let from_elsewhere = match config.policy_source {
        PolicySource::Directory => None,
        PolicySource::Engine => Some("policy comes from an engine (`policySource`): see `policy.engine`"),
        PolicySource::Kubernetes => {
            Some("policy comes from the cluster (`policySource`): see `agent.policy`")
        }
    };
    if let Some(why) = from_elsewhere {
        return Finding::not_applicable(CHECK, why);
    }
    let path = &config.policy_path;
    let shown = path.display();
    let set = policy_dir::read(path)
        .0
        .and_then(|documents| policy::parse(&documents, &config.policy_settings()));
    let set = match set {
        Ok(set) => set,
        Err(found) => {
            let remedy =
                "correct what `zt-agent policy check` names: the last good policy stays in force until then";
            return Finding::failed(CHECK, problems(&found), remedy);
        }
    };
    if let Err(error) = policy::compile(&set, &BTreeSet::new(), &config.policy_settings(), 1) {
        return Finding::failed(CHECK, error.to_string(), "see docs/limits.md");
    }
    let found = format!("{} policies at {shown} are valid", set.policies().len());
    match in_force {
        Some(digest) if digest != set.digest() => Finding::warning(
            CHECK,
            format!("{found}, and are not what the agent enforces"),
            "within a second they should be; else the agent reads another directory: see `policyPath` of the one that runs",
        ),
        Some(_) => Finding::ok(CHECK, format!("{found}, and in force")),
        None => Finding::ok(CHECK, found),
    }
}

/// The workloads file.
pub(super) fn identities(config: &Config) -> Finding {
    const CHECK: &str = "identity.file";
    if !config.identity.has(IdentitySource::File) {
        return Finding::not_applicable(CHECK, "no identity comes from a file (`identity.source`)");
    }
    let path = &config.identity.file;
    let shown = path.display().to_string();
    let roots = config.managed_cgroup.roots();
    let read = workloads::read(path).0.map_err(|problem| vec![problem]);
    let parsed = read.and_then(|text| workloads::parse(&text, &shown, &config.trust_domain, &roots));
    match parsed {
        Ok(found) => Finding::ok(CHECK, format!("{} workloads in {shown}", found.len())),
        Err(found) => Finding::failed(
            CHECK,
            problems(&found),
            "correct it: an agent does not start with it, and one that runs keeps what it knew",
        ),
    }
}

/// The files of `api.tls`; `now`: Unix seconds.
pub(super) fn certificates(config: &Config, now: i64) -> Vec<Finding> {
    const CHECK: &str = "certificates";
    let Some((cert, key, client_ca)) = config.api.tls.all() else {
        return vec![Finding::not_applicable(
            CHECK,
            "the API speaks no TLS (`api.tls`)",
        )];
    };
    if config.api.tls.spire && !cert.exists() {
        let found = format!(
            "{} is not there: an agent writes what SPIRE gives it",
            cert.display()
        );
        return vec![Finding::not_applicable(CHECK, found)];
    }
    let files = tls::Files {
        cert: cert.clone(),
        key: key.clone(),
        client_ca: client_ca.clone(),
    };
    if let Err(error) = tls::Material::read(&files).and_then(tls::server) {
        let remedy =
            "certificate and key must belong together, and be PEM: an agent does not start with these";
        return vec![Finding::failed(CHECK, error.to_string(), remedy)];
    }
    let expires = |path: &PathBuf| tls::expires_in(path).map(|expires| (path.clone(), expires));
    let found: Result<Vec<_>, _> = [cert, client_ca].into_iter().map(expires).collect();
    match found {
        // Read a moment ago.
        Err(error) => vec![Finding::failed(CHECK, error.to_string(), "see `api.tls`")],
        // Those of SPIRE live for an hour: `spire.own_svid` looks at them.
        Ok(found) if config.api.tls.spire => {
            let expired = found.iter().find(|(_, expires)| *expires <= now);
            vec![expired.map_or_else(
                || Finding::ok(CHECK, "what SPIRE gave the agent is valid"),
                |(path, _)| ended(CHECK, path),
            )]
        }
        Ok(found) => found
            .iter()
            .map(|(path, expires)| validity(CHECK, path, *expires, now))
            .collect(),
    }
}

fn ended(check: &'static str, path: &Path) -> Finding {
    let found = format!("{} has expired", path.display());
    Finding::failed(
        check,
        found,
        "replace it: the agent follows the file, no restart is needed",
    )
}

/// `expires`: Unix seconds.
fn validity(check: &'static str, path: &Path, expires: i64, now: i64) -> Finding {
    let left = expires - now;
    let found = format!("{} is valid for {} days", path.display(), left / 86_400);
    if left <= 0 {
        ended(check, path)
    } else if left < SOON {
        Finding::warning(
            check,
            found,
            "replace it: the agent follows the file, no restart is needed",
        )
    } else {
        Finding::ok(check, found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::*;

    #[test]
    fn passwords_are_seen_where_they_can_be() {
        for with in [
            "postgres://u:p@h/d",
            "postgresql://u:p@h:1/d?sslmode=require",
            "postgres:///d?host=/run&password=x",
        ] {
            assert!(has_password(with), "{with}");
        }
        for without in [
            "sqlite:///var/lib/zt/audit.db",
            "postgres://u@h:5432/d",
            "postgres://h/d?a=b:c@d",
        ] {
            assert!(!has_password(without), "{without}");
        }
    }

    #[test]
    fn a_bad_configuration_is_told_with_its_places_and_a_readable_password_too() {
        use std::os::unix::fs::PermissionsExt as _;

        let directory = tempfile::tempdir().expect("tempdir");
        let file = directory.path().join("agent.yaml");
        let load_with = |text: &str, dsn: Option<&str>| {
            fs::write(&file, text).expect("write");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("mode");
            let sources = Sources {
                file: Some(file.clone()),
                environment: dsn
                    .map(|dsn| ("ZT_AUDIT_DSN".into(), dsn.into()))
                    .into_iter()
                    .collect(),
                flags: Vec::new(),
            };
            configuration(Some(&file), &Config::load(&sources))
        };
        let load = |text: &str| load_with(text, None);
        let found = load("mode: perhaps\n");
        assert_eq!(found[0].status, Status::Failed);
        assert!(found[0].found.contains("agent.yaml:1"), "{found:?}");
        let found = load("audit:\n  dsn: postgres://u:secret@127.0.0.1/zt\n");
        assert_eq!((found[0].status, found[1].status), (Status::Ok, Status::Warning));
        assert!(!format!("{found:?}").contains("secret"), "{found:?}");
        let found = load(
            "audit:\n  dsn: postgres://u@127.0.0.1/zt\n  maintainDsn: postgres://m:secret@127.0.0.1/zt\n",
        );
        let (said, remedy) = (&found[1].found, found[1].remedy.as_deref());
        assert!(said.contains("`audit.maintainDsn`"), "{found:?}");
        assert!(
            remedy.is_some_and(|remedy| remedy.ends_with("ZT_AUDIT_MAINTAIN_DSN")),
            "{found:?}"
        );
        assert_eq!(load("mode: enforce\n").len(), 1);
        // What a Secret has and the environment brings is in no file; what is in one stays there, whatever the environment says.
        let found = load_with("mode: enforce\n", Some("postgres://u:secret@127.0.0.1/zt"));
        assert_eq!((found.len(), found[0].status), (1, Status::Ok), "{found:?}");
        let found = load_with(
            "audit:\n  dsn: postgres://u:secret@127.0.0.1/zt\n",
            Some("sqlite:///var/lib/zt/audit.db"),
        );
        assert_eq!(found[1].status, Status::Warning, "{found:?}");
    }

    #[test]
    fn files_that_an_agent_would_not_take_are_told_of() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| directory.path().join(name);
        let mut config = Config {
            policy_path: path("none"),
            ..Config::default()
        };
        config.identity.file = path("workloads.yaml");
        assert_eq!(policies(&config, None).status, Status::Failed);
        assert_eq!(identities(&config).status, Status::Failed);
        fs::create_dir(path("none")).expect("mkdir");
        let policy = include_str!("../../../policies/hanzo-core-policy.yaml");
        fs::write(path("none/core.yaml"), policy).expect("write");
        fs::write(path("workloads.yaml"), "workloads: []\n").expect("write");
        assert_eq!(policies(&config, None).status, Status::Ok);
        assert_eq!(policies(&config, Some("another")).status, Status::Warning);
        assert_eq!(identities(&config).status, Status::Ok);
        config.policy_source = PolicySource::Kubernetes;
        config.identity.sources = vec![IdentitySource::Spire];
        assert_eq!(policies(&config, None).status, Status::NotApplicable);
        assert_eq!(identities(&config).status, Status::NotApplicable);
    }

    #[test]
    fn certificates_are_replaced_before_they_end() {
        let judge = |expires| validity("certificates", Path::new("/c.pem"), expires, 1000).status;
        assert_eq!(judge(1000 + SOON + 1), Status::Ok);
        assert_eq!(judge(1000 + SOON - 1), Status::Warning);
        assert_eq!(judge(1000), Status::Failed);
        let mut config = Config::default();
        assert_eq!(certificates(&config, 0)[0].status, Status::NotApplicable);
        config.api.tls.cert = Some("/nowhere/cert.pem".into());
        config.api.tls.key = Some("/nowhere/key.pem".into());
        config.api.tls.client_ca = Some("/nowhere/ca.pem".into());
        let found = certificates(&config, 0);
        assert_eq!(found[0].status, Status::Failed);
        assert!(found[0].found.contains("/nowhere/cert.pem"), "{found:?}");
    }
}
