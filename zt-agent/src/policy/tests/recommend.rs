// SPDX-License-Identifier: Apache-2.0
//! What is recommended allows what was seen, and has nothing in it that is not needed for that.

mod edges;
mod judged;
mod parts;

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

use super::{document, id, set};
use crate::policy::{
    AllowTable, Counted, MAX_ADDRESSES, Moment, PolicySet, SeenFlow, SeenParty, Settings, Undecided, Wishes,
    compile, recommend, unused,
};
use crate::spiffe_id::Pattern;

/// Names as records have them, with the address of those that are known by it; it is lost of the last alone.
const PARTIES: [(&str, Option<&str>); 12] = [
    ("spiffe://hanzo.ai/k8s/x/a", None),
    ("spiffe://hanzo.ai/k8s/x/b", None),
    ("spiffe://hanzo.ai/k8s/y/a", None),
    ("spiffe://hanzo.ai/k8s/y/b", None),
    ("host", None),
    ("remote-node", None),
    ("unknown", Some("100.64.0.1")),
    ("world", Some("192.0.2.7")),
    ("world", Some("10.9.9.9")),
    ("cidr:10.0.0.0/8", Some("10.1.2.3")),
    ("cidr:10.1.0.0/16", Some("10.1.9.9")),
    ("world", None),
];

fn flow(
    source: (&str, Option<&str>),
    destination: (&str, Option<&str>),
    port: u16,
    protocol: u8,
) -> SeenFlow {
    let address = |text: Option<&str>| text.map(|text| text.parse::<IpAddr>().expect("a literal address"));
    SeenFlow::new(
        (source.0, address(source.1)),
        (destination.0, address(destination.1)),
        port,
        protocol,
    )
    .expect("a flow")
}

fn on_day(day: i64) -> Moment {
    Moment {
        at: day,
        text: format!("2026-01-0{day}T00:00:00Z"),
    }
}

fn seen() -> impl Strategy<Value = Vec<Counted>> {
    // Every address is known in half of the cases: where one is lost, no other of the world is written by itself.
    let parties = select(vec![PARTIES.len() - 1, PARTIES.len()]);
    parties.prop_flat_map(|parties| {
        let one = (
            select(PARTIES[..parties].to_vec()),
            select(PARTIES[..parties].to_vec()),
            select(vec![80_u16, 81, 82, 5432]),
            select(vec![6_u8, 17]),
            1_u64..3,
        );
        let one = one.prop_map(|(source, destination, port, protocol, count)| Counted {
            flow: flow(source, destination, port, protocol),
            service: None,
            count,
            last_seen: on_day(count.cast_signed()),
        });
        proptest::collection::vec(one, 0..24)
    })
}

fn wishes(patterns: &[&str]) -> Wishes {
    Wishes {
        name: "made".to_owned(),
        patterns: patterns
            .iter()
            .map(|text| Pattern::parse(text).expect("a literal pattern"))
            .collect(),
    }
}

fn table(set: &PolicySet, seen: &[Counted]) -> AllowTable {
    let workloads: BTreeSet<_> = seen
        .iter()
        .flat_map(|one| one.flow.workloads())
        .cloned()
        .collect();
    compile(set, &workloads, &Settings::default(), 1).expect("it fits")
}

/// A flow with an address in the world, which no policy here names, for each that was lost.
fn somewhere(flow: &SeenFlow) -> SeenFlow {
    let world = |address: Option<IpAddr>| SeenParty::new("world", address).expect("a name");
    let address = "203.0.113.1".parse().expect("a literal address");
    let mut flow = flow.clone();
    for party in [&mut flow.source, &mut flow.destination] {
        if *party == world(None) {
            *party = world(Some(address));
        }
    }
    flow
}

/// What is not allowed; where an address was lost, at an address that it may have been.
fn denied(set: &PolicySet, seen: &[Counted]) -> Vec<SeenFlow> {
    let table = table(set, seen);
    let refused = |one: &&Counted| {
        let decision = one.flow.judge(&table);
        let decision = decision.or_else(|_| somewhere(&one.flow).judge(&table));
        !decision.expect("can be judged").allowed
    };
    seen.iter().filter(refused).map(|one| one.flow.clone()).collect()
}

/// Whether a part of a document, or what it is a part of, is about the world.
fn is_about_the_world(whole: &Value, part: &str) -> bool {
    let (target, _) = part.split_once("/ports/").unwrap_or((part, ""));
    let (rule, _) = part.split_once("/to/").unwrap_or((part, ""));
    let from = format!("{rule}/from");
    [target, from.as_str()].iter().any(|place| {
        let value = whole.pointer(place).expect("a part");
        value.to_string().contains("world")
    })
}

/// A document without each of its rules, of the targets of one, and of the ports of a target; what is missing, with the rest.
fn smaller(whole: &Value) -> Vec<(String, Value)> {
    let length = |place: &str| whole.pointer(place).and_then(Value::as_array).map_or(0, Vec::len);
    let mut smaller = Vec::new();
    // Without its last part a list would be missing, and mean everything or be refused.
    let mut without_each = |place: &str, fewest: usize| {
        for part in (0..length(place)).filter(|_| length(place) >= fewest) {
            let mut document = whole.clone();
            let list = document.pointer_mut(place).and_then(Value::as_array_mut);
            list.expect("a list").remove(part);
            smaller.push((format!("{place}/{part}"), document));
        }
    };
    without_each("/spec/rules", 1);
    for rule in 0..length("/spec/rules") {
        let targets = format!("/spec/rules/{rule}/to");
        without_each(&targets, 2);
        for target in 0..length(&targets) {
            without_each(&format!("{targets}/{target}/ports"), 2);
        }
    }
    smaller
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn all_that_was_seen_is_allowed_and_all_of_it_is_needed(
        seen in seen(),
        patterns in proptest::sample::subsequence(
            vec!["spiffe://hanzo.ai/k8s/x/*", "spiffe://hanzo.ai/k8s/*/a", "*"], 0..=3
        ),
    ) {
        let made = recommend(&seen, &[], &wishes(&patterns), &Settings::default()).expect("a policy");
        let policy = set(&[document("made.yaml", &made.text)]);
        let table = table(&policy, &seen);
        let flows = || seen.iter().map(|one| &one.flow);
        let undecided: Vec<&SeenFlow> = flows().filter(|flow| flow.judge(&table).is_err()).collect();
        let unsaid: Vec<&SeenFlow> = made.unsaid.iter().map(|(flow, _)| flow).collect();
        prop_assert_eq!(unsaid, undecided, "{}", made.text);
        prop_assert_eq!(denied(&policy, &seen), [], "{}", made.text);
        let rules = policy.policies()[0].rules.len();
        prop_assert_eq!(made.rules, rules);
        let whole = policy.policies()[0].document();
        let lost = flows().any(|flow| somewhere(flow) != *flow);
        for (what, smaller) in smaller(&whole) {
            // It may be there for what could not be judged.
            if lost && is_about_the_world(&whole, &what) {
                continue;
            }
            let without = set(&[document("without.yaml", &smaller.to_string())]);
            prop_assert!(!denied(&without, &seen).is_empty(), "{} of\n{}", what, made.text);
        }
        // What it says was all used.
        let known: Vec<SeenFlow> = flows().map(somewhere).collect();
        prop_assert_eq!(unused(&policy, &table, &known, None), []);
    }
}

#[test]
fn what_is_made_reads_as_a_person_would_write_it() {
    let [a, b] = [PARTIES[0], PARTIES[1]];
    let counted = |flow, count, day| Counted {
        flow,
        service: None,
        count,
        last_seen: on_day(day),
    };
    let seen = [
        counted(flow(a, b, 8002, 6), 1, 1),
        counted(flow(a, b, 8001, 6), 2, 3),
        counted(flow(a, b, 53, 17), 7, 2),
        counted(flow(a, b, 443, 6), 1, 1),
        counted(flow(a, a, 1, 6), 9, 9),
        counted(flow(PARTIES[4], a, 1, 6), 9, 9),
        counted(flow(PARTIES[6], a, 1, 6), 1, 4),
    ];
    let made = recommend(&seen, &[], &wishes(&[]), &Settings::default()).expect("a policy");
    assert_eq!(
        made.text,
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata:\n  name: made\nspec:\n  rules:\n    \
         - from: {spiffe: \"spiffe://hanzo.ai/k8s/x/a\"}\n      to:\n        \
         # 443: 1 connection, last 2026-01-01T00:00:00Z\n        \
         # 8001: 2 connections, last 2026-01-03T00:00:00Z\n        \
         # 8002: 1 connection, last 2026-01-01T00:00:00Z\n        \
         - spiffe: \"spiffe://hanzo.ai/k8s/x/b\"\n          ports: [443, \"8001-8002\"]\n        \
         # 53: 7 connections, last 2026-01-02T00:00:00Z\n        \
         - spiffe: \"spiffe://hanzo.ai/k8s/x/b\"\n          ports: [53]\n          protocol: UDP\n    \
         # Careful: these have no identity. Give them one, rather than let in whoever has none.\n    \
         - from: {entity: unknown}\n      to:\n        \
         # 1: 1 connection, last 2026-01-04T00:00:00Z\n        \
         - spiffe: \"spiffe://hanzo.ai/k8s/x/a\"\n          ports: [1]\n  defaultAction: DENY\n"
    );
    let nothing = recommend(&seen[4..6], &[], &wishes(&[]), &Settings::default()).expect("a policy");
    assert_eq!((nothing.rules, nothing.text.contains("rules: []")), (0, true));
    assert!(
        set(&[document("p.yaml", &nothing.text)]).policies()[0]
            .rules
            .is_empty()
    );
}

#[test]
fn what_another_target_of_the_rule_allows_is_told_of_there() {
    let counted = |destination, port, count, day| Counted {
        flow: flow(PARTIES[0], destination, port, 6),
        service: None,
        count,
        last_seen: on_day(day),
    };
    let [wide, narrow] = [PARTIES[9], PARTIES[10]];
    let seen = [
        counted(wide, 80, 1, 1),
        counted(wide, 81, 1, 1),
        counted(narrow, 80, 2, 3),
        counted(("world", Some("10.9.9.9")), 81, 4, 2),
    ];
    let to = |text: &str| {
        let (_, to) = text.split_once("      to:\n").expect("targets");
        let (to, _) = to.split_once("  defaultAction").expect("an end");
        to.to_owned()
    };
    let made = recommend(&seen, &[], &wishes(&[]), &Settings::default()).expect("a policy");
    assert_eq!(
        to(&made.text),
        "        # 80: 1 connection, last 2026-01-01T00:00:00Z\n        \
         # 80 to cidr:10.1.0.0/16: 2 connections, last 2026-01-03T00:00:00Z\n        \
         # 81: 1 connection, last 2026-01-01T00:00:00Z\n        \
         # 81 to world: 4 connections, last 2026-01-02T00:00:00Z\n        \
         - cidr: \"10.0.0.0/8\"\n          ports: [\"80-81\"]\n"
    );
    let more = [seen.to_vec(), vec![counted(narrow, 82, 1, 1)]].concat();
    let made = recommend(&more, &[], &wishes(&[]), &Settings::default()).expect("a policy");
    assert_eq!(
        to(&made.text),
        "        # 81: 1 connection, last 2026-01-01T00:00:00Z\n        \
         # 81 to world: 4 connections, last 2026-01-02T00:00:00Z\n        \
         - cidr: \"10.0.0.0/8\"\n          ports: [81]\n        \
         # 80: 2 connections, last 2026-01-03T00:00:00Z\n        \
         # 80 to cidr:10.0.0.0/8: 1 connection, last 2026-01-01T00:00:00Z\n        \
         # 82: 1 connection, last 2026-01-01T00:00:00Z\n        \
         - cidr: \"10.1.0.0/16\"\n          ports: [80, 82]\n"
    );
}

#[test]
fn what_cannot_be_judged_keeps_its_target() {
    let counted = |destination, port| Counted {
        flow: flow(PARTIES[0], (destination, None), port, 6),
        service: None,
        count: 1,
        last_seen: on_day(1),
    };
    let seen = [
        counted("cidr:10.0.0.0/8", 80),
        counted("world", 80),
        counted("world", 443),
    ];
    let made = recommend(&seen, &[], &wishes(&[]), &Settings::default()).expect("a policy");
    // The network is in the world, and without it nothing is in doubt.
    assert!(!made.text.contains("- cidr"), "{}", made.text);
    assert!(
        made.text
            .contains("- entity: world\n          ports: [80, 443]\n"),
        "{}",
        made.text
    );
    assert!(made.unsaid.is_empty(), "{:?}", made.unsaid);

    let seen = [counted("cidr:10.0.0.0/8", 80), counted("world", 443)];
    let made = recommend(&seen, &[], &wishes(&[]), &Settings::default()).expect("a policy");
    for target in [
        "- cidr: \"10.0.0.0/8\"\n          ports: [80]\n",
        "- entity: world\n          ports: [443]\n",
    ] {
        assert!(made.text.contains(target), "{}", made.text);
    }
    let policy = set(&[document("made.yaml", &made.text)]);
    assert_eq!(denied(&policy, &seen), []);
    let why = Undecided::Address.to_string();
    assert_eq!(made.unsaid, [(seen[1].flow.clone(), why)]);
}

#[test]
fn one_bad_record_spoils_nothing() {
    let [a, b] = [PARTIES[0], PARTIES[1]];
    let other = ("spiffe://other.example/a", None);
    let seen = [flow(a, b, 0, 6), flow(other, b, 1, 6), flow(a, b, 443, 6)].map(|flow| Counted {
        flow,
        service: None,
        count: 1,
        last_seen: on_day(1),
    });
    let made = recommend(&seen, &[], &wishes(&[]), &Settings::default()).expect("a policy");
    assert_eq!(
        (made.rules, made.text.contains("ports: [443]")),
        (1, true),
        "{}",
        made.text
    );
    let unsaid: Vec<&str> = made.unsaid.iter().map(|(_, why)| why.as_str()).collect();
    assert_eq!(
        unsaid,
        ["0 is not a port", "`other.example` is another trust domain"]
    );
}

#[test]
fn the_world_is_written_by_its_addresses_where_they_are_few() {
    let to = |address: &str| flow(PARTIES[0], ("world", Some(address)), 443, 6);
    let seen = |addresses: usize| -> Vec<Counted> {
        let counted = |last| Counted {
            flow: to(&format!("192.0.2.{last}")),
            service: None,
            count: 1,
            last_seen: on_day(1),
        };
        (0..addresses).map(counted).collect()
    };
    let few = recommend(&seen(MAX_ADDRESSES), &[], &wishes(&[]), &Settings::default()).expect("a policy");
    let policy = set(&[document("made.yaml", &few.text)]);
    assert_eq!(denied(&policy, &seen(MAX_ADDRESSES)), []);
    let elsewhere = [Counted {
        flow: to("169.254.169.254"),
        service: None,
        count: 1,
        last_seen: on_day(1),
    }];
    assert_eq!(denied(&policy, &elsewhere).len(), 1, "{}", few.text);
    let many =
        recommend(&seen(MAX_ADDRESSES + 1), &[], &wishes(&[]), &Settings::default()).expect("a policy");
    assert!(
        many.text.contains(
            "        # Careful: every address outside the cluster, a cloud's metadata service too.\n"
        ),
        "{}",
        many.text
    );
    assert!(many.text.contains("- entity: world\n"), "{}", many.text);
}

#[test]
fn rules_and_targets_that_nothing_used_are_named() {
    let text = "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {name: p}\nspec:\n  rules:\n    \
        - {from: {spiffe: 'spiffe://hanzo.ai/k8s/x/*'}, to: [{spiffe: 'spiffe://hanzo.ai/k8s/x/b', ports: [443]}, {entity: world, ports: ['1-9']}]}\n    \
        - {from: {spiffe: '*'}, to: [{cidr: 10.0.0.0/8}], action: DENY}\n    \
        - {from: {spiffe: 'spiffe://hanzo.ai/k8s/y/a'}, to: [{spiffe: 'spiffe://hanzo.ai/k8s/x/b'}]}\n";
    let policy = set(&[document("p.yaml", text)]);
    let flows = [flow(PARTIES[0], PARTIES[1], 443, 6)];
    let workloads = [id("k8s/x/a"), id("k8s/x/b")].into();
    let table = compile(&policy, &workloads, &Settings::default(), 1).expect("it fits");
    let found: Vec<String> = unused(&policy, &table, &flows, None)
        .iter()
        .map(|unused| format!("{} {}", unused.rule, unused.target.as_deref().unwrap_or("all")))
        .collect();
    assert_eq!(found, ["p/rule-1 world TCP 1-9", "p/rule-2 all", "p/rule-3 all"]);
}
