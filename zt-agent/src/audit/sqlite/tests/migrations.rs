// SPDX-License-Identifier: Apache-2.0
//! A file of the oldest layout is brought to this one with what was recorded in it.

use sqlx::AssertSqlSafe;

use super::graph::assert_same;
use super::*;
use crate::audit::export::verify;
use crate::audit::verify::{Finding, Noted, Verifier};

/// What the first layout had of a file `made` of this one: decisions without a chain, and counts in the shapes. One shape has
/// no record any more.
const FILL: &str = "
INSERT INTO name SELECT id, text FROM made.name;
INSERT INTO number SELECT row, kind, number, text FROM made.number;
INSERT INTO record (row, id, time, shape, revision, latency, source_address, source_port, destination_address, pid, comm,
                    source_pod, destination_pod, caller, count)
SELECT row, id, time, shape, revision, latency, source_address, source_port, destination_address, pid, comm,
       source_pod, destination_pod, caller, count
FROM made.record;
INSERT INTO shape (id, source, destination, protocol, port, rule, source_node, destination_node, cluster, decision, enforced,
                   mode, observer, hook, reason, proof, part, connections, first_seen, last_seen, last_row, mark)
SELECT s.id, s.source, s.destination, s.protocol, s.port, s.rule, s.source_node, s.destination_node, s.cluster, s.decision,
       s.enforced, s.mode, s.observer, s.hook, s.reason, s.proof, s.part, sum(r.count), min(r.time), max(r.time), max(r.row), 0
FROM made.shape s JOIN made.record r ON r.shape = s.id GROUP BY s.id;
INSERT INTO shape SELECT 99999, source, destination, protocol, 1, rule, source_node, destination_node, cluster, decision,
       enforced, mode, observer, hook, reason, proof, part, 0, 0, 0, 0, 0
FROM shape WHERE id = (SELECT min(id) FROM shape);
INSERT INTO segment SELECT segment, min_time, max_time FROM made.segment;
INSERT INTO span SELECT segment, shape FROM made.span;
UPDATE trail SET next_row = (SELECT next_row FROM made.trail), stored = (SELECT stored FROM made.trail);
";

fn rule() -> Named {
    Named {
        kind: Kind::Rule,
        number: RULE,
        text: Arc::from("hanzo-core-policy/rule-2"),
    }
}

/// Puts a file of the first layout where settings say, with these records in it.
async fn first_layout(settings_of_it: &Settings, records: &[AuditRecord]) {
    let directory = tempfile::tempdir().expect("directory");
    let made = Store::open(settings(&directory)).await.expect("opens");
    keep(&made, records).await;
    made.remember(&[rule()]).await.expect("stores");
    let attach = format!("ATTACH '{}' AS made", made.path().display());
    made.close().await.expect("closes");
    let mark = format!(
        "PRAGMA application_id = {}; PRAGMA user_version = 1",
        schema::APPLICATION_ID
    );

    let path = dsn::path(&settings_of_it.dsn).expect("path");
    dsn::create(&path).expect("creates");
    let mut old = SqliteConnection::connect_with(&connections::writing(&path, Durability::default()))
        .await
        .expect("opens");
    for sql in [schema::LAYOUT_1, &mark, &attach, FILL] {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut old)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    old.close().await.expect("closes");
}

/// Looks that these are found by every question, in their order, and counted.
async fn are_found(store: &Store, recorded: &[AuditRecord], when: &str) {
    let party = |text: &str| Some(text.parse::<PartyFilter>().expect("a party"));
    let base = Filter::default;
    let filters = [
        base(),
        Filter {
            decision: Some(Outcome::Deny),
            ..base()
        },
        Filter {
            enforced: Some(false),
            port: Some(5432),
            ..base()
        },
        Filter {
            source: party("spiffe://hanzo.ai/hanzo-k8s/hanzo/chat"),
            since: Some(recorded[100].timestamp),
            until: Some(recorded[400].timestamp),
            ..base()
        },
        Filter {
            source: party("spiffe://hanzo.ai/hanzo-k8s/*/gateway"),
            policy: Some("hanzo-core-policy".to_owned()),
            ..base()
        },
        Filter {
            node: Some("worker-4".to_owned()),
            ..base()
        },
        Filter {
            port: Some(1),
            ..base()
        },
    ];
    for filter in filters {
        let newest_first = recorded.iter().rev();
        let expected = newest_first.filter(|record| filter.takes(&Entry::Decision((*record).clone())));
        let expected: Vec<AuditRecord> = expected.cloned().collect();
        assert_eq!(all(store, &filter).await, expected, "{when}: {filter:?}");
    }
    assert_same(store, when).await;
    let stored = recorded.len() as u64;
    let totals = store.totals().await.expect("totals");
    assert_eq!(totals, Totals { stored, pruned: 0 }, "{when}");
}

#[tokio::test]
async fn a_file_of_the_first_layout_is_gone_on_with() {
    const OLD: usize = 500;
    let directory = tempfile::tempdir().expect("directory");
    let keys = directory.path().join("keys");
    let how = Settings {
        keys: Some(keys.clone()),
        ..settings(&directory)
    };
    let recorded = records(0..OLD as u64 + 100);
    first_layout(&how, &recorded[..OLD]).await;
    let error = Reader::open(&how.dsn).await.expect_err("of an old layout");
    assert!(matches!(error, StoreError::Older { found: 1, .. }), "{error}");

    let store = Store::open(how.clone()).await.expect("opens");
    are_found(&store, &recorded[..OLD], "brought to this layout").await;
    assert_eq!(store.remembered(10).await.expect("reads"), [rule()]);
    // Of the shape that had no record nothing is left.
    let edges = store.graph(&GraphFilter::default()).await.expect("graph").edges;
    assert!(edges.iter().all(|edge| edge.port == 5432), "{edges:?}");
    keep(&store, &recorded[OLD..]).await;
    store
        .seal()
        .await
        .expect("sealed")
        .expect("there is something to sign");
    are_found(&store, &recorded, "gone on with").await;
    store.close().await.expect("closes");

    // What is older than the chain is told as that, each of it, and all that came since is in it.
    let mut reader = Reader::open(&how.dsn).await.expect("opens");
    let roots = Keys::list(&keys).expect("reads").expect("keys");
    let verifier = Verifier::new(vec![roots[0].key.clone()]);
    let noted = Keys::noted(&keys).expect("reads");
    let noted: Vec<Noted> = noted.into_iter().map(Noted::here).collect();
    let verified = verify(&mut reader, verifier, &noted, &mut |_| ()).await;
    let report = verified.expect("reads").finish();
    let older = recorded[..OLD].iter().map(|record| Finding::Unchained {
        id: record.id.to_string(),
    });
    assert_eq!(report.findings, older.collect::<Vec<_>>());
    assert_eq!(report.entries, recorded.len() as u64);
    assert_eq!(report.writers[0].records, (recorded.len() - OLD) as u64);
}
