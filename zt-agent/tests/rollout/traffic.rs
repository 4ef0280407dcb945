// SPDX-License-Identifier: Apache-2.0
//! `policy replay` and `policy recommend`, over a recorded trail.

use serde_json::{Value, json};
use zt_agent::audit::record::{AuditRecord, Entry};
use zt_agent::audit::sqlite::{Durability, Settings, Store};
use zt_agent::audit::store::Sink as _;

use super::program::{Ran, directory, id, policy, rule, shown, zt_agent};

/// Somebody: a SPIFFE ID or an entity, and an address.
fn party(name: &str, address: &str) -> Value {
    let (spiffe, entity) = if name.starts_with("spiffe://") {
        (json!(name), Value::Null)
    } else {
        (Value::Null, json!(name))
    };
    json!({ "spiffe_id": spiffe, "entity": entity, "pod": null, "node": "n", "address": address })
}

/// A record of a connection to TCP port `port`, in this hour of the first of January.
pub(crate) fn record(
    number: usize,
    from: &str,
    (to, address): (&str, &str),
    port: u16,
    hour: u8,
    verdict: &str,
) -> Entry {
    let (decision, enforced, reason) = match verdict {
        "allowed" => ("ALLOW", true, "rule"),
        "denied" => ("DENY", true, "no_rule"),
        "would deny" => ("DENY", false, "no_rule"),
        other => ("DENY", true, other),
    };
    let mut source = party(from, "10.0.0.9");
    source["port"] = json!(40_000);
    source["pid"] = Value::Null;
    source["comm"] = Value::Null;
    let mut destination = party(to, address);
    destination["port"] = json!(port);
    let record: AuditRecord = serde_json::from_value(json!({
        "id": uuid::Uuid::from_u128(number as u128), "timestamp": format!("2026-01-01T{hour:02}:30:00Z"),
        "decision": decision, "source": source, "destination": destination,
        "policy_matched": null, "latency_us": 1.0, "cluster": "c", "protocol": "TCP", "hook": "connect",
        "observer": "source", "mode": if enforced { "enforce" } else { "observe" }, "enforced": enforced,
        "revision": 1, "reason": reason, "proof": "none", "count": 2,
    }))
    .expect("a record");
    Entry::Decision(record)
}

/// A trail of these connections.
pub(crate) fn trail(records: &[Entry]) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("tempdir");
    let dsn = format!("sqlite://{}", directory.path().join("audit.db").display());
    let settings = Settings {
        dsn: dsn.clone(),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: None,
        sync: Durability::default(),
    };
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(async {
        let store = Store::open(settings).await.expect("opens");
        store.append(records, None).await.expect("stores");
        store.close().await.expect("closes");
    });
    (directory, dsn)
}

pub(crate) fn sample() -> (tempfile::TempDir, String) {
    let (iam, web, db) = (id("hanzo/iam"), id("hanzo/web"), id("hanzo/db"));
    trail(&[
        record(1, &iam, (&db, "10.0.0.2"), 5432, 1, "allowed"),
        record(2, &iam, (&db, "10.0.0.2"), 5432, 5, "allowed"),
        record(3, &web, (&db, "10.0.0.2"), 5432, 2, "would deny"),
        record(4, &web, (&db, "10.0.0.2"), 22, 2, "denied"),
        record(5, &web, (&db, "10.0.0.2"), 23, 2, "tag_invalid"),
        record(6, &web, ("world", "192.0.2.7"), 443, 2, "allowed"),
        record(7, &web, ("world", "198.51.100.7"), 443, 3, "allowed"),
        record(8, &web, ("service:hanzo/api", "10.96.0.7"), 80, 3, "allowed"),
    ])
}

/// Change, source, destination, port and count of each row.
pub(crate) fn changes(ran: &Ran) -> Vec<String> {
    let answer = ran.json();
    let rows = answer["changes"].as_array().expect("changes").iter();
    rows.map(|row| {
        let text = |field: &str| {
            row[field]
                .to_string()
                .replace('"', "")
                .replace("spiffe://hanzo.ai/k8s/hanzo/", "")
        };
        ["change", "source", "destination", "port", "connections"]
            .map(text)
            .join(" ")
    })
    .collect()
}

#[test]
fn a_candidate_is_judged_by_what_was_recorded() {
    let (_trail, dsn) = sample();
    let cidr = format!(
        "    - from: {{spiffe: \"{}\"}}\n      to: [{{cidr: 192.0.2.0/24, ports: [443]}}]\n",
        id("hanzo/web")
    );
    let rules = rule("hanzo/web", "hanzo/db", "22, 23, 5432") + &cidr;
    let directory = directory(&[("core.yaml", &policy("core", &rules))]);
    let path = shown(directory.path());
    let ran = zt_agent(&["policy", "replay", path, "--store", &dsn, "-o", "json"]);
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
    assert_eq!(
        changes(&ran),
        [
            "newly_denied iam db 5432 4",
            "newly_denied web world 443 2",
            "newly_allowed web db 22 2",
            "newly_allowed web db 5432 2",
            "undecided web service:hanzo/api 80 2",
        ]
    );
    let answer = ran.json();
    assert_eq!(answer["changes"][1]["addresses"], json!(["198.51.100.7"]));
    assert_eq!(answer["changes"][0]["first_seen"], json!("2026-01-01T01:30:00Z"));
    assert_eq!(answer["changes"][0]["last_seen"], json!("2026-01-01T05:30:00Z"));
    assert_eq!(answer["newly_denied"], json!({ "flows": 2, "connections": 6 }));
    assert_eq!(answer["connections"], json!(14));
    assert_eq!(answer["left_out"], json!({ "tag_invalid": 2 }));
    let fail = |what: &str| zt_agent(&["policy", "replay", path, "--store", &dsn, what]).code();
    assert_eq!(
        (fail("--fail"), fail("--fail=allowed"), fail("--fail=any")),
        (1, 1, 1)
    );
    let text = zt_agent(&["policy", "replay", path, "--store", &dsn]).stdout();
    assert!(text.contains("6 would be newly denied (2 different)"), "{text}");
    assert!(text.contains("world (198.51.100.7)"), "{text}");
    assert!(
        text.contains("2 left out, for policy did not decide: tag_invalid"),
        "{text}"
    );

    let later = [
        "policy",
        "replay",
        path,
        "--store",
        &dsn,
        "--since",
        "2026-01-01T05:00:00Z",
        "-o",
        "json",
    ];
    assert_eq!(changes(&zt_agent(&later)), ["newly_denied iam db 5432 2"]);
}

#[test]
fn what_is_recommended_denies_nothing_on_replay() {
    let (_trail, dsn) = sample();
    let made = zt_agent(&["policy", "recommend", "--store", &dsn, "--name", "made"]);
    assert_eq!(made.code(), 0, "{}", made.stderr());
    let text = made.stdout();
    assert!(
        text.starts_with("# Allows what was seen: 12 connections, 5 different.\n"),
        "{text}"
    );
    assert!(text.contains("# Not in it: "), "{text}");
    assert!(
        text.contains("        # 5432: 4 connections, last 2026-01-01T05:30:00Z\n"),
        "{text}"
    );
    assert!(!text.contains("22"), "what was refused is not in it: {text}");
    let directory = directory(&[("made.yaml", &text)]);
    let path = shown(directory.path());
    let ran = zt_agent(&["policy", "replay", path, "--store", &dsn, "-o", "json"]);
    assert_eq!(
        changes(&ran),
        [
            "newly_allowed web db 5432 2",
            "undecided web service:hanzo/api 80 2"
        ]
    );
    let compared = zt_agent(&["policy", "recommend", "--store", &dsn, "--diff", path, "--fail"]);
    // Who stands behind the Service is not known: a rule may be missing.
    let table = compared.stdout();
    assert!(
        table.contains("cannot be judged: a Service of several identities"),
        "{table}"
    );
    assert!(!table.contains("missing") && !table.contains("unused"), "{table}");
    assert_eq!(compared.code(), 1);
    let fail = |what: &str| zt_agent(&["policy", "replay", path, "--store", &dsn, what]).code();
    assert_eq!((fail("--fail"), fail("--fail=strict")), (0, 1));
    let fails = zt_agent(&["policy", "recommend", "--store", &dsn, "--fail"]);
    assert_eq!(fails.code(), 1, "{}", fails.stdout());
    let all = zt_agent(&[
        "policy",
        "recommend",
        "--store",
        &dsn,
        "--include-denied",
        "--pattern",
        "spiffe://hanzo.ai/k8s/hanzo/*",
    ]);
    assert!(all.stdout().contains("ports: [22, 5432]"), "{}", all.stdout());
    assert_eq!(all.stdout().matches("- from:").count(), 1, "{}", all.stdout());
}

#[test]
fn each_verdict_has_its_times_and_want_of_proof_is_want_of_policy() {
    let (iam, db) = (id("hanzo/iam"), id("hanzo/db"));
    let (_trail, dsn) = trail(&[
        record(1, &iam, (&db, "10.0.0.2"), 5432, 1, "allowed"),
        record(2, &iam, (&db, "10.0.0.2"), 5432, 9, "denied"),
        record(3, &iam, (&db, "10.0.0.2"), 80, 3, "proof_required"),
        record(4, "unknown", (&db, "10.0.0.2"), 80, 3, "allowed"),
    ]);
    let cidr = format!("    - from: {{cidr: 10.0.0.0/8}}\n      to: [{{spiffe: \"{db}\", ports: [1]}}]\n");
    let directory = directory(&[
        (
            "plain/p.yaml",
            &policy("core", &rule("hanzo/iam", "hanzo/db", "80")),
        ),
        (
            "proof/p.yaml",
            &policy(
                "core",
                &rule("hanzo/iam", "hanzo/db", "80").replace("ports:", "requireProof: true, ports:"),
            ),
        ),
        ("cidr/p.yaml", &policy("core", &cidr)),
    ]);
    let replay = |name: &str| {
        let path = directory.path().join(name);
        zt_agent(&["policy", "replay", shown(&path), "--store", &dsn, "-o", "json"])
    };
    let plain = replay("plain");
    assert_eq!(
        changes(&plain),
        [
            "newly_denied iam db 5432 2",
            "newly_denied unknown db 80 2",
            "newly_allowed iam db 80 2",
        ]
    );
    assert_eq!(
        plain.json()["changes"][0]["last_seen"],
        json!("2026-01-01T01:30:00Z")
    );
    assert!(
        !changes(&replay("proof")).contains(&"newly_allowed iam db 80 2".to_owned()),
        "it proves nothing there either"
    );
    // Whether `unknown` was so by its address, and would be 10.0.0.0/8 then, is not recorded.
    assert!(
        changes(&replay("cidr")).contains(&"undecided unknown db 80 2".to_owned()),
        "{:?}",
        changes(&replay("cidr"))
    );
    let path = directory.path().join("cidr");
    let compared = [
        "policy",
        "recommend",
        "--store",
        &dsn,
        "--diff",
        shown(&path),
        "-o",
        "json",
    ];
    let undecided = &zt_agent(&compared).json()["undecided"];
    assert_eq!(undecided[0]["reason"], json!("nobody"), "{undecided}");
}

#[test]
fn current_policies_are_told_what_they_miss_and_what_is_idle() {
    let (_trail, dsn) = sample();
    let rules = rule("hanzo/iam", "hanzo/db", "5432") + &rule("hanzo/iam", "hanzo/redis", "6379");
    let directory = directory(&[("core.yaml", &policy("core", &rules))]);
    let path = shown(directory.path());
    let ran = zt_agent(&[
        "policy",
        "recommend",
        "--store",
        &dsn,
        "--diff",
        path,
        "-o",
        "json",
        "--fail",
    ]);
    assert_eq!(ran.code(), 1, "{}", ran.stderr());
    let answer = ran.json();
    assert_eq!(
        answer["unused"],
        json!([{ "rule": "core/rule-2", "target": null }])
    );
    let missing: Vec<_> = answer["missing"]
        .as_array()
        .expect("missing")
        .iter()
        .map(|one| one["port"].clone())
        .collect();
    // The two addresses of the world are one to these policies.
    assert_eq!(missing, [json!(5432), json!(443)]);
    assert_eq!(answer["missing"][1]["address_count"], 2);
}

#[test]
fn the_graph_of_an_agent_will_do() {
    let edges = json!({ "nodes": [], "edges": [{
        "source": id("hanzo/iam"), "destination": id("hanzo/db"), "protocol": "TCP", "port": 5432, "allowed": 3, "denied": 0,
        "would_deny": 0, "first_seen": "2026-01-01T00:00:00Z", "last_seen": "2026-01-01T00:00:00Z",
    }]});
    let directory = directory(&[
        (
            "p/core.yaml",
            &policy("core", &rule("hanzo/iam", "hanzo/db", "1")),
        ),
        ("graph.json", &edges.to_string()),
        ("bad.json", "{}"),
    ]);
    let at = |name: &str| shown(&directory.path().join(name)).to_owned();
    let replay = |traffic: &str| {
        zt_agent(&[
            "policy",
            "replay",
            &at("p"),
            "--traffic",
            &at(traffic),
            "-o",
            "json",
        ])
    };
    assert_eq!(changes(&replay("graph.json")), ["newly_denied iam db 5432 3"]);
    let bad = replay("bad.json");
    assert_eq!(bad.code(), 2);
    assert!(
        bad.stderr()
            .contains("not what `zt-agent graph -o json` prints: missing field `edges`"),
        "{}",
        bad.stderr()
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (_trail, dsn) = sample();
    let directory = directory(&[
        (
            "good/p.yaml",
            &policy("core", &rule("hanzo/iam", "hanzo/db", "1")),
        ),
        ("bad/p.yaml", &policy("core", &rule("hanzo/iam", "hanzo/db", "0"))),
    ]);
    let (good, bad) = (directory.path().join("good"), directory.path().join("bad"));
    let ran = zt_agent(&["policy", "replay", shown(&bad), "--store", &dsn]);
    assert_eq!((ran.code(), ran.stderr().contains("0 is not a port")), (64, true));
    let replay = |more: &[&str]| zt_agent(&[&["policy", "replay", shown(&good)], more].concat());
    let none = replay(&["--store", &dsn, "--since", "2027-01-01T00:00:00Z", "--fail"]);
    assert_eq!(none.code(), 1);
    assert!(
        none.stderr()
            .contains("no connections from 2027-01-01T00:00:00Z are recorded"),
        "{}",
        none.stderr()
    );
    let reversed = replay(&[
        "--store",
        &dsn,
        "--since",
        "2026-01-02T00:00:00Z",
        "--until",
        "2026-01-01T00:00:00Z",
    ]);
    assert_eq!(
        (
            reversed.code(),
            reversed.stderr().contains("is not before --until")
        ),
        (2, true)
    );
    let gone = replay(&["--store", "sqlite:///nonexistent.db"]);
    assert_eq!(
        (gone.code(), gone.stderr().contains("/nonexistent.db")),
        (1, true),
        "{}",
        gone.stderr()
    );
    let missing = replay(&["--traffic", "/nonexistent.json"]);
    assert_eq!(missing.code(), 2);
}
