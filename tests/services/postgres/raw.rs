// SPDX-License-Identifier: Apache-2.0
//! Sockets that take the right to raw sockets are counted apart from connections, in both stores alike.

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::Reader;
use zt_agent::audit::query::{Fold, GraphFilter, RawSeen};
use zt_agent::audit::record::{Destination, Entry, Hook, Outcome, Protocol, Reason, Timestamp};
use zt_agent::audit::sqlite;
use zt_tests::entries::linked;

use super::{file, maker, ship_kept, target, today, with_tables};

const HOUR: i64 = 3_600_000_000_000;
const KINDS: [(u8, &str); 3] = [(1, "raw_socket"), (132, "protocol"), (255, "mptcp")];

/// Every other decision as one on a socket.
fn socket(entry: Entry, number: u64) -> Entry {
    let mut record = match entry {
        Entry::Decision(record) if number.is_multiple_of(2) => record,
        other => return other,
    };
    let (protocol, reason) = KINDS[(number / 2 % 3) as usize];
    record.destination = Destination {
        entity: Some("raw-sockets".into()),
        ..Destination::default()
    };
    record.hook = Hook::from_name("socket").unwrap();
    record.protocol = Protocol(protocol);
    if record.decision == Outcome::Deny {
        record.reason = Reason::from_name(reason).unwrap();
    }
    Entry::Decision(record)
}

fn is_socket(entry: &Entry) -> bool {
    matches!(entry, Entry::Decision(record) if record.destination.name() == "raw-sockets")
}

fn count(seen: &[RawSeen]) -> u64 {
    let of = |seen: &RawSeen| seen.edge.allowed + seen.edge.denied + seen.edge.would_deny;
    seen.iter().map(of).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_sockets_are_the_same_from_both_stores() {
    let server = with_tables().await;
    // Three days, so that shapes are in several of them.
    let start = today() - 48 * HOUR;
    let maker = maker(start, HOUR / 10, 6);
    let entries: Vec<Entry> = (0..550)
        .map(|number| socket(maker.entry(number), number))
        .collect();
    let mut head = Head::new(Uuid::from_u128(7));
    let records = linked(entries.iter().cloned(), &mut head);
    ship_kept(&server, head.writer, &records).await;
    let (_directory, dsn) = file(entries.iter()).await;

    let reader = Reader::new(target(&server, "engine"));
    let at = |hours: i64| Some(Timestamp(start + hours * HOUR));
    let filters = [
        (None, None, None),
        (at(5), at(30), None),
        (at(30), None, Some("monitoring".to_owned())),
        (at(100), None, None),
    ];
    let mut counts = Vec::new();
    for (since, until, namespace) in filters {
        let filter = GraphFilter {
            since,
            until,
            namespace,
        };
        let fold = Fold::nothing();
        let from_server = reader.traffic(&filter, &fold).await.unwrap();
        let mut file = sqlite::Reader::open(&dsn).await.unwrap();
        let from_file = file.traffic(&filter, &fold).await.unwrap();
        assert_eq!(from_server, from_file, "{filter:?}");
        let connections = &from_server.seen;
        assert!(
            connections
                .iter()
                .all(|seen| &*seen.edge.destination != "raw-sockets")
        );
        assert!(
            from_server
                .raw
                .iter()
                .all(|seen| !seen.multipath || seen.edge.protocol.0 == 255)
        );
        counts.push(count(&from_server.raw));
    }
    let all: u64 = entries
        .iter()
        .filter(|entry| is_socket(entry))
        .filter_map(|entry| entry.decision().map(|record| record.count))
        .sum();
    let [whole, part, less, none] = counts.as_slice() else {
        panic!("four: {counts:?}")
    };
    assert_eq!((*whole, *none), (all, 0));
    assert!(*part < all && *less < *part && *less > 0, "{counts:?}");
    let raw = reader
        .traffic(&GraphFilter::default(), &Fold::nothing())
        .await
        .unwrap()
        .raw;
    assert!(raw.iter().any(|seen| seen.multipath), "{raw:?}");
    reader.close().await;
}
