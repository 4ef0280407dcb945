// SPDX-License-Identifier: Apache-2.0
//! What is recommended allows what was seen, and has nothing in it that is not needed for that.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::Value;

use super::{document, id, set};
use crate::policy::{
    Counted, MAX_ADDRESSES, Moment, PolicySet, SeenFlow, Settings, Undecided, Wishes, compile, recommend,
    unused,
};
use crate::spiffe_id::Pattern;

/// Names as records have them, with the address of those that are known by it.
const PARTIES: [(&str, Option<&str>); 11] = [
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
    let one = (
        select(&PARTIES[..]),
        select(&PARTIES[..]),
        select(vec![80_u16, 81, 82, 5432]),
        select(vec![6_u8, 17]),
        1_u64..3,
    );
    let one = one.prop_map(|(source, destination, port, protocol, count)| Counted {
        flow: flow(source, destination, port, protocol),
        count,
        last_seen: on_day(count.cast_signed()),
    });
    proptest::collection::vec(one, 0..24)
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

fn denied(set: &PolicySet, seen: &[Counted]) -> Vec<SeenFlow> {
    let workloads: BTreeSet<_> = seen
        .iter()
        .flat_map(|one| one.flow.workloads())
        .cloned()
        .collect();
    let table = compile(set, &workloads, &Settings::default(), 1).expect("it fits");
    let refused = |one: &&Counted| !one.flow.judge(&table).expect("can be judged").allowed;
    seen.iter().filter(refused).map(|one| one.flow.clone()).collect()
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
        let made = recommend(&seen, &wishes(&patterns), &Settings::default()).expect("a policy");
        let policy = set(&[document("made.yaml", &made.text)]);
        prop_assert_eq!(&made.unsaid, &[], "{}", made.text);
        prop_assert_eq!(denied(&policy, &seen), [], "{}", made.text);
        let rules = policy.policies()[0].rules.len();
        prop_assert_eq!(made.rules, rules);
        for (what, smaller) in smaller(&policy.policies()[0].document()) {
            let without = set(&[document("without.yaml", &smaller.to_string())]);
            prop_assert!(!denied(&without, &seen).is_empty(), "{} of\n{}", what, made.text);
        }
        // What it says was all used.
        let workloads: BTreeSet<_> = seen.iter().flat_map(|one| one.flow.workloads()).cloned().collect();
        let table = compile(&policy, &workloads, &Settings::default(), 1).expect("it fits");
        prop_assert_eq!(unused(&policy, &table, seen.iter().map(|one| &one.flow)), []);
    }
}

#[test]
fn what_is_made_reads_as_a_person_would_write_it() {
    let [a, b] = [PARTIES[0], PARTIES[1]];
    let counted = |flow, count, day| Counted {
        flow,
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
    let made = recommend(&seen, &wishes(&[]), &Settings::default()).expect("a policy");
    assert_eq!(
        made.text,
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata:\n  name: made\nspec:\n  rules:\n    \
         - from: {spiffe: \"spiffe://hanzo.ai/k8s/x/a\"}\n      to:\n        \
         # 443: 1 connection, last 2026-01-01T00:00:00Z\n        \
         # 8001-8002: 3 connections, last 2026-01-03T00:00:00Z\n        \
         - spiffe: \"spiffe://hanzo.ai/k8s/x/b\"\n          ports: [443, \"8001-8002\"]\n        \
         # 53: 7 connections, last 2026-01-02T00:00:00Z\n        \
         - spiffe: \"spiffe://hanzo.ai/k8s/x/b\"\n          ports: [53]\n          protocol: UDP\n    \
         # Careful: these have no identity. Give them one, rather than let in whoever has none.\n    \
         - from: {entity: unknown}\n      to:\n        \
         # 1: 1 connection, last 2026-01-04T00:00:00Z\n        \
         - spiffe: \"spiffe://hanzo.ai/k8s/x/a\"\n          ports: [1]\n  defaultAction: DENY\n"
    );
    let nothing = recommend(&seen[4..6], &wishes(&[]), &Settings::default()).expect("a policy");
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
    let made = recommend(&seen, &wishes(&[]), &Settings::default()).expect("a policy");
    assert_eq!(
        to(&made.text),
        "        # 80-81: 8 connections, last 2026-01-03T00:00:00Z\n        \
         - cidr: \"10.0.0.0/8\"\n          ports: [\"80-81\"]\n"
    );
    let more = [seen.to_vec(), vec![counted(narrow, 82, 1, 1)]].concat();
    let made = recommend(&more, &wishes(&[]), &Settings::default()).expect("a policy");
    assert_eq!(
        to(&made.text),
        "        # 81: 5 connections, last 2026-01-02T00:00:00Z\n        \
         - cidr: \"10.0.0.0/8\"\n          ports: [81]\n        \
         # 80: 3 connections, last 2026-01-03T00:00:00Z\n        \
         # 82: 1 connection, last 2026-01-01T00:00:00Z\n        \
         - cidr: \"10.1.0.0/16\"\n          ports: [80, 82]\n"
    );
}

#[test]
fn one_bad_record_spoils_nothing() {
    let [a, b] = [PARTIES[0], PARTIES[1]];
    let other = ("spiffe://other.example/a", None);
    let seen = [flow(a, b, 0, 6), flow(other, b, 1, 6), flow(a, b, 443, 6)].map(|flow| Counted {
        flow,
        count: 1,
        last_seen: on_day(1),
    });
    let made = recommend(&seen, &wishes(&[]), &Settings::default()).expect("a policy");
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
            count: 1,
            last_seen: on_day(1),
        };
        (0..addresses).map(counted).collect()
    };
    let few = recommend(&seen(MAX_ADDRESSES), &wishes(&[]), &Settings::default()).expect("a policy");
    let policy = set(&[document("made.yaml", &few.text)]);
    assert_eq!(denied(&policy, &seen(MAX_ADDRESSES)), []);
    let elsewhere = [Counted {
        flow: to("169.254.169.254"),
        count: 1,
        last_seen: on_day(1),
    }];
    assert_eq!(denied(&policy, &elsewhere).len(), 1, "{}", few.text);
    let many = recommend(&seen(MAX_ADDRESSES + 1), &wishes(&[]), &Settings::default()).expect("a policy");
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
    let found: Vec<String> = unused(&policy, &table, &flows)
        .iter()
        .map(|unused| format!("{} {}", unused.rule, unused.target.as_deref().unwrap_or("all")))
        .collect();
    assert_eq!(found, ["p/rule-1 world TCP 1-9", "p/rule-2 all", "p/rule-3 all"]);
}

#[test]
fn ends_without_a_name_are_looked_up_by_their_address() {
    let rules = "    - {from: {spiffe: 'spiffe://hanzo.ai/k8s/x/a'}, to: [{cidr: 10.0.0.0/8}]}";
    let policy = set(&[super::policy("p", rules)]);
    let judged = |destination, settings: &Settings| {
        let flow = flow(PARTIES[0], destination, 1, 6);
        let table = compile(&policy, &BTreeSet::new(), settings, 1).expect("it fits");
        flow.judge(&table).map(|decision| decision.allowed)
    };
    let settings = Settings::default();
    assert_eq!(judged(("world", Some("10.9.9.9")), &settings), Ok(true));
    assert_eq!(judged(("world", Some("192.0.2.7")), &settings), Ok(false));
    assert_eq!(judged(("world", None), &settings), Err(Undecided::Address));
    assert_eq!(
        judged(("cidr:10.1.0.0/16", Some("10.1.0.1")), &settings),
        Ok(true)
    );
    assert_eq!(
        judged(("cidr:10.0.0.0/8", None), &settings),
        Ok(true),
        "all of it has one name"
    );
    assert_eq!(judged(("unknown", Some("192.0.2.7")), &settings), Ok(false));
    assert_eq!(
        judged(("unknown", Some("10.9.9.9")), &settings),
        Err(Undecided::Nobody),
        "a workload without identity has no other name, whoever is nobody by his address has"
    );
    for (name, why) in [
        ("service:x/web", Undecided::Service),
        ("raw-sockets", Undecided::Name),
    ] {
        let refused = SeenFlow::new(("host", None), (name, None), 1, 6);
        assert_eq!(refused, Err(why));
    }
    assert_eq!(
        SeenFlow::new(("host", None), ("world", None), 1, 1),
        Err(Undecided::Protocol)
    );
}
