// SPDX-License-Identifier: Apache-2.0
//! Recorded connections are the same from both stores, and those of the graph.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use uuid::Uuid;
use zt_agent::audit::AuditRecord;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{PgError, Reader};
use zt_agent::audit::query::{Fold, GraphFilter, MAX_TOLD, Seen, TooMuch};
use zt_agent::audit::record::{Entry, Timestamp, party};
use zt_agent::audit::sqlite;
use zt_agent::policy::{self, PolicySet, Settings};
use zt_agent::traffic::{to_judge, to_recommend};
use zt_tests::entries::linked;
use zt_tests::{Policy, TCP};

use super::{file, maker, ship, ship_kept, target, today, with_tables};

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
    let (_directory, dsn) = file(records.iter().map(|kept| &kept.entry)).await;

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
        let from_server = reader.traffic(&filter, &Fold::nothing()).await.unwrap();
        let mut from_file = sqlite::Reader::open(&dsn).await.unwrap();
        let all = from_file.traffic(&filter, &Fold::nothing()).await.unwrap();
        assert_eq!(from_server, all, "{filter:?}");
        for fold in folds() {
            let folded = reader.traffic(&filter, &fold).await.unwrap();
            let all = from_file.traffic(&filter, &fold).await.unwrap();
            assert_eq!(folded, all, "{filter:?} {fold:?}");
            assert_eq!(by_ends(&folded.seen), by_ends(&from_server.seen), "{filter:?}");
        }
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
                .all(|seen| seen.destination_addresses.count() == 1)
        );
    }
    let all = reader.traffic(&GraphFilter::default(), &Fold::nothing()).await;
    assert!(!all.unwrap().seen.is_empty());
}

/// How a candidate has addresses read that names networks, and how a recommendation does.
fn folds() -> [Fold; 2] {
    let policy = Policy::new("networks")
        .allow("a", "203.0.113.0/24", TCP, "443")
        .allow("0.0.0.0/1", "a", TCP, "443");
    let document = policy::Document {
        file: "networks.yaml".to_owned(),
        text: policy.text(),
    };
    let settings = Settings::default();
    let set: PolicySet = policy::parse(&[document], &settings).expect("valid");
    [to_judge(&set, &settings), to_recommend(&settings, false)]
}

/// Addresses that call an ingress: more than an answer over the API has connections.
const CLIENTS: u32 = 20_500;

/// Records of an ingress: one of each client.
fn called() -> Vec<Entry> {
    let maker = maker(today(), 1_000_000, 5);
    let like = (0..1000).find_map(|number| match maker.single(number) {
        Entry::Decision(record) if record.destination.spiffe_id.is_some() => Some(record),
        _ => None,
    });
    let like = like.expect("most entries are decisions between workloads");
    let called = |number: u32| {
        let mut record: AuditRecord = like.clone();
        record.id = maker.id(number.into());
        record.timestamp = Timestamp(maker.start + maker.step * i64::from(number));
        (record.source.spiffe_id, record.source.entity) = party(Arc::from("world"));
        record.source.address = Some(IpAddr::from(Ipv4Addr::from_bits(0xcb00_0000 + number)));
        Entry::Decision(record)
    };
    (0..CLIENTS).map(called).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_calls_from_the_world_is_one_in_both_stores() {
    let server = with_tables().await;
    let mut head = Head::new(Uuid::from_u128(9));
    let records = linked(called(), &mut head);
    ship_kept(&server, head.writer, &records).await;
    let (_directory, dsn) = file(records.iter().map(|kept| &kept.entry)).await;
    let reader = Reader::new(target(&server, "engine"));
    let mut from_file = sqlite::Reader::open(&dsn).await.unwrap();
    let all = GraphFilter::default();
    let fold = to_judge(&PolicySet::default(), &Settings::default());
    // As an answer over the API is bounded, and by their number.
    let fold = fold.at_most(1, CLIENTS as usize);
    for traffic in [
        reader.traffic(&all, &fold).await.expect("one"),
        from_file.traffic(&all, &fold).await.expect("one"),
    ] {
        let [one] = traffic.seen.as_slice() else {
            panic!("{} connections", traffic.seen.len())
        };
        let addresses = &one.source_addresses;
        assert_eq!(
            (addresses.count(), addresses.told().len()),
            (u64::from(CLIENTS), MAX_TOLD)
        );
    }
    let fewer = fold.at_most(1, CLIENTS as usize - 1);
    let refused = reader.traffic(&all, &fewer).await;
    assert!(
        matches!(refused, Err(PgError::TooMuch(TooMuch::Addresses(_)))),
        "{refused:?}"
    );
}
