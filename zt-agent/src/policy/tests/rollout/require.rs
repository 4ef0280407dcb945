// SPDX-License-Identifier: Apache-2.0
//! The last stage: whom no policy names is refused, whatever is said to everybody; nothing else changes.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::select;
use zt_common::identity;
use zt_common::verdict::Reason;

use super::{document, id, policy, rollout, set};
use crate::policy::{AllowTable, Decision, ENTITIES, Party, PolicySet, Protocol, Settings, compile};
use crate::spiffe_id::SpiffeId;

const RULES: &str = "    - {from: {spiffe: 'spiffe://hanzo.ai/a'}, to: [{spiffe: 'spiffe://hanzo.ai/t/*', ports: [80]}]}
    - {from: {spiffe: '*'}, to: [{spiffe: '*', ports: [53]}, {entity: world, ports: [443]}, {cidr: 10.0.0.0/8}]}
    - {from: {spiffe: 'spiffe://hanzo.ai/a'}, to: [{spiffe: '*', ports: [9]}], action: DENY}
    - {from: {entity: world}, to: [{spiffe: '*'}]}
    - {from: {spiffe: '*'}, rawSockets: true}";

/// Named outright, by a pattern, by neither.
const NAMES: [&str; 6] = ["a", "t/x", "t/y", "stranger", "other/stranger", "t/x/y"];

fn with(stage: &str) -> PolicySet {
    let stages =
        "stages: [{name: first, identities: ['spiffe://hanzo.ai/z']}, {name: all, requirePolicy: true}]";
    set(&[policy("p", RULES), rollout(&format!("stage: {stage}, {stages}"))])
}

fn table(set: &PolicySet, known: &[&str], settings: &Settings) -> AllowTable {
    let known: BTreeSet<SpiffeId> = known.iter().map(|name| id(name)).collect();
    compile(set, &known, settings, 7).expect("it fits")
}

fn is_declared(name: &str) -> bool {
    ["a", "t/x", "t/y"].contains(&name)
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Named(&'static str),
    Number(u64),
    Address(&'static str),
}

fn who() -> impl Strategy<Value = Who> {
    let entities = ENTITIES.map(|(_, number)| number);
    prop_oneof![
        4 => select(&NAMES[..]).prop_map(Who::Named),
        1 => select(entities.to_vec()).prop_map(Who::Number),
        1 => select(vec!["10.1.2.3", "192.0.2.1"]).prop_map(Who::Address),
    ]
}

fn ask(
    set: &PolicySet,
    table: &AllowTable,
    settings: &Settings,
    ends: [Who; 2],
    port: u16,
    udp: bool,
) -> Decision {
    let ids = ends.map(|end| match end {
        Who::Named(name) => Some(id(name)),
        _ => None,
    });
    let party = |end: usize| match (ends[end], &ids[end]) {
        (_, Some(id)) => Party::Spiffe(id),
        (Who::Number(number), _) => Party::Number(number),
        (Who::Address(text), _) => Party::Address(text.parse().expect("literal")),
        (Who::Named(_), None) => unreachable!(),
    };
    let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
    set.evaluate(table, settings, (party(0), party(1)), port, protocol)
        .expect("few rules")
}

fn undeclared(who: Who) -> bool {
    matches!(who, Who::Named(name) if !is_declared(name))
}

proptest! {
    #[test]
    fn whom_no_policy_names_is_refused_and_nothing_else_changes(
        source in who(),
        destination in who(),
        port in select(vec![9, 53, 80, 443, 5432]),
        udp in any::<bool>(),
        known in proptest::sample::subsequence(NAMES.to_vec(), 0..=NAMES.len()),
    ) {
        let settings = Settings::default();
        let (before, after) = (with("first"), with("all"));
        let everybody = table(&after, &NAMES, &settings);
        let ends = [source, destination];
        let was = ask(&before, &table(&before, &NAMES, &settings), &settings, ends, port, udp);
        let is = ask(&after, &everybody, &settings, ends, port, udp);
        let host = matches!(source, Who::Number(identity::HOST));
        if undeclared(source) || undeclared(destination) && !host {
            prop_assert!(!is.allowed);
            prop_assert_eq!(is.reason, Reason::DenyRule);
        } else {
            prop_assert_eq!(&is, &was);
        }
        // The same of those for whom no table was compiled.
        let few = ask(&after, &table(&after, &known, &settings), &settings, ends, port, udp);
        prop_assert_eq!(&few, &is);
        // A node that went back behind the stage.
        let back = Settings { most_stages: Some(1), ..Settings::default() };
        prop_assert_eq!(ask(&after, &table(&after, &NAMES, &back), &back, ends, port, udp), was);
    }
}

#[test]
fn it_says_so_and_takes_the_right_to_raw_sockets_away() {
    let settings = Settings::default();
    let after = with("all");
    let table = table(&after, &NAMES, &settings);
    let said = ask(
        &after,
        &table,
        &settings,
        [Who::Named("stranger"), Who::Named("a")],
        53,
        true,
    );
    assert_eq!(said.rule.as_deref(), Some("builtin/require-policy"));
    assert!(!table.decide_raw_socket(id("stranger").number()).allowed);
    assert!(table.decide_raw_socket(id("a").number()).allowed);
    let probe = ask(
        &after,
        &table,
        &settings,
        [Who::Number(identity::HOST), Who::Named("stranger")],
        80,
        false,
    );
    assert!(probe.allowed, "its node reaches it, so that probes live");
}

#[test]
fn a_default_that_allows_is_not_for_whom_no_policy_names() {
    let open = "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {name: p}\nspec: {rules: [{from: {spiffe: 'spiffe://hanzo.ai/a'}, to: [{spiffe: 'spiffe://hanzo.ai/b'}]}], defaultAction: ALLOW}\n";
    let set = set(&[
        document("p.yaml", open),
        rollout("stage: all, stages: [{name: all, requirePolicy: true}]"),
    ]);
    let settings = Settings::default();
    let table = table(&set, &["a", "b", "stranger"], &settings);
    let allowed = |from, to| {
        ask(
            &set,
            &table,
            &settings,
            [Who::Named(from), Who::Named(to)],
            1,
            false,
        )
        .allowed
    };
    assert!(allowed("a", "b") && allowed("b", "a"));
    assert!(!allowed("stranger", "a") && !allowed("a", "stranger"));
}
