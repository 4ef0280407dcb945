// SPDX-License-Identifier: Apache-2.0
//! What may be configured, which source wins, and the precise words for everything else.

mod audit;
mod engine;
mod nri;
mod peers;
mod sources;
mod spire;

use std::fs;
use std::path::Path;

use super::*;
use crate::identity::peers::Neighbour;
use crate::spiffe_id::Pattern;

/// The configuration from a file with `text`, variables and flags; problems with the file named `agent.yaml`.
fn load(
    text: &str,
    variables: &[(&str, &str)],
    flags: &[(&'static str, &str)],
) -> Result<Config, Vec<String>> {
    let directory = tempfile::tempdir().expect("tempdir");
    let file = directory.path().join("agent.yaml");
    fs::write(&file, text).expect("write");
    let sources = Sources {
        file: Some(file),
        environment: variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        flags: flags
            .iter()
            .map(|(key, value)| (*key, (*value).to_owned()))
            .collect(),
    };
    let prefix = format!("{}/", directory.path().display());
    Config::load(&sources).map_err(|error| {
        error
            .problems
            .iter()
            .map(|problem| problem.to_string().replace(&prefix, ""))
            .collect()
    })
}

fn problem(text: &str) -> String {
    let problems = load(text, &[], &[]).expect_err("must be refused");
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

const EVERYTHING: &str = "\
cluster: other
trustDomain: example.org
node: n1
policyPath: /p
policySource: engine
engineUrl: https://engine.example.org:8054/
mode: enforce
modes:
  - {spiffe: \"spiffe://example.org/c/kube-system/*\", mode: observe}
unknownWorkload: deny
handshake: off
packetGuard: true
allowHost: false
allowSelf: false
clusterCIDRs: [10.0.0.0/8, \"fd00::/8\"]
managedCgroup: [a, b/c]
bpffs: /sys/fs/bpf/other
identity:
  source: [spire, kubernetes]
  file: /w.yaml
  spireSocket: unix:///a.sock
  spireAdminSocket: /b.sock
  template: spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}
  onExpiry: hold
  nri: {socket: /n.sock, wait: 2s}
  peers:
    listen: 10.0.0.1:9000
    nodes:
      - {name: two, address: 10.0.0.2:9000}
      - {name: three, address: 'three.example.org:9000', speaksFor: [10.3.0.0/24], identities: 'spiffe://hanzo.ai/db/*'}
    id: spiffe://{trustDomain}/agents/{node}
    hold: 90s
    pods: auto
audit:
  dsn: postgres://w@db.example/zt
  readDsn: postgres://r:secret@db.example/zt
  maintainDsn: postgresql://m@db.example/zt?sslmode=require
  spool: /s.db
  whenFull: newest
  sync: batch
  keys: /k
  maxDiskBytes: 100MiB
  apiShare: 20
  retentionDays: 7
api:
  listen: \"[::1]:1\"
  health: 0.0.0.0:2
  socket: /run/other.sock
  tls: {cert: /c.pem, key: /k.pem, clientCa: /ca.pem}
  callers:
    - {spiffe: \"spiffe://example.org/ops/*\", role: admin}
  rateLimit: 10
  drain: 7s
kubernetes:
  kubeconfig: /kubeconfig
";

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(load("", &[], &[]), Ok(Config::default()));
    assert_eq!(load("identity:\naudit:\n", &[], &[]), Ok(Config::default()));
}

#[test]
fn every_key_is_read() {
    let config = load(EVERYTHING, &[], &[]).expect("valid");
    let wanted = Config {
        cluster: "other".into(),
        trust_domain: "example.org".into(),
        node: "n1".into(),
        policy_path: "/p".into(),
        policy_source: PolicySource::Engine,
        engine_url: Some("https://engine.example.org:8054".into()),
        mode: Mode::Enforce,
        modes: vec![ModeRule {
            spiffe: Pattern::parse("spiffe://example.org/c/kube-system/*").expect("pattern"),
            mode: Mode::Observe,
        }],
        unknown_workload: UnknownWorkload::Deny,
        handshake: Handshake::Off,
        packet_guard: true,
        allow_host: false,
        allow_self: false,
        cluster_cidrs: vec![
            "10.0.0.0/8".parse().expect("net"),
            "fd00::/8".parse().expect("net"),
        ],
        managed_cgroup: ManagedCgroup::Paths(vec!["a".into(), "b/c".into()]),
        bpffs: "/sys/fs/bpf/other".into(),
        identity: Identity {
            sources: vec![IdentitySource::Spire, IdentitySource::Kubernetes],
            file: "/w.yaml".into(),
            spire_socket: "/a.sock".into(),
            spire_admin_socket: "/b.sock".into(),
            template: Template::parse("spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}")
                .expect("template"),
            on_expiry: OnExpiry::Hold,
            nri_socket: Some("/n.sock".into()),
            nri_wait: Duration::from_secs(2),
            peers: Peers {
                listen: "10.0.0.1:9000".parse().expect("address"),
                nodes: vec![
                    Neighbour {
                        name: "two".into(),
                        address: "10.0.0.2:9000".into(),
                        speaks_for: vec!["10.0.0.2/32".parse().expect("net")],
                        created: 0,
                        says: Vec::new(),
                        identities: Vec::new(),
                    },
                    Neighbour {
                        name: "three".into(),
                        address: "three.example.org:9000".into(),
                        speaks_for: vec!["10.3.0.0/24".parse().expect("net")],
                        created: 0,
                        says: Vec::new(),
                        identities: vec![Pattern::parse("spiffe://hanzo.ai/db/*").expect("pattern")],
                    },
                ],
                id: "spiffe://{trustDomain}/agents/{node}".into(),
                pods: OtherPods::Auto,
                hold: Duration::from_secs(90),
            },
        },
        audit: Audit {
            dsn: "postgres://w@db.example/zt".into(),
            read_dsn: Some("postgres://r:secret@db.example/zt".into()),
            maintain_dsn: Some("postgresql://m@db.example/zt?sslmode=require".into()),
            spool: "/s.db".into(),
            when_full: WhenFull::Newest,
            keys: Some("/k".into()),
            sync: Durability::Batch,
            max_disk_bytes: 100 << 20,
            api_share: Some(20),
            retention_days: 7,
        },
        api: Api {
            listen: "[::1]:1".parse().expect("address"),
            health: "0.0.0.0:2".parse().expect("address"),
            socket: Some("/run/other.sock".into()),
            tls: TlsFiles {
                spire: false,
                cert: Some("/c.pem".into()),
                key: Some("/k.pem".into()),
                client_ca: Some("/ca.pem".into()),
            },
            callers: vec![CallerRule {
                spiffe: Pattern::parse("spiffe://example.org/ops/*").expect("pattern"),
                role: crate::caller::Role::Admin,
                node: None,
            }],
            rate_limit: NonZeroU32::new(10).expect("not zero"),
            drain: Duration::from_secs(7),
        },
        kubeconfig: Some("/kubeconfig".into()),
    };
    assert_eq!(config, wanted);
    assert_eq!(config.policy_settings().trust_domain, "example.org");
}

#[test]
fn every_setting_has_its_variable_and_its_flag() {
    for setting in SETTINGS {
        let snake: String = setting
                .key
                .replace("CIDRs", "Cidrs")
                // The specification calls it ZT_SPIRE_SOCKET.
                .replace("identity.spire", "spire")
                // There is only one.
                .replace("kubernetes.kubeconfig", "kubeconfig")
                .chars()
                .fold(String::new(), |mut name, next| {
                    if next.is_ascii_uppercase() {
                        name.push('_');
                    }
                    name.push(if next == '.' {
                        '_'
                    } else {
                        next.to_ascii_uppercase()
                    });
                    name
                });
        assert_eq!(setting.variable, format!("ZT_{snake}"));
        assert_eq!(setting.flag, snake.to_lowercase().replace('_', "-"));
    }
}

#[test]
fn unknown_keys_name_the_nearest() {
    assert_eq!(
        problem("\nmoded: enforce\n"),
        "agent.yaml:2:1: moded: unknown field; did you mean `mode`?"
    );
    assert_eq!(
        problem("audit:\n  retentiondays: 1\n"),
        "agent.yaml:2:3: audit.retentiondays: unknown field; did you mean `retentionDays`?"
    );
    assert_eq!(
        problem("identity:\n  x: 1\n"),
        "agent.yaml:2:3: identity.x: unknown field; known here: source, file, spireSocket, spireAdminSocket, template, onExpiry, nri, peers"
    );
    assert_eq!(
        problem("Audit: {}\n"),
        "agent.yaml:1:1: Audit: unknown field; did you mean `audit`?"
    );
}

#[test]
fn bad_values_say_what_is_wrong() {
    for (text, words) in [
        ("trustDomain: spiffe://hanzo.ai", "is the bare domain"),
        ("trustDomain: Hanzo", "trust domain"),
        ("node: ''", "must not be empty"),
        ("node: 12", "put it in quotes"),
        ("node: a b", "without spaces"),
        ("mode: deny", "must be `observe` or `enforce`, not `deny`"),
        ("unknownWorkload: enforce", "must be `observe` or `deny`"),
        ("allowHost: yes", "must be `true` or `false`, not `yes`"),
        ("allowHost: 1", "must be `true` or `false`, not a number"),
        ("clusterCIDRs: [10.0.0.1/8]", "did you mean `10.0.0.0/8`?"),
        ("clusterCIDRs: [10.0.0.0]", "is not a network"),
        ("managedCgroup: /kubepods", "relative to the cgroup2 mount"),
        ("managedCgroup: []", "at least one"),
        ("managedCgroup: [a, a/b]", "covered by `a`"),
        ("policyPath: policies", "must be an absolute path"),
        ("policyPath: [a]", "must be text, not a list"),
        (
            "policySource: git",
            "must be `directory`, `engine` or `kubernetes`, not `git`",
        ),
        ("engineUrl: engine:8054", "is not the URL of a policy engine"),
        (
            "engineUrl: https://engine.example.org/v1",
            "is not the URL of a policy engine",
        ),
        ("engineUrl: http://engine.example.org:8054", "use https"),
        ("audit: 7", "must be a mapping, not a number"),
        (
            "api: {tls: {ca: /x}}",
            "unknown field; known here: cert, key, clientCa",
        ),
        ("api: {tls: {cert: x}}", "must be an absolute path"),
        ("api: {tls: []}", "must be a mapping, not a list"),
        ("api: {socket: run/x}", "must be an absolute path"),
        ("api: {rateLimit: 0}", "at least 1, not `0`"),
        (
            "api: {drain: soon}",
            "a time such as `5s` or `0s`, at most 5m, not `soon`",
        ),
        ("api: {drain: 6m}", "at most 5m, not `6m`"),
        ("api: {callers: [x]}", "entry 1 (line 1): must be {spiffe, role}"),
        ("api: {callers: [{spiffe: \"*\"}]}", "`role` is missing"),
        (
            "api: {callers: [{spiffe: \"*\", role: root}]}",
            "evaluate, follow, read or admin, not `root`",
        ),
        (
            "api: {callers: [{spiffe: \"x\", role: read}]}",
            "entry 1 (line 1): `x`",
        ),
        ("api: {listen: localhost}", "is not an address and a port"),
        ("api: {health: '127.0.0.1:65536'}", "is not an address and a port"),
    ] {
        let message = problem(text);
        assert!(message.starts_with("agent.yaml:1:"), "{message}");
        assert!(message.contains(words), "{text}: {message}");
    }
    for (text, wanted) in [
        (
            "api: {listen: 0.0.0.0:8054}",
            "api.listen: `0.0.0.0:8054` is not a loopback address",
        ),
        (
            "api: {tls: {cert: /x}}",
            "api.tls: is `cert`, `key` and `clientCa` together",
        ),
        (
            "api: {tls: {cert: /x, key: /y, clientCa: /z}}",
            "api.callers: is empty",
        ),
    ] {
        assert!(
            problem(text).starts_with(&format!("configuration: {wanted}")),
            "{}",
            problem(text)
        );
    }
    assert!(problem("api: {listen: '127.0.0.1:1', health: '127.0.0.1:1'}").contains("give each a port"));
}

#[test]
fn problems_of_all_sources_are_reported_at_once() {
    let problems = load(
        "mode: x\nnod: y\n",
        &[
            ("ZT_MODE", "x"),
            ("ZT_NODES", "n"),
            ("ZT_PORT", "tcp://1"),
            ("ZT_LOG", "info"),
            ("PATH", "/"),
        ],
        &[("mode", "x")],
    );
    let must = "must be `observe` or `enforce`, not `x`";
    assert_eq!(
        problems.expect_err("bad"),
        [
            format!("agent.yaml:1:7: mode: {must}"),
            "agent.yaml:2:1: nod: unknown field; did you mean `node`?".into(),
            format!("environment: ZT_MODE: {must}"),
            "environment: ZT_NODES: is not a variable of this program; did you mean `ZT_NODE`?".into(),
            format!("command line: --mode: {must}"),
        ]
    );
}

#[test]
fn malformed_and_missing_files_are_named() {
    assert!(problem("mode: [\n").starts_with("agent.yaml:"));
    assert!(problem("mode: observe\nmode: enforce\n").starts_with("agent.yaml:2:"));
    assert!(problem("- a\n").contains("must be a mapping, not a list"));
    let missing = Sources {
        file: Some("/nonexistent/agent.yaml".into()),
        ..Sources::default()
    };
    let error = Config::load(&missing).expect_err("missing");
    assert_eq!(error.to_string(), "/nonexistent/agent.yaml: does not exist");
    let directory = Sources {
        file: Some(Path::new("/").into()),
        ..Sources::default()
    };
    assert_eq!(
        Config::load(&directory).expect_err("directory").to_string(),
        "/: is not a file"
    );
}
