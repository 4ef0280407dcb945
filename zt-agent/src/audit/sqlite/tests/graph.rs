// SPDX-License-Identifier: Apache-2.0
//! The graph by the hour is what a walk through the records would find.

use std::collections::BTreeMap;

use super::*;
use crate::audit::query::{Fold, GraphFilter, HOUR, MAX_SEEN, TooMuch};
use crate::audit::record::Part;

/// The graph, the long way.
fn walked(records: &[AuditRecord], filter: &GraphFilter) -> Vec<Edge> {
    let (first, last) = filter.hours();
    let mut edges: BTreeMap<(Arc<str>, Arc<str>, u8, u16), Edge> = BTreeMap::new();
    for part in [Part::Counts, Part::Corrects] {
        for record in records.iter().filter(|record| record.part() == part) {
            let hour = record.timestamp.0.div_euclid(HOUR);
            let (source, destination) = (record.source.name(), record.destination.name());
            if hour < first || hour > last || !filter.takes(source, destination) {
                continue;
            }
            let (source, destination): (Arc<str>, Arc<str>) = (source.into(), destination.into());
            let (protocol, port) = (record.protocol, record.destination.port);
            let key = (Arc::clone(&source), Arc::clone(&destination), protocol.0, port);
            let edge = edges.entry(key).or_insert_with(|| Edge {
                source,
                destination,
                protocol,
                port,
                allowed: 0,
                denied: 0,
                would_deny: 0,
                first_seen: record.timestamp,
                last_seen: record.timestamp,
            });
            edge.first_seen = edge.first_seen.min(record.timestamp);
            edge.last_seen = edge.last_seen.max(record.timestamp);
            match (part, record.decision, record.enforced) {
                (Part::Corrects, Outcome::Deny, true) => edge.correct(record.count),
                (Part::Corrects, ..) => {}
                (_, Outcome::Allow, _) => edge.allowed += record.count,
                (_, Outcome::Deny, true) => edge.denied += record.count,
                (_, Outcome::Deny, false) => edge.would_deny += record.count,
            }
        }
    }
    edges.into_values().collect()
}

/// A record some minutes after the one before, of one of a few parties.
fn some(number: u64, random: u64) -> AuditRecord {
    let mut decision = decision();
    decision.time += number * 600_000_000_000;
    decision.source = [GATEWAY, CHAT, identity::WORLD][(random % 3) as usize];
    decision.allowed = !random.is_multiple_of(4);
    decision.enforced = !random.is_multiple_of(5);
    decision.inbound = random.is_multiple_of(7);
    decision.rule = if decision.allowed { RULE } else { 0 };
    decision.target_port = [5432, 6379][(random % 2) as usize];
    let mut record = record_of(&decision, u128::from(number));
    if random.is_multiple_of(14) {
        record.source.node = record.destination.node.clone();
    }
    record.count = 1 + random % 3;
    record
}

/// Looks that the graph is what a walk through the records finds.
pub(super) async fn assert_same(store: &Store, what: &str) {
    let left = all(store, &Filter::default()).await;
    let hour = |hours: i64| Some(Timestamp(decision_time() + hours * HOUR));
    for filter in [
        GraphFilter::default(),
        GraphFilter {
            since: hour(2),
            ..GraphFilter::default()
        },
        GraphFilter {
            since: hour(1),
            until: hour(5),
            ..GraphFilter::default()
        },
        GraphFilter {
            namespace: Some("hanzo".into()),
            ..GraphFilter::default()
        },
        GraphFilter {
            namespace: Some("hanzo-k8s".into()),
            ..GraphFilter::default()
        },
    ] {
        let graph = store.graph(&filter).await.expect("graph");
        assert_eq!(graph.edges, walked(&left, &filter), "{what}: {filter:?}");
    }
}

fn decision_time() -> i64 {
    record().timestamp.0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn the_graph_is_what_a_walk_finds_also_after_pruning_and_a_restart(
        randoms in proptest::collection::vec(any::<u64>(), 1..80),
        batch in 1_usize..30,
        cut in 0_u64..90,
    ) {
        let records: Vec<AuditRecord> = (0..).zip(&randoms).map(|(number, random)| some(number, *random)).collect();
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        runtime.block_on(async {
            let (directory, store) = store().await;
            for batch in records.chunks(batch) {
                keep(&store, batch).await;
            }
            assert_same(&store, "written").await;
            let before = Timestamp(decision_time() + cut.cast_signed() * 600_000_000_000);
            let gone = store.prune_before(before).await.expect("prunes");
            assert_eq!(gone, cut.min(records.len() as u64));
            assert_same(&store, "pruned").await;
            keep(&store, &records[..1]).await;
            assert_same(&store, "a shape is back").await;
            store.close().await.expect("closes");
            let store = Store::open(settings(&directory)).await.expect("opens");
            assert_same(&store, "restarted").await;
        });
    }
}

#[tokio::test]
async fn shapes_that_do_not_fit_into_one_text_are_all_counted_and_no_more_are_kept_than_are_asked_for() {
    let (_directory, store) = store().await;
    let mut decision = decision();
    decision.source = identity::WORLD;
    let to_port = |port: u16| {
        decision.target_port = port;
        record_of(&decision, port.into())
    };
    let records: Vec<AuditRecord> = (1..=9000).map(to_port).collect();
    keep(&store, &records).await;
    let filter = GraphFilter::default();
    let graph = store.graph(&filter).await.expect("graph");
    assert_eq!(graph.edges, walked(&records, &filter));
    let most = |addresses| Fold::nothing().at_most(MAX_SEEN, addresses);
    let traffic = store.traffic(&filter, &most(9000)).await.expect("traffic");
    assert_eq!(traffic.seen.len(), 9000);
    let too_many = store.traffic(&filter, &most(8999)).await;
    assert!(
        matches!(too_many, Err(StoreError::TooMuch(TooMuch::Addresses(8999)))),
        "{too_many:?}"
    );
    // Nor do they take more memory: each of these at least so much.
    let too_large = store.traffic(&filter, &most(9000).within(9000 * 100)).await;
    assert!(
        matches!(too_large, Err(StoreError::TooMuch(TooMuch::Bytes(900_000)))),
        "{too_large:?}"
    );
    let large_enough = most(9000).within(9000 * 1000);
    let traffic = store.traffic(&filter, &large_enough).await.expect("traffic");
    assert_eq!(traffic.seen.len(), 9000);
    // Of a namespace that has none of them nothing is kept.
    let none = GraphFilter {
        namespace: Some("nobody".into()),
        ..GraphFilter::default()
    };
    let nothing = store.traffic(&none, &most(1)).await.expect("traffic");
    assert!(nothing.seen.is_empty());
}

/// A connection of a workload that no other record is of.
fn of_another(number: u64) -> AuditRecord {
    let mut record = record_of(&decision(), number.into());
    record.source.spiffe_id = Some(format!("spiffe://hanzo.ai/k8s/n/w{number}").into());
    record
}

#[tokio::test]
async fn names_that_come_with_each_text_are_asked_for_whether_most_hours_are_or_few() {
    let (_directory, store) = store().await;
    let mut records: Vec<AuditRecord> = (0..9000).map(of_another).collect();
    let mut late = of_another(9000);
    late.timestamp.0 += 20 * HOUR;
    records.push(late);
    keep(&store, &records).await;
    let few = GraphFilter {
        until: Some(Timestamp(decision_time() + HOUR)),
        ..GraphFilter::default()
    };
    for (filter, expected) in [(GraphFilter::default(), 9001), (few, 9000)] {
        let graph = store.graph(&filter).await.expect("graph");
        assert_eq!(graph.edges, walked(&records, &filter));
        let traffic = store.traffic(&filter, &Fold::nothing()).await.expect("traffic");
        let edges: Vec<Edge> = traffic.seen.into_iter().map(|seen| seen.edge).collect();
        assert_eq!(edges.len(), expected);
        assert_eq!(edges, graph.edges, "in the same order");
    }
}

#[tokio::test]
async fn a_text_of_what_is_no_connection_is_not_the_last_one() {
    let (_directory, store) = store().await;
    let raw_socket = |number| {
        let mut record = of_another(number);
        record.hook = Hook::Kernel(zt_common::event::Hook::Socket);
        record
    };
    let mut records: Vec<AuditRecord> = (0..9000).map(raw_socket).collect();
    records.push(of_another(9000));
    keep(&store, &records).await;
    let graph = store.graph(&GraphFilter::default()).await.expect("graph");
    assert_eq!(graph.edges, walked(&records[9000..], &GraphFilter::default()));
    assert_eq!(graph.edges.len(), 1);
}

#[tokio::test]
async fn what_cannot_be_read_ends_its_question_and_nothing_else() {
    let (_directory, store) = store().await;
    let records: Vec<AuditRecord> = (0..9000).map(of_another).collect();
    keep(&store, &records).await;
    // A name that there is not, in the second text.
    store
        .meddle("UPDATE shape SET source = -source WHERE id = 5000")
        .await;
    let filter = GraphFilter::default();
    // More often than there are connections to the file.
    for _ in 0..3 * connections::READERS {
        let graph = store.graph(&filter).await;
        let traffic = store.traffic(&filter, &Fold::nothing()).await;
        for failed in [graph.err(), traffic.err()] {
            let why = failed.expect("it cannot be read").to_string();
            assert!(why.contains("no name has the number -"), "{why}");
        }
    }
    store
        .meddle("UPDATE shape SET source = -source WHERE id = 5000")
        .await;
    let graph = store.graph(&filter).await.expect("graph");
    assert_eq!(graph.edges, walked(&records, &filter));
}

#[tokio::test]
async fn questions_that_are_given_up_half_way_leave_nothing_behind() {
    let (_directory, store) = store().await;
    let records: Vec<AuditRecord> = (0..9000).map(of_another).collect();
    keep(&store, &records).await;
    let (filter, fold) = (GraphFilter::default(), Fold::nothing());
    for milliseconds in 0..30 {
        let asked = store.traffic(&filter, &fold);
        // Some may be answered by then.
        let _ = tokio::time::timeout(Duration::from_millis(milliseconds), asked).await;
    }
    let traffic = store.traffic(&filter, &fold).await.expect("traffic");
    assert_eq!(traffic.seen.len(), 9000);
}
