// SPDX-License-Identifier: Apache-2.0
//! Recorded connections to Services, and raw sockets: recommended, and judged on replay.

use serde_json::{Value, json};
use zt_agent::audit::record::Entry;

use super::program::{Ran, answering, directory, id, policy, rule, shown, zt_agent};
use super::traffic::{record, trail};

/// Nobody answers there.
const NOBODY: &str = "http://127.0.0.1:1";

/// A record of a socket that takes the right to raw sockets, in this hour of the first of January.
fn socket(number: usize, from: &str, protocol: &str, hour: u8, verdict: &str) -> Entry {
    let entry = record(number, from, ("raw-sockets", "10.0.0.9"), 0, hour, verdict);
    let Entry::Decision(decision) = entry else {
        unreachable!("it is one")
    };
    let mut value = serde_json::to_value(decision).expect("JSON");
    value["hook"] = json!("socket");
    value["protocol"] = json!(protocol);
    value["destination"]["address"] = Value::Null;
    if verdict == "would deny" {
        value["reason"] = json!("raw_socket");
    }
    if protocol == "IP-255" {
        value["reason"] = json!("mptcp");
    }
    Entry::Decision(serde_json::from_value(value).expect("a record"))
}

/// What an agent says of a Service with a web server of two kinds.
fn services() -> Value {
    let backend = |name: &str, port: u16| json!({ "spiffe_id": id(name), "entity": null, "address": null, "port": port });
    json!([{
        "service": "hanzo/api", "address": "10.96.0.7", "port": 80, "protocol": "TCP", "target_port": 8080,
        "number": "1400225307", "group": true, "backends": [backend("hanzo/api", 8080), backend("hanzo/api-canary", 9090)],
    }])
}

fn to_a_service() -> (tempfile::TempDir, String) {
    trail(&[
        record(
            1,
            &id("hanzo/web"),
            ("service:hanzo/api", "10.96.0.7"),
            8080,
            3,
            "allowed",
        ),
        record(
            2,
            &id("hanzo/web"),
            ("service:hanzo/gone", "10.96.0.8"),
            80,
            3,
            "denied",
        ),
    ])
}

fn recommend(dsn: &str, more: &[&str]) -> Ran {
    zt_agent(&[&["policy", "recommend", "--store", dsn], more].concat())
}

#[test]
fn who_stands_behind_a_service_that_nobody_tells_of_is_not_made_up() {
    let (_trail, dsn) = to_a_service();
    let unknown = recommend(&dsn, &["--api", NOBODY, "--fail"]);
    assert_eq!(unknown.code(), 1, "{}", unknown.stdout());
    assert!(
        unknown.stdout().contains("# Not in it: spiffe://hanzo.ai/k8s/hanzo/web -> service:hanzo/api TCP 8080 (2 connections): a Service"),
        "{}",
        unknown.stdout()
    );
    assert!(
        unknown.stderr().contains("cannot reach http://127.0.0.1:1"),
        "{}",
        unknown.stderr()
    );
    let files = directory(&[("bad.json", "[{}]")]);
    let bad = files.path().join("bad.json");
    let bad = recommend(&dsn, &["--services", shown(&bad)]);
    assert_eq!(bad.code(), 2, "{}", bad.stdout());
    assert!(
        bad.stderr().contains("missing field `service`"),
        "{}",
        bad.stderr()
    );
}

#[test]
fn a_service_is_recommended_and_judged_by_those_behind_it() {
    let (_trail, dsn) = to_a_service();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let api = answering(
        &runtime,
        "/v1/identities",
        json!({ "identities": [], "services": services() }),
    );
    let files = directory(&[("services.json", &services().to_string())]);
    let of_file = files.path().join("services.json");
    let of_file = ["--services", shown(&of_file)];
    let made = recommend(&dsn, &["--api", &api, "--fail"]);
    assert_eq!(made.code(), 0, "{}", made.stderr());
    let text = made.stdout();
    for target in [
        "hanzo/api\"\n          ports: [8080]",
        "hanzo/api-canary\"\n          ports: [9090]",
    ] {
        assert!(text.contains(target), "{text}");
    }
    assert!(
        text.contains("# 8080 by service:hanzo/api: 2 connections, last"),
        "{text}"
    );
    assert!(!text.contains("Not in it"), "{text}");
    let by_file = recommend(&dsn, &[&of_file[..], &["--api", NOBODY]].concat());
    assert_eq!(by_file.stdout(), text);

    // What is recommended, and what lacks one of those behind it.
    let one = policy("core", &rule("hanzo/web", "hanzo/api", "8080"));
    let policies = directory(&[("made/p.yaml", &text), ("one/p.yaml", &one)]);
    let replay = |name: &str, more: &[&str]| {
        let path = policies.path().join(name);
        let asked = [
            "policy",
            "replay",
            shown(&path),
            "--store",
            &dsn,
            "-o",
            "json",
            "--fail",
        ];
        zt_agent(&[&asked, more].concat())
    };
    let whole = replay("made", &["--api", &api]);
    assert_eq!(
        (whole.code(), &whole.json()["changes"]),
        (0, &undecided_gone()),
        "{}",
        whole.stdout()
    );
    let lacking = replay("one", &of_file);
    let row = &lacking.json()["changes"][0];
    assert_eq!(
        (
            lacking.code(),
            &row["change"],
            &row["destination"],
            &row["connections"]
        ),
        (1, &json!("newly_denied"), &json!("service:hanzo/api"), &json!(2)),
        "{row}"
    );
    let compared = recommend(
        &dsn,
        &[
            "--api",
            &api,
            "--diff",
            shown(&policies.path().join("one")),
            "-o",
            "json",
            "--fail",
        ],
    );
    let missing = &compared.json()["missing"];
    assert_eq!(
        (
            compared.code(),
            &missing[0]["destination"],
            missing.as_array().map(Vec::len)
        ),
        (1, &json!("service:hanzo/api"), Some(1)),
        "{missing}"
    );
}

#[test]
fn a_service_without_endpoints_opens_nothing_to_everybody() {
    let (_trail, dsn) = trail(&[record(
        1,
        &id("hanzo/web"),
        ("service:hanzo/api", "10.96.0.7"),
        8080,
        3,
        "allowed",
    )]);
    // As an agent tells of a Service that was scaled to nothing.
    let mut gone = services();
    gone[0]["group"] = json!(false);
    gone[0]["backends"] = json!([{ "spiffe_id": null, "entity": "unknown", "address": null, "port": 8080 }]);
    let one = policy("core", &rule("hanzo/web", "hanzo/api", "8080"));
    let files = directory(&[("services.json", &gone.to_string()), ("one/p.yaml", &one)]);
    let at = |name: &str| shown(&files.path().join(name)).to_owned();
    let made = recommend(&dsn, &["--services", &at("services.json"), "--fail"]);
    assert_eq!(made.code(), 1, "{}", made.stderr());
    let text = made.stdout();
    assert!(!text.contains("entity: unknown"), "{text}");
    assert!(
        text.contains("-> service:hanzo/api TCP 8080 (2 connections): a Service"),
        "{text}"
    );
    let replay = |fail: &str| {
        zt_agent(&[
            "policy",
            "replay",
            &at("one"),
            "--store",
            &dsn,
            "--services",
            &at("services.json"),
            "-o",
            "json",
            fail,
        ])
    };
    let ran = replay("--fail");
    assert_eq!(ran.code(), 0, "{}", ran.stdout());
    assert_eq!(ran.json()["changes"][0]["change"], json!("undecided"));
    assert_eq!(replay("--fail=strict").code(), 1);
}

#[test]
fn standard_input_is_not_read_twice() {
    let files = directory(&[("p.yaml", &policy("core", &rule("hanzo/web", "hanzo/api", "8080")))]);
    let path = shown(files.path());
    for command in [
        &["recommend"][..],
        &["recommend", "--diff", path],
        &["replay", path],
    ] {
        let ran = zt_agent(&[&["policy"], command, &["--traffic", "-", "--services", "-"]].concat());
        assert_eq!(ran.code(), 2, "{command:?}: {}", ran.stdout());
        assert!(
            ran.stderr()
                .contains("only one of --traffic and --services can be `-`"),
            "{command:?}: {}",
            ran.stderr()
        );
    }
}

/// The row of the Service that nobody knows any more, of which all was denied.
fn undecided_gone() -> Value {
    json!([{
        "change": "undecided", "source": id("hanzo/web"), "destination": "service:hanzo/gone", "port": 80, "protocol": "TCP",
        "rule": null, "reason": "a Service of several identities or ports, and who stands behind it is not known",
        "connections": 2, "first_seen": "2026-01-01T03:30:00Z", "last_seen": "2026-01-01T03:30:00Z",
        "addresses": [], "address_count": 0,
    }])
}

#[test]
fn raw_sockets_are_recommended_and_their_loss_is_told() {
    let (web, db, probe) = (id("hanzo/web"), id("hanzo/db"), id("hanzo/probe"));
    let (_trail, dsn) = trail(&[
        record(1, &web, (&db, "10.0.0.2"), 5432, 1, "allowed"),
        socket(2, &probe, "ICMP", 2, "would deny"),
        socket(3, &probe, "ICMP", 4, "allowed"),
        socket(4, &web, "IP-255", 4, "would deny"),
        socket(5, &db, "ICMP", 4, "denied"),
        socket(6, "unknown", "ICMP", 4, "would deny"),
    ]);
    let made = recommend(&dsn, &["--fail"]);
    assert_eq!(made.code(), 0, "{}", made.stdout());
    let text = made.stdout();
    assert!(
        text.contains(&format!(
            "    # ICMP: 4 sockets, last 2026-01-01T04:30:00Z\n    - from: {{spiffe: \"{probe}\"}}\n      rawSockets: true\n"
        )),
        "{text}"
    );
    assert_eq!(text.matches("rawSockets: true\n").count(), 1, "{text}");
    for unsaid in [
        format!(
            "# Not in it: {web} -> raw-sockets IP-255 0 (2 connections): it would be refused, and programs take TCP then"
        ),
        "# Not in it: unknown -> raw-sockets ICMP 0 (2 connections): only a workload with an identity"
            .to_owned(),
    ] {
        assert!(text.contains(&unsaid), "{text}");
    }
    let without = policy("core", &rule("hanzo/web", "hanzo/db", "5432"));
    let right = |name: &str| {
        format!(
            "    - from: {{spiffe: \"{}\"}}\n      rawSockets: true\n",
            id(name)
        )
    };
    let idle = policy(
        "core",
        &(rule("hanzo/web", "hanzo/db", "5432") + &right("hanzo/probe") + &right("hanzo/cache")),
    );
    let policies = directory(&[
        ("made/p.yaml", &text),
        ("without/p.yaml", &without),
        ("idle/p.yaml", &idle),
    ]);
    let at = |name: &str| shown(&policies.path().join(name)).to_owned();
    let changes = |name: &str| {
        let ran = zt_agent(&["policy", "replay", &at(name), "--store", &dsn, "-o", "json"]);
        let rows = ran.json()["changes"].as_array().cloned().expect("changes");
        rows.iter()
            .map(|row| {
                let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
                let count = row["connections"].as_u64().unwrap_or_default();
                (
                    text("change"),
                    text("source"),
                    text("destination"),
                    text("reason"),
                    count,
                )
            })
            .collect::<Vec<_>>()
    };
    let row = |change: &str, source: &str, reason: &str| {
        let [change, source, reason] = [change, source, reason].map(str::to_owned);
        (change, source, "raw-sockets".to_owned(), reason, 2)
    };
    // That the first ones were only observed is what changes.
    assert_eq!(changes("made"), [row("newly_allowed", &probe, "rule")]);
    assert_eq!(changes("without"), [row("newly_denied", &probe, "raw_socket")]);

    let compared = |name: &str| {
        let ran = recommend(&dsn, &["--diff", &at(name), "-o", "json"]);
        assert_eq!(ran.code(), 0, "{}", ran.stderr());
        let answer = ran.json();
        let missing = answer["missing"].as_array().expect("missing").iter();
        let missing: Vec<Value> = missing.map(|row| row["source"].clone()).collect();
        (missing, answer["unused"].clone())
    };
    assert_eq!(compared("made"), (vec![], json!([])));
    assert_eq!(compared("without"), (vec![json!(probe)], json!([])));
    let unused = json!([{ "rule": "core/rule-3", "target": null }]);
    assert_eq!(compared("idle"), (vec![], unused));
}
