// SPDX-License-Identifier: Apache-2.0
//! Recorded connections are the same from both stores, and those of the graph.

use std::collections::BTreeMap;

use zt_agent::audit::postgres::Reader;
use zt_agent::audit::query::{GraphFilter, Seen};
use zt_agent::audit::record::{Entry, Timestamp};
use zt_agent::audit::sqlite::{self, Settings, Store};
use zt_agent::audit::store::Sink as _;

use super::{maker, ship, target, today, with_tables};

const HOUR: i64 = 3_600_000_000_000;

/// The connections between two parties, however many addresses they have.
fn by_ends(seen: &[Seen]) -> BTreeMap<(String, String, u16), [u64; 3]> {
    let mut ends: BTreeMap<_, [u64; 3]> = BTreeMap::new();
    for Seen { edge, .. } in seen {
        let key = (edge.source.to_string(), edge.destination.to_string(), edge.port);
        let sums = ends.entry(key).or_default();
        for (sum, count) in sums.iter_mut().zip([edge.allowed, edge.denied, edge.would_deny]) {
            *sum += count;
        }
    }
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_connections_are_the_same_from_both_stores() {
    let server = with_tables().await;
    // Three days, so that shapes are in several of them.
    let start = today() - 48 * HOUR;
    let records = ship(&server, &maker(start, 60 * HOUR / 5000, 12), 5000).await;
    let directory = tempfile::tempdir().unwrap();
    let dsn = format!("sqlite://{}", directory.path().join("audit.db").display());
    let store = Store::open(Settings {
        dsn: dsn.clone(),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: None,
        sync: sqlite::Durability::default(),
    });
    let store = store.await.unwrap();
    let entries: Vec<Entry> = records.iter().map(|kept| kept.entry.clone()).collect();
    store.append(&entries, None).await.unwrap();
    store.close().await.unwrap();

    let reader = Reader::new(target(&server, "engine"));
    let at = |hours: i64| Some(Timestamp(start + hours * HOUR));
    let namespace = Some("monitoring".to_owned());
    let filters = [
        (None, None, None),
        (at(5), at(40), None),
        (at(30), None, namespace.clone()),
        (None, at(1), namespace),
        (at(100), None, None),
    ];
    for (since, until, namespace) in filters {
        let filter = GraphFilter {
            since,
            until,
            namespace,
        };
        let from_server = reader.traffic(&filter).await.unwrap();
        let from_file = sqlite::Reader::open(&dsn)
            .await
            .unwrap()
            .traffic(&filter)
            .await
            .unwrap();
        assert_eq!(from_server, from_file, "{filter:?}");
        let graph = reader.graph(&filter).await.unwrap();
        let edges: BTreeMap<_, _> = graph
            .edges
            .iter()
            .map(|edge| {
                let key = (edge.source.to_string(), edge.destination.to_string(), edge.port);
                (key, [edge.allowed, edge.denied, edge.would_deny])
            })
            .collect();
        assert_eq!(by_ends(&from_server.seen), edges, "{filter:?}");
        let addressed = from_server
            .seen
            .iter()
            .filter(|seen| &*seen.edge.destination == "world");
        assert!(
            addressed
                .into_iter()
                .all(|seen| seen.destination_address.is_some())
        );
    }
    let all = reader.traffic(&GraphFilter::default()).await.unwrap();
    assert!(!all.seen.is_empty());
}
