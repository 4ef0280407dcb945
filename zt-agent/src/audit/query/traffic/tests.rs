// SPDX-License-Identifier: Apache-2.0
//! What is added up, what is told apart, and what is too much.

use std::net::Ipv4Addr;

use super::*;
use crate::audit::query::{Classes, MAX_TOLD, Span};
use crate::audit::record::Timestamp;

fn counted(reason: &str, denied: bool, count: u64, times: (i64, i64)) -> Counted {
    Counted {
        connections: Connections {
            source: "spiffe://hanzo.ai/a".into(),
            destination: "spiffe://hanzo.ai/b".into(),
            protocol: 6,
            port: 80,
            corrects: false,
            denied,
            enforced: true,
            count,
            first_seen: Timestamp(times.0),
            last_seen: Timestamp(times.1),
        },
        reason: reason.to_owned(),
        source_address: None,
        destination_address: None,
    }
}

/// The last octet of an address decides.
#[derive(Debug)]
struct OddAndEven;

impl Classes for OddAndEven {
    fn class(&self, address: IpAddr) -> u64 {
        match address {
            IpAddr::V4(address) => u64::from(address.to_bits() % 2),
            IpAddr::V6(_) => 2,
        }
    }
}

fn odd_and_even() -> Fold {
    Fold::by(Arc::new(OddAndEven))
}

/// Connections from the world.
fn from_world(number: u32, denied: bool) -> Counted {
    let mut one = counted(if denied { "no_rule" } else { "rule" }, denied, 2, (5, 9));
    one.connections.source = "world".into();
    one.source_address = Some(Ipv4Addr::from_bits(number).into());
    one
}

/// Connections to the world.
fn to_world(source: &str, number: u32, denied: bool) -> Counted {
    let mut one = counted(if denied { "no_rule" } else { "rule" }, denied, 1, (5, 9));
    one.connections.source = source.into();
    one.connections.destination = "world".into();
    one.destination_address = Some(Ipv4Addr::from_bits(number).into());
    one
}

fn added_up(fold: &Fold, all: impl IntoIterator<Item = Counted>) -> Vec<Seen> {
    let filter = GraphFilter::default();
    let mut adding = AddingSeen::new(&filter, fold);
    for one in all {
        assert_eq!(adding.take(&one), Ok(()));
    }
    adding.done().seen
}

#[test]
fn each_verdict_has_its_times_and_what_policy_did_not_decide_is_counted_apart() {
    let all = GraphFilter::default();
    let fold = Fold::nothing();
    let mut adding = AddingSeen::new(&all, &fold);
    for one in [
        counted("rule", false, 1, (1, 1)),
        counted("no_rule", true, 500, (2, 900)),
        counted("proof_required", true, 3, (950, 950)),
        counted("tag_invalid", true, 7, (999, 999)),
    ] {
        assert_eq!(adding.take(&one), Ok(()));
    }
    let found = adding.done();
    assert_eq!(found.left_out, BTreeMap::from([("tag_invalid".to_owned(), 7)]));
    let [seen] = found.seen.as_slice() else {
        panic!("one edge: {:?}", found.seen)
    };
    assert_eq!((seen.edge.allowed, seen.edge.denied, seen.unproven), (1, 503, 3));
    let span = |first, last| {
        Some(Span {
            first: Timestamp(first),
            last: Timestamp(last),
        })
    };
    assert_eq!(
        (seen.spans.allowed, seen.spans.denied),
        (span(1, 1), span(2, 950))
    );
    assert_eq!(seen.spans.would_deny, None);
}

#[test]
fn addresses_of_one_class_are_one_and_each_is_counted_once() {
    // Each comes twice, as it does where a rule and no rule decided about it.
    let all = (0..100).flat_map(|number| [from_world(number, false), from_world(number, true)]);
    let seen = added_up(&odd_and_even(), all);
    let [even, odd] = seen.as_slice() else {
        panic!("two classes: {seen:?}")
    };
    for (one, first) in [(even, 0), (odd, 1)] {
        assert_eq!((one.edge.allowed, one.edge.denied), (100, 100));
        let addresses = &one.source_addresses;
        assert_eq!((addresses.told().len(), addresses.count()), (MAX_TOLD, 50));
        assert_eq!(addresses.first(), Some(Ipv4Addr::from_bits(first).into()));
        assert!(one.destination_addresses.is_empty());
    }
    let apart = added_up(&Fold::nothing(), (0..100).map(|number| from_world(number, false)));
    assert_eq!(apart.len(), 100);
    assert!(apart.iter().all(|one| one.source_addresses.count() == 1));
}

#[test]
fn more_classes_than_are_asked_for_are_too_much_and_so_are_more_addresses() {
    let filter = GraphFilter::default();
    let fold = odd_and_even().at_most(2, 10);
    let mut adding = AddingSeen::new(&filter, &fold);
    for number in 0..10 {
        assert_eq!(adding.take(&from_world(number, false)), Ok(()));
    }
    let named = counted("rule", false, 1, (1, 1));
    assert_eq!(
        adding.take(&from_world(11, false)),
        Err(TooMuch::Addresses(10)),
        "of few classes"
    );
    assert_eq!(adding.take(&named), Err(TooMuch::Seen(2)), "a third kind");
    // What is not asked for is not counted.
    let none = GraphFilter {
        namespace: Some("none".to_owned()),
        ..GraphFilter::default()
    };
    let mut adding = AddingSeen::new(&none, &fold);
    for number in 0..30 {
        assert_eq!(adding.take(&from_world(number, false)), Ok(()));
    }
}

#[test]
fn few_addresses_that_a_source_reached_are_one_each_and_many_are_one() {
    let fold = odd_and_even().but_for_few(4, false);
    let ends = |seen: &[Seen]| -> Vec<(String, u64, u64, u64)> {
        let of = |one: &Seen| {
            let edge = &one.edge;
            let count = one.destination_addresses.count();
            (edge.source.to_string(), count, edge.allowed, edge.denied)
        };
        let mut ends: Vec<_> = seen.iter().map(of).collect();
        ends.sort();
        ends
    };
    let few = |source: &'static str| (0..4).map(move |number| to_world(source, 2 * number, false));
    let many = (0..5).map(|number| to_world("many", 2 * number, false));
    // What was refused does not make many of few.
    let refused = (0..50).map(|number| to_world("few", 2 * number, true));
    let again = (0..5).map(|number| to_world("many", 2 * number, false));
    let all: Vec<Counted> = few("few").chain(many).chain(refused).chain(again).collect();
    let mut expected = vec![("few".to_owned(), 1, 1, 0); 4];
    expected.push(("few".to_owned(), 50, 0, 50));
    expected.push(("many".to_owned(), 5, 10, 0));
    assert_eq!(ends(&added_up(&fold, all.clone())), expected);
    assert_eq!(ends(&added_up(&fold, all.into_iter().rev())), expected);
    // Unless what was refused is to be allowed as well.
    let fold = odd_and_even().but_for_few(4, true);
    let all = few("few").chain((0..50).map(|number| to_world("few", 2 * number, true)));
    assert_eq!(ends(&added_up(&fold, all)), [("few".to_owned(), 50, 4, 50)]);
}

#[test]
fn there_are_too_many_only_when_those_that_are_one_by_now_are_put_together() {
    let filter = GraphFilter::default();
    let fold = odd_and_even().but_for_few(4, false).at_most(10, 1000);
    let mut adding = AddingSeen::new(&filter, &fold);
    for source in ["one", "another", "a third", "a fourth", "a fifth", "a sixth"] {
        for number in 0..5 {
            assert_eq!(adding.take(&to_world(source, 2 * number, false)), Ok(()));
        }
    }
    // Few of one more are one each.
    for number in 0..4 {
        assert_eq!(adding.take(&to_world("a seventh", 2 * number, false)), Ok(()));
    }
    assert_eq!(
        adding.take(&to_world("an eighth", 0, false)),
        Err(TooMuch::Seen(10))
    );
}

#[test]
fn words_that_no_agent_writes_are_one_reason() {
    let filter = GraphFilter::default();
    let fold = Fold::nothing();
    let mut adding = AddingSeen::new(&filter, &fold);
    for number in 0..1000 {
        let reason = format!("word-{number}");
        assert_eq!(adding.take(&counted(&reason, true, 2, (1, 1))), Ok(()));
    }
    let left_out = adding.done().left_out;
    assert_eq!(
        (left_out.len(), left_out[OTHER]),
        (MAX_REASONS + 1, 2 * (1000 - MAX_REASONS as u64))
    );
}

#[test]
fn what_was_seen_is_in_order_in_whatever_order_it_came_and_however_often() {
    let of = |source: &str, port: u16, number: u32| {
        let mut one = to_world(source, number, false);
        one.connections.port = port;
        one
    };
    let all = [
        of("b", 80, 1),
        of("a", 443, 2),
        of("a", 80, 9),
        of("b", 80, 0),
        of("a", 80, 3),
    ];
    let seen = added_up(&Fold::nothing(), all.clone());
    let ends: Vec<_> = seen
        .iter()
        .map(|one| {
            let address = one.destination_addresses.first().expect("an address");
            (&*one.edge.source, one.edge.port, address.to_string())
        })
        .collect();
    let expected = [
        ("a", 80_u16, "0.0.0.3"),
        ("a", 80, "0.0.0.9"),
        ("a", 443, "0.0.0.2"),
        ("b", 80, "0.0.0.0"),
        ("b", 80, "0.0.0.1"),
    ];
    let expected = expected.map(|(source, port, address)| (source, port, address.to_owned()));
    assert_eq!(ends, expected);
    assert_eq!(added_up(&Fold::nothing(), all.clone().into_iter().rev()), seen);
    let twice = added_up(&Fold::nothing(), all.iter().chain(&all).cloned());
    assert_eq!(twice.len(), 5);
    assert!(twice.iter().all(|one| one.edge.allowed == 2));
}
