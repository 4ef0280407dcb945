// SPDX-License-Identifier: Apache-2.0
//! What goes in comes out, once, in order, by every question.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Batch, Reader, Writer};
use zt_agent::audit::query::{Cursor, Edge, Filter, Graph, GraphFilter, PartyFilter};
use zt_agent::audit::record::{Entry, Kept, Kind, Outcome, Timestamp};
use zt_agent::spiffe_id::{Pattern, SpiffeId};
use zt_tests::entries::{Maker, spread};

use super::{batches, maker, ship, target, today, with_tables};

const HOUR: i64 = 3_600_000_000_000;

/// The order of every answer.
pub(super) fn newest_first(records: &mut [Kept]) {
    records.sort_by_key(|kept| std::cmp::Reverse((kept.entry.timestamp(), kept.entry.id())));
}

/// All pages of an answer.
pub(super) async fn all(reader: &Reader, filter: &Filter, limit: u32) -> Vec<Kept> {
    let (mut found, mut cursor): (Vec<Kept>, Option<Cursor>) = (Vec::new(), None);
    loop {
        let page = reader.query(filter, cursor, limit).await.expect("page");
        assert!(page.records.len() <= limit as usize);
        assert!(
            page.next.is_none() || page.records.len() == limit as usize,
            "a short page goes on"
        );
        found.extend(page.records);
        match page.next {
            Some(next) => cursor = Some(next),
            None => return found,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_in_comes_out_with_its_place_in_the_chain() {
    let server = with_tables().await;
    let mut records = ship(&server, &maker(today(), 1_000_001, 20), 12_000).await;
    let kinds: std::collections::BTreeSet<&str> =
        records.iter().map(|kept| kept.entry.kind().name()).collect();
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    newest_first(&mut records);
    let reader = Reader::new(target(&server, "engine"));
    assert_eq!(all(&reader, &Filter::default(), 1000).await, records);
}

#[tokio::test(flavor = "multi_thread")]
async fn shipped_twice_is_kept_and_counted_once() {
    let server = with_tables().await;
    let maker = maker(today(), HOUR / 1000, 20);
    let mut head = Head::new(Uuid::from_u128(1));
    let records = maker.kept(0..5000, &mut head);
    let batches = batches(head.writer, &records, 1000);
    // Two connections of a login that do not know of each other, and one that knows what it did.
    let (mut first, mut second) = (
        Writer::new(target(&server, "node")),
        Writer::new(target(&server, "node")),
    );
    for batch in &batches {
        let (one, two) = tokio::join!(first.ship(batch), second.ship(batch));
        assert_ne!(
            one.expect("shipped"),
            two.expect("shipped"),
            "one of the two is the first"
        );
        assert!(!first.ship(batch).await.expect("shipped"));
    }
    assert_eq!(
        server
            .number("SELECT count(*) FROM zt_audit.record")
            .expect("count"),
        5000
    );
    assert_eq!(
        server
            .number("SELECT sum(records) FROM zt_audit.bucket")
            .expect("count"),
        5000
    );
    let connections: u64 = records
        .iter()
        .map(|kept| kept.entry.decision().map_or(1, |record| record.count))
        .sum();
    assert_eq!(
        server
            .number("SELECT sum(connections) FROM zt_audit.bucket")
            .expect("count"),
        connections
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_kept_whole_or_not_at_all_and_the_writer_goes_on() {
    let server = with_tables().await;
    let mut records = maker(today(), 1000, 5).kept(0..10, &mut Head::new(Uuid::from_u128(1)));
    let Entry::Decision(bad) = &mut records[7].entry else {
        panic!("a decision")
    };
    bad.source.comm = Some("a\0b".into());
    let batch = Batch {
        writer: Uuid::from_u128(1),
        first_seq: 1,
        dropped: 0,
        records,
    };
    let mut writer = Writer::new(target(&server, "node"));
    let error = writer.ship(&batch).await.expect_err("refused");
    assert!(error.is_of_the_batch(), "{error}");
    assert_eq!(
        server
            .number("SELECT count(*) FROM zt_audit.record")
            .expect("count"),
        0
    );
    let (good, _) = batch.halves();
    assert!(writer.ship(&good).await.expect("shipped"));
    assert_eq!(
        server
            .number("SELECT count(*) FROM zt_audit.record")
            .expect("count"),
        5
    );
}

/// What a filter means, without a database.
pub(super) fn matches(filter: &Filter, kept: &Kept) -> bool {
    let entry = &kept.entry;
    let decision = entry.decision();
    let party = |asked: &Option<PartyFilter>, name: Option<&str>| match asked {
        None => true,
        Some(PartyFilter::Exact(text)) => name == Some(text),
        Some(PartyFilter::Pattern(pattern)) => name
            .and_then(|name| SpiffeId::parse(name).ok())
            .is_some_and(|id| pattern.matches(&id)),
    };
    let node = |asked: &str| match entry.change() {
        Some(change) => &*change.node == asked,
        None => decision.is_some_and(|record| {
            [&record.source.node, &record.destination.node]
                .iter()
                .any(|node| node.as_deref() == Some(asked))
        }),
    };
    let rule = |asked: &str| {
        let rule = decision.and_then(|record| record.policy_matched.as_deref());
        rule.is_some_and(|rule| {
            rule == asked || rule.strip_prefix(asked).is_some_and(|rest| rest.starts_with('/'))
        })
    };
    filter.kind.is_none_or(|kind| kind == entry.kind())
        && filter.since.is_none_or(|since| entry.timestamp() >= since)
        && filter.until.is_none_or(|until| entry.timestamp() < until)
        && filter
            .decision
            .is_none_or(|asked| decision.is_some_and(|record| record.decision == asked))
        && filter
            .enforced
            .is_none_or(|asked| decision.is_some_and(|record| record.enforced == asked))
        && party(&filter.source, decision.map(|record| record.source.name()))
        && party(
            &filter.destination,
            decision.map(|record| record.destination.name()),
        )
        && filter
            .port
            .is_none_or(|asked| decision.is_some_and(|record| record.destination.port == asked))
        && filter.policy.as_deref().is_none_or(rule)
        && filter.node.as_deref().is_none_or(node)
}

/// Some filter, the same for the same number.
pub(super) fn filter(number: u64, maker: &Maker, count: u64) -> Filter {
    let random = spread(number ^ 0x5eed);
    let one_in = |bit: u32, many: u64| (random >> bit).is_multiple_of(many);
    let time = |bit: u32| Timestamp(maker.start + maker.step * (spread(random >> bit) % count) as i64);
    let party = |bit: u32| match (random >> bit) % 8 {
        0 | 1 => Some(PartyFilter::Exact(
            maker.name((random >> (bit + 4)) % maker.parties),
        )),
        2 => Some(PartyFilter::Exact("world".to_owned())),
        3 => Some(PartyFilter::Exact("' OR 1=1 --\0".to_owned())),
        4 => Some(PartyFilter::Pattern(
            Pattern::parse("spiffe://hanzo.ai/hanzo-k8s/monitoring/*").unwrap(),
        )),
        _ => None,
    };
    let kinds = [
        Kind::PolicyChange,
        Kind::Decision,
        Kind::ModeChange,
        Kind::IdentityChange,
    ];
    Filter {
        kind: one_in(0, 8).then(|| kinds[((random >> 3) % 4) as usize]),
        since: one_in(5, 4).then(|| time(1)),
        until: one_in(7, 4).then(|| time(2)),
        decision: one_in(9, 3).then_some(if one_in(11, 2) {
            Outcome::Deny
        } else {
            Outcome::Allow
        }),
        enforced: one_in(13, 4).then_some(one_in(15, 2)),
        source: party(17),
        destination: party(25),
        port: one_in(33, 4).then_some([5432, 443, 1][((random >> 36) % 3) as usize]),
        policy: match (random >> 40) % 10 {
            0 => Some("policy_3".to_owned()),
            1 => Some("policy_3/rule-3".to_owned()),
            2 => Some("policy%".to_owned()),
            _ => None,
        },
        node: one_in(48, 5).then(|| format!("worker-{}", (random >> 52) % 10)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_question_is_answered_as_a_walk_through_all_records_would() {
    const COUNT: u64 = 20_000;
    let server = with_tables().await;
    // Over forty days, so that every window is needed, with gaps of hours.
    let maker = maker(today() - 40 * 24 * HOUR, 40 * 24 * HOUR / COUNT as i64, 12);
    let mut records = ship(&server, &maker, COUNT).await;
    newest_first(&mut records);
    let reader = Reader::new(target(&server, "engine"));
    let (mut asked, mut answered) = (0, 0);
    for number in 0..150 {
        let filter = filter(number, &maker, COUNT);
        let expected: Vec<Kept> = records
            .iter()
            .filter(|kept| matches(&filter, kept))
            .cloned()
            .collect();
        let limit = [7, 100, 1000][(number % 3) as usize]
            .max(u32::try_from(expected.len() / 20).unwrap())
            .min(1000);
        let found = all(&reader, &filter, limit).await;
        assert_eq!(found.len(), expected.len(), "{filter:?}");
        assert!(found == expected, "{filter:?}");
        asked += 1;
        answered += usize::from(!expected.is_empty());
    }
    assert!(
        answered > asked / 4,
        "{answered} of {asked} questions had answers"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_one_moment_and_a_cursor_between_them() {
    let server = with_tables().await;
    // All at the same time: only the id orders them.
    let mut records = ship(&server, &maker(today(), 0, 9), 3000).await;
    newest_first(&mut records);
    let reader = Reader::new(target(&server, "engine"));
    assert!(all(&reader, &Filter::default(), 7).await == records);
    let filter = Filter {
        decision: Some(Outcome::Deny),
        ..Filter::default()
    };
    let expected: Vec<Kept> = records
        .iter()
        .filter(|kept| matches(&filter, kept))
        .cloned()
        .collect();
    assert!(all(&reader, &filter, 7).await == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_stays_where_it_is_while_records_come() {
    let server = with_tables().await;
    let maker = maker(today(), 1_000_000, 9);
    let mut head = Head::new(Uuid::from_u128(7));
    let records = maker.kept(0..4000, &mut head);
    let all = batches(head.writer, &records, 1000);
    let mut writer = Writer::new(target(&server, "node"));
    for batch in &all[..2] {
        writer.ship(batch).await.expect("shipped");
    }
    let reader = Reader::new(target(&server, "engine"));
    let (mut seen, mut cursor) = (Vec::new(), None);
    for round in 0.. {
        let page = reader.query(&Filter::default(), cursor, 100).await.expect("page");
        seen.extend(page.records);
        if let Some(batch) = all.get(2 + round) {
            writer.ship(batch).await.expect("shipped");
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let mut expected = records[..2000].to_vec();
    newest_first(&mut expected);
    assert!(seen == expected);
}

/// Looks that a graph counts these, and nothing else.
pub(super) fn is_of(graph: &Graph, records: &[Kept]) {
    let mut expected: BTreeMap<(String, String, u16), HashMap<&str, u64>> = BTreeMap::new();
    for record in records.iter().filter_map(|kept| kept.entry.decision()) {
        let edge = (
            record.source.name().to_owned(),
            record.destination.name().to_owned(),
            record.destination.port,
        );
        let what = match (record.decision, record.enforced) {
            (Outcome::Allow, _) => "allowed",
            (Outcome::Deny, true) => "denied",
            (Outcome::Deny, false) => "would_deny",
        };
        *expected.entry(edge).or_default().entry(what).or_default() += record.count;
    }
    assert_eq!(graph.edges.len(), expected.len());
    for edge in &graph.edges {
        let counts = &expected[&(edge.source.to_string(), edge.destination.to_string(), edge.port)];
        for (what, counted) in [
            ("allowed", edge.allowed),
            ("denied", edge.denied),
            ("would_deny", edge.would_deny),
        ] {
            assert_eq!(counted, counts.get(what).copied().unwrap_or(0), "{edge:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_graph_counts_what_was_recorded() {
    let server = with_tables().await;
    let records = ship(&server, &maker(today(), HOUR / 500, 12), 6000).await;
    let reader = Reader::new(target(&server, "engine"));
    let graph = reader.graph(&GraphFilter::default()).await.expect("graph");
    is_of(&graph, &records);
    let of_party = |edge: &Edge| {
        NAMESPACES.map(|namespace| in_namespace(namespace).takes(&edge.source, &edge.destination))
    };
    let known: Vec<[bool; 4]> = graph.edges.iter().map(of_party).collect();
    for (at, namespace) in NAMESPACES.into_iter().enumerate() {
        let found = reader.graph(&in_namespace(namespace)).await.expect("graph");
        let edges = graph.edges.iter().zip(&known).filter(|(_, of)| of[at]);
        let edges: Vec<&Edge> = edges.map(|(edge, _)| edge).collect();
        assert_eq!(found.edges.iter().collect::<Vec<_>>(), edges, "{namespace}");
    }
    // Some and not all are of one.
    assert!((1..known.len()).contains(&known.iter().filter(|of| of[0]).count()));
}

const NAMESPACES: [&str; 4] = ["monitoring", "nowhere", "\0", ""];

fn in_namespace(namespace: &str) -> GraphFilter {
    GraphFilter {
        namespace: Some(namespace.to_owned()),
        ..GraphFilter::default()
    }
}
