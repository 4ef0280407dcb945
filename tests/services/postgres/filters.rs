// SPDX-License-Identifier: Apache-2.0
//! Every parameter of `/v1/audit`, over HTTP and by its flag of the command line, on both stores: of records
//! that differ in just what it is about, it finds those that it should, and no others.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::record::{AuditRecord, Change, Entry, Mode, Outcome, Timestamp};
use zt_agent::audit::sqlite;
use zt_agent::audit::store::Sink as _;
use zt_tests::entries::{Maker, linked};
use zt_tests::{Engine, Policy, Sandbox, TCP, http};

use super::{ship_kept, today, with_tables};

const HOUR: i64 = 3_600_000_000_000;
const OTHER_SOURCE: &str = "spiffe://hanzo.ai/hanzo-k8s/other/app";
const OTHER_DESTINATION: &str = "spiffe://hanzo.ai/hanzo-k8s/elsewhere/db";

/// An hour after the other, yesterday.
fn maker() -> Maker {
    Maker {
        start: today() - 24 * HOUR,
        step: HOUR,
        parties: 20,
    }
}

fn time(number: u64) -> String {
    Timestamp(maker().start + maker().step * number as i64).to_string()
}

/// A decision that differs from the first in what `change` changes, and when it was.
fn decision(number: u64, change: impl FnOnce(&mut AuditRecord)) -> Entry {
    let Entry::Decision(mut record) = maker().full(1) else {
        panic!("the first is a decision")
    };
    record.id = maker().id(number);
    record.timestamp = Timestamp(maker().start + maker().step * number as i64);
    record.decision = Outcome::Allow;
    record.enforced = true;
    record.mode = Mode::Enforce;
    record.count = 1;
    record.destination.port = 5432;
    record.source.node = Some(Arc::from("worker-1"));
    record.destination.node = Some(Arc::from("worker-1"));
    change(&mut record);
    Entry::Decision(record)
}

fn change(number: u64) -> Change {
    Change::new(
        (
            maker().id(number),
            Timestamp(maker().start + maker().step * number as i64),
        ),
        (Arc::from("hanzo-k8s"), Arc::from("worker-1")),
        Arc::from("uid:0"),
        1,
        json!({"from": "a", "to": "b"}),
    )
}

fn entries() -> Vec<Entry> {
    vec![
        decision(0, |_| {}),
        decision(1, |record| record.decision = Outcome::Deny),
        decision(2, |record| {
            record.enforced = false;
            record.mode = Mode::Observe;
        }),
        decision(3, |record| {
            record.source.spiffe_id = Some(Arc::from(OTHER_SOURCE));
        }),
        decision(4, |record| {
            record.destination.spiffe_id = Some(Arc::from(OTHER_DESTINATION));
            record.destination.entity = None;
        }),
        decision(5, |record| record.destination.port = 9999),
        decision(6, |record| {
            record.policy_matched = Some(Arc::from("other/rule-9"));
        }),
        decision(7, |record| record.source.node = Some(Arc::from("worker-7"))),
        decision(8, |record| record.destination.node = Some(Arc::from("worker-8"))),
        Entry::PolicyChange(change(9)),
        Entry::ModeChange(change(10)),
        Entry::IdentityChange(change(11)),
    ]
}

/// Parameter, value, and which records it finds.
fn table() -> Vec<(&'static str, String, Vec<u64>)> {
    let without = |some: &[u64], of: u64| {
        (0..of)
            .filter(|number| !some.contains(number))
            .collect::<Vec<_>>()
    };
    let of = |text: &str| text.to_owned();
    vec![
        ("type", of("decision"), (0..9).collect()),
        ("type", of("policy_change"), vec![9]),
        ("type", of("mode_change"), vec![10]),
        ("type", of("identity_change"), vec![11]),
        ("since", time(6), (6..12).collect()),
        ("until", time(3), (0..3).collect()),
        ("decision", of("DENY"), vec![1]),
        ("decision", of("ALLOW"), without(&[1], 9)),
        ("enforced", of("false"), vec![2]),
        ("enforced", of("true"), without(&[2], 9)),
        ("source", of(OTHER_SOURCE), vec![3]),
        ("source", of("spiffe://hanzo.ai/hanzo-k8s/other/*"), vec![3]),
        ("destination", of(OTHER_DESTINATION), vec![4]),
        (
            "destination",
            of("spiffe://hanzo.ai/hanzo-k8s/elsewhere/*"),
            vec![4],
        ),
        ("port", of("9999"), vec![5]),
        ("policy", of("other"), vec![6]),
        ("policy", of("other/rule-9"), vec![6]),
        ("policy", of("other/rule-8"), vec![]),
        ("node", of("worker-7"), vec![7]),
        ("node", of("worker-8"), vec![8]),
        ("node", of("worker-9"), vec![]),
    ]
}

fn found(answer: &Value) -> BTreeSet<String> {
    let records = answer["records"].as_array().expect("records");
    assert_eq!(answer["next_cursor"], Value::Null, "{answer}");
    // What the engine records itself at its start is none of them.
    let ours: Vec<String> = entries().iter().map(|entry| entry.id().to_string()).collect();
    records
        .iter()
        .map(|record| record["id"].as_str().expect("an id").to_owned())
        .filter(|id| ours.contains(id))
        .collect()
}

fn with_cli(engine: &Engine, arguments: &[&str]) -> Value {
    let mut command = Command::new(zt_tests::agent::binary().expect("built"));
    command
        .args(arguments)
        .args(["--api", &engine.url(), "-o", "json"])
        .env_clear();
    let output = command.output().expect("runs");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn answers(engine: &Engine) -> Result<()> {
    let all = found(&engine.get("/v1/audit?limit=1000")?);
    let ids: Vec<String> = entries().iter().map(|entry| entry.id().to_string()).collect();
    assert_eq!(
        all,
        ids.iter().cloned().collect(),
        "without a filter all are found"
    );
    for (name, value, wanted) in table() {
        let wanted: BTreeSet<String> = wanted
            .iter()
            .map(|number| ids[*number as usize].clone())
            .collect();
        let over_http = engine.get(&format!("/v1/audit?limit=1000&{name}={}", http::encoded(&value)))?;
        assert_eq!(found(&over_http), wanted, "{name}={value}");
        let flag = format!("--{name}");
        let worded = if name == "type" {
            value.replace('_', "-")
        } else {
            value.clone()
        };
        let by_flag = with_cli(engine, &["audit", "query", "--limit", "1000", &flag, &worded]);
        assert_eq!(found(&by_flag), wanted, "{flag} {worded}");
    }
    // Together they narrow one another.
    let both = format!("/v1/audit?decision=DENY&since={}", http::encoded(&time(6)));
    assert!(found(&engine.get(&both)?).is_empty());
    assert_eq!(http::get(engine.api(), "/v1/audit?limit=5&cursor=x")?.status, 400);
    Ok(())
}

fn engine(sandbox: &Sandbox) -> Result<Engine> {
    let policy = Policy::new("core").allow("client", "server", TCP, "80");
    Engine::with_policy(sandbox, "engine", &policy)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_parameter_finds_what_it_is_about_in_a_file() -> Result<()> {
    let sandbox = Sandbox::new("filters-sqlite")?;
    let mut engine = engine(&sandbox)?;
    let home = engine.spool().parent().expect("a directory").to_path_buf();
    let settings = sqlite::Settings {
        dsn: format!("sqlite://{}", home.join("audit.db").display()),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: Some(home.join("keys")),
        sync: sqlite::Durability::default(),
    };
    let store = sqlite::Store::open(settings).await?;
    store.append(&entries(), None).await?;
    store.close().await?;
    tokio::task::block_in_place(|| {
        engine.start()?;
        answers(&engine)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_parameter_finds_what_it_is_about_on_a_server() -> Result<()> {
    let server = with_tables().await;
    let mut head = Head::new(Uuid::from_u128(7));
    let records = linked(entries(), &mut head);
    ship_kept(&server, head.writer, &records).await;
    let sandbox = Sandbox::new("filters-postgres")?;
    let mut engine = engine(&sandbox)?.on_server(&server.dsn("engine"), 365);
    tokio::task::block_in_place(|| {
        engine.start()?;
        answers(&engine)
    })
}
