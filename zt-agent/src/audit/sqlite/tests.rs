// SPDX-License-Identifier: Apache-2.0
//! The store over real files.

use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use tempfile::TempDir;
use zt_common::identity;
use zt_common::verdict::Reason;

use super::*;
use crate::audit::query::{Edge, NodeKind, PartyFilter};
use crate::audit::record::{Hook, Outcome, Timestamp};
use crate::audit::sample::{CHAT, GATEWAY, RULE, decision, record, record_of};
use crate::spiffe_id::Pattern;

fn settings(directory: &TempDir) -> Settings {
    Settings {
        dsn: format!("sqlite://{}/state/audit.db", directory.path().display()),
        max_disk_bytes: 2 << 30,
        retention_days: None,
    }
}

async fn store() -> (TempDir, Store) {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(settings(&directory)).await.expect("opens");
    (directory, store)
}

/// Records in the order of their numbers, a second apart, from different parties.
fn records(numbers: std::ops::Range<u64>) -> Vec<AuditRecord> {
    numbers
        .map(|number| {
            let mut decision = decision();
            decision.time += number * 1_000_000_000;
            decision.source = if number % 3 == 0 { CHAT } else { GATEWAY };
            decision.allowed = number % 3 != 0;
            decision.enforced = number % 2 == 0;
            decision.rule = if decision.allowed { RULE } else { 0 };
            decision.reason = if decision.allowed { Reason::Rule } else { Reason::NoRule };
            decision.pid = number as u32 + 1;
            record_of(&decision, u128::from(number))
        })
        .collect()
}

async fn all(store: &Store, filter: &Filter) -> Vec<AuditRecord> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.query(filter, cursor, 7).await.expect("answers");
        found.extend(page.records);
        cursor = page.next;
        if cursor.is_none() {
            return found;
        }
    }
}

#[tokio::test]
async fn directory_and_file_are_this_user_s_only() {
    let (directory, store) = store().await;
    store.append(&records(0..1)).await.expect("stores");
    let mode = |path: &Path| std::fs::metadata(path).expect("exists").permissions().mode() & 0o777;
    assert_eq!(mode(&directory.path().join("state")), 0o700);
    assert_eq!(mode(store.path()), 0o600);
    assert_eq!(mode(&store.path().with_extension("db-wal")), 0o600);
}

#[tokio::test]
async fn what_is_stored_is_found_newest_first_and_survives_reopening() {
    let (directory, store) = store().await;
    let stored = records(0..50);
    store.append(&stored[..20]).await.expect("stores");
    store.append(&stored[20..]).await.expect("stores");
    store.close().await.expect("closes");
    let store = Store::open(settings(&directory)).await.expect("opens again");
    let newest_first: Vec<AuditRecord> = stored.iter().rev().cloned().collect();
    assert_eq!(all(&store, &Filter::default()).await, newest_first);
    assert_eq!(store.totals().await.expect("totals"), Totals { stored: 50, pruned: 0 });
}

#[tokio::test]
async fn pages_do_not_move_when_records_come() {
    let (_directory, store) = store().await;
    store.append(&records(0..30)).await.expect("stores");
    let (mut found, mut cursor, mut next) = (Vec::new(), None, 30);
    loop {
        let page = store.query(&Filter::default(), cursor, 7).await.expect("answers");
        found.extend(page.records);
        store.append(&records(next..next + 5)).await.expect("stores");
        next += 5;
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let expected: Vec<AuditRecord> = records(0..30).into_iter().rev().collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn each_filter_finds_what_a_person_would() {
    let (_directory, store) = store().await;
    let mut stored = records(0..60);
    let mut other = decision();
    other.target_port = 6379;
    other.destination = identity::WORLD;
    stored.push(record_of(&other, 999));
    store.append(&stored).await.expect("stores");

    type Test = Box<dyn Fn(&AuditRecord) -> bool>;
    let exact = |text: &str| Some(PartyFilter::Exact(text.to_owned()));
    let pattern = |text: &str| Some(PartyFilter::Pattern(Pattern::parse(text).expect("pattern")));
    let from = stored[10].timestamp;
    let to = stored[20].timestamp;
    let base = Filter::default;
    let cases: Vec<(Filter, Test)> = vec![
        (Filter { decision: Some(Outcome::Deny), ..base() }, Box::new(|r| r.decision == Outcome::Deny)),
        (Filter { enforced: Some(false), ..base() }, Box::new(|r| !r.enforced)),
        (Filter { since: Some(from), ..base() }, Box::new(move |r| r.timestamp >= from)),
        (Filter { until: Some(to), ..base() }, Box::new(move |r| r.timestamp < to)),
        (
            Filter { since: Some(from), until: Some(to), enforced: Some(true), ..base() },
            Box::new(move |r| r.timestamp >= from && r.timestamp < to && r.enforced),
        ),
        (
            Filter { source: exact("spiffe://hanzo.ai/hanzo-k8s/hanzo/chat"), ..base() },
            Box::new(|r| r.source.name().ends_with("/chat")),
        ),
        (
            Filter { source: pattern("spiffe://hanzo.ai/hanzo-k8s/*/gateway"), ..base() },
            Box::new(|r| r.source.name().ends_with("/gateway")),
        ),
        (Filter { destination: exact("world"), ..base() }, Box::new(|r| r.destination.name() == "world")),
        (Filter { port: Some(6379), ..base() }, Box::new(|r| r.destination.port == 6379)),
        (Filter { policy: Some("hanzo-core-policy".into()), ..base() }, Box::new(|r| r.policy_matched.is_some())),
        (Filter { policy: Some("hanzo-core-policy/rule-2".into()), ..base() }, Box::new(|r| r.policy_matched.is_some())),
        (Filter { policy: Some("hanzo-core".into()), ..base() }, Box::new(|_| false)),
        (Filter { policy: Some("hanzo-core-policy/rule-20".into()), ..base() }, Box::new(|_| false)),
        (Filter { node: Some("worker-3".into()), ..base() }, Box::new(|_| true)),
        (Filter { node: Some("worker-4".into()), ..base() }, Box::new(|_| false)),
        (Filter { port: Some(1), ..base() }, Box::new(|_| false)),
    ];
    for (filter, test) in cases {
        let expected: Vec<&AuditRecord> = stored.iter().rev().filter(|record| test(record)).collect();
        let found = all(&store, &filter).await;
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter:?}");
    }
}

#[tokio::test]
async fn paging_crosses_segments_and_finds_the_rare_one() {
    let (_directory, store) = store().await;
    let mut rare = decision();
    rare.target_port = 1;
    let mut stored = vec![record_of(&rare, 0)];
    stored.extend((1..40_000).map(|number| record_of(&decision(), number)));
    stored.push(record_of(&rare, 40_000));
    for batch in stored.chunks(7_000) {
        store.append(batch).await.expect("stores");
    }
    let found = all(&store, &Filter { port: Some(1), ..Filter::default() }).await;
    assert_eq!(found, [stored[40_000].clone(), stored[0].clone()]);
    let page = store.query(&Filter::default(), None, 1000).await.expect("answers");
    assert_eq!(page.records.len(), 1000);
    let page = store.query(&Filter::default(), Some(Cursor(16_390)), 1000).await.expect("answers");
    assert_eq!(page.records.first().map(|record| record.id), stored.get(16_388).map(|record| record.id));
    assert_eq!(page.records.last().map(|record| record.id), stored.get(15_389).map(|record| record.id));
}

#[tokio::test]
async fn nothing_is_sorted_to_answer() {
    let (_directory, store) = store().await;
    let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", select::SQL));
    let mut query = sqlx::query_as::<_, (i64, i64, i64, String)>(explain);
    for _ in 0..13 {
        query = query.bind(Option::<i64>::None);
    }
    let plan = query.fetch_all(&store.readers).await.expect("plan");
    let plan: Vec<&str> = plan.iter().map(|(_, _, _, step)| step.as_str()).collect();
    assert!(!plan.iter().any(|step| step.contains("ORDER BY")), "{plan:#?}");
    assert!(plan.iter().any(|step| step.starts_with("SEARCH r USING INTEGER PRIMARY KEY")), "{plan:#?}");
}

#[tokio::test]
async fn text_is_never_sql() {
    let (_directory, store) = store().await;
    let nasty = "x'); DROP TABLE record; --\u{0}\"';";
    let mut record = record();
    record.source.entity = Some(Arc::from(nasty));
    record.source.spiffe_id = None;
    record.source.comm = Some(Arc::from(nasty));
    record.source.pod = Some(Arc::from(nasty));
    record.source.node = Some(Arc::from(nasty));
    record.destination.pod = Some(Arc::from(nasty));
    record.destination.node = Some(Arc::from(nasty));
    record.policy_matched = Some(Arc::from(nasty));
    record.cluster = Arc::from(nasty);
    record.hook = Hook::Api;
    record.caller = Some(Arc::from(nasty));
    store.append(std::slice::from_ref(&record)).await.expect("stores");
    let exact = || Some(PartyFilter::Exact(nasty.to_owned()));
    for filter in [
        Filter::default(),
        Filter { source: exact(), ..Filter::default() },
        Filter { policy: Some(nasty.to_owned()), ..Filter::default() },
        Filter { node: Some(nasty.to_owned()), ..Filter::default() },
    ] {
        assert_eq!(all(&store, &filter).await, [record.clone()], "{filter:?}");
    }
    assert!(all(&store, &Filter { destination: exact(), ..Filter::default() }).await.is_empty());
    assert!(all(&store, &Filter { node: Some("' OR 1=1 --".to_owned()), ..Filter::default() }).await.is_empty());
}

#[tokio::test]
async fn the_graph_counts_each_connection_once() {
    let (_directory, store) = store().await;
    let with = |change: &dyn Fn(&mut crate::audit::Decision)| {
        let mut decision = decision();
        change(&mut decision);
        record_of(&decision, 0)
    };
    let observed_denial = with(&|d| (d.allowed, d.enforced, d.rule) = (false, false, 0));
    let mut refused_there = with(&|d| (d.allowed, d.inbound, d.rule, d.time) = (false, true, 0, 8_000_000_000));
    refused_there.source.node = refused_there.destination.node.clone();
    let batch = [
        with(&|_| ()),
        with(&|_| ()),
        observed_denial.clone(),
        observed_denial,
        refused_there,
        with(&|d| d.reason = Reason::Revoked),
        with(&|d| (d.source, d.inbound) = (identity::WORLD, true)),
    ];
    store.append(&batch[..3]).await.expect("stores");
    store.append(&batch[3..]).await.expect("stores");
    let graph = store.graph().await.expect("graph");
    let start = record().timestamp;
    let edge = |source: &str, allowed, denied, would_deny, last_seen| Edge {
        source: Arc::from(source),
        destination: Arc::from("spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres"),
        protocol: crate::audit::record::Protocol(6),
        port: 5432,
        allowed,
        denied,
        would_deny,
        first_seen: start,
        last_seen,
    };
    let gateway = "spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway";
    let expected = [edge(gateway, 2, 1, 1, Timestamp(start.0 + 3_000_000_000)), edge("world", 1, 0, 0, start)];
    assert_eq!(graph.edges, expected);
    let kinds: Vec<NodeKind> = graph.nodes.iter().map(|node| node.kind).collect();
    assert_eq!(kinds, [NodeKind::Workload, NodeKind::Workload, NodeKind::Entity]);
}

#[tokio::test]
async fn the_oldest_make_room_and_are_counted() {
    let directory = tempfile::tempdir().expect("directory");
    let max_disk_bytes = 3 << 20;
    let store = Store::open(Settings { max_disk_bytes, ..settings(&directory) }).await.expect("opens");
    let mut pruned = 0;
    for batch in 0..30_u64 {
        let batch: Vec<AuditRecord> =
            (0..4096).map(|n| record_of(&decision(), u128::from(batch * 4096 + n))).collect();
        store.append(&batch).await.expect("stores");
        loop {
            let round = store.prune().await.expect("prunes");
            pruned += round.for_space;
            if !round.more {
                break;
            }
        }
    }
    assert!(pruned > 0);
    let file = std::fs::metadata(store.path()).expect("file").len();
    assert!(file <= max_disk_bytes, "{file}");
    let found = store.query(&Filter::default(), None, 1000).await.expect("answers");
    assert_eq!(found.records.first().map(|record| record.id), Some(record_of(&decision(), 30 * 4096 - 1).id));
    assert_eq!(store.totals().await.expect("totals"), Totals { stored: 30 * 4096, pruned });
    let kept: (i64,) = sqlx::query_as("SELECT count(*) FROM record").fetch_one(&store.readers).await.expect("count");
    assert_eq!(kept.0.cast_unsigned() + pruned, 30 * 4096);
}

#[tokio::test]
async fn retention_is_to_the_record_and_rows_are_never_used_twice() {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(Settings { retention_days: Some(1), ..settings(&directory) }).await.expect("opens");
    let mut batch = records(0..10);
    let now = crate::audit::clock::now();
    for (hours, record) in (0_i64..).zip(batch.iter_mut().rev()) {
        record.timestamp = Timestamp(now - hours * 5 * 3_600_000_000_000);
    }
    store.append(&batch).await.expect("stores");
    assert_eq!(store.prune().await.expect("prunes"), Pruned { for_age: 5, for_space: 0, more: true });
    assert_eq!(store.prune().await.expect("prunes"), Pruned::default());
    assert_eq!(all(&store, &Filter::default()).await.len(), 5);

    let cursor = store.query(&Filter::default(), None, 1).await.expect("answers").next.expect("more");
    assert_eq!(cursor, Cursor(10));
    let (row,): (i64,) = sqlx::query_as("SELECT next_row FROM trail").fetch_one(&store.readers).await.expect("row");
    assert_eq!(row, 11);
}

#[tokio::test]
async fn another_file_is_left_alone() {
    let directory = tempfile::tempdir().expect("directory");
    let settings = settings(&directory);
    let path = dsn::path(&settings.dsn).expect("path");
    dsn::create(&path).expect("creates");

    std::fs::write(&path, "not a database, just text that is long enough to look at".repeat(100)).expect("writes");
    let error = Store::open(settings.clone()).await.expect_err("text").to_string();
    assert!(error.contains("cannot open the audit store"), "{error}");

    std::fs::remove_file(&path).expect("removes");
    dsn::create(&path).expect("creates");
    let mut foreign = SqliteConnection::connect_with(&options(&path)).await.expect("opens");
    sqlx::raw_sql("CREATE TABLE cookies (crumb TEXT)").execute(&mut foreign).await.expect("table");
    let error = Store::open(settings.clone()).await.expect_err("foreign").to_string();
    assert!(error.contains("not an audit store"), "{error}");

    sqlx::raw_sql("DROP TABLE cookies").execute(&mut foreign).await.expect("drops");
    Store::open(settings.clone()).await.expect("empty is fine").close().await.expect("closes");
    sqlx::raw_sql("PRAGMA user_version = 99").execute(&mut foreign).await.expect("marks");
    let error = Store::open(settings).await.expect_err("newer").to_string();
    assert!(error.contains("layout 99"), "{error}");
}

#[tokio::test]
async fn a_batch_given_up_leaves_nothing_and_the_next_is_whole() {
    let (directory, store) = store().await;
    let batch = records(0..5000);
    {
        let append = store.append(&batch);
        tokio::pin!(append);
        // Started, and dropped somewhere in the middle.
        tokio::select! { biased; result = &mut append => result.expect("stores"), () = tokio::time::sleep(Duration::from_millis(2)) => {} }
    }
    store.append(&records(7000..7010)).await.expect("stores");
    let reopened = Store::open(settings(&directory)).await.expect("opens");
    let totals = reopened.totals().await.expect("totals");
    assert!(totals.stored == 10 || totals.stored == 5010, "{totals:?}");
    let newest = reopened.query(&Filter::default(), None, 10).await.expect("answers").records;
    assert_eq!(newest, records(7000..7010).into_iter().rev().collect::<Vec<_>>());
}

#[tokio::test]
async fn two_agents_may_write_during_a_takeover() {
    let (directory, first) = store().await;
    let second = Store::open(settings(&directory)).await.expect("opens");
    for round in 0..10 {
        first.append(&records(round * 10..round * 10 + 5)).await.expect("stores");
        second.append(&records(round * 10 + 5..round * 10 + 10)).await.expect("stores");
    }
    let expected: Vec<AuditRecord> = records(0..100).into_iter().rev().collect();
    assert_eq!(all(&first, &Filter::default()).await, expected);
}

#[tokio::test]
async fn names_of_earlier_runs_are_remembered() {
    let (_directory, store) = store().await;
    let named = |number: u64, text: &str| Named { kind: Kind::Rule, number, text: Arc::from(text) };
    store.remember(&[named(u64::MAX, "p/rule-1"), named(5, "p/rule-2")]).await.expect("stores");
    store.remember(&[named(u64::MAX, "p/rule-9")]).await.expect("stores");
    assert_eq!(store.remembered(10).await.expect("reads"), [named(u64::MAX, "p/rule-9"), named(5, "p/rule-2")]);
    assert_eq!(store.remembered(1).await.expect("reads").len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_numbers_lead_back(
        latency in any::<u32>(), revision in any::<u64>(), port in any::<u16>(), pid in any::<u32>(),
        time in any::<u64>(), protocol in any::<u8>(), address in any::<[u8; 16]>(), source in any::<u64>(),
    ) {
        let mut changed = decision();
        (changed.latency, changed.revision, changed.target_port, changed.pid) = (latency, revision, port, pid);
        (changed.time, changed.protocol, changed.source) = (time, protocol, source);
        changed.source_address = zt_common::address::Address(address);
        let stored = record_of(&changed, 3);
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let found = runtime.block_on(async {
            let (_directory, store) = store().await;
            store.append(std::slice::from_ref(&stored)).await.expect("stores");
            all(&store, &Filter::default()).await
        });
        prop_assert_eq!(found, [stored]);
    }
}
