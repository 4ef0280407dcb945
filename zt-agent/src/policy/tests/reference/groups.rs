// SPDX-License-Identifier: Apache-2.0
//! Groups: what every member may be reached by reaches the group, and nobody else.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use zt_common::entry::Flow;
use zt_common::identity;
use zt_common::verdict::Reason;

use super::{IDENTITIES, Reference, Who, documents, everyone, identities, settings};
use crate::policy::tests::{document, id, policy, set};
use crate::policy::{
    Action, Group, Groups, Member, Outcome, Protocol, SeenFlow, SeenParty, Settings, compile_with,
};

fn member(who: &Who) -> Member {
    match who {
        Who::Workload(id) => Member::Workload(id.clone()),
        Who::Entity(number) => Member::Entity(*number),
        Who::Address(address) => Member::Address(*address),
    }
}

pub(super) fn group(name: &str, members: &[(Who, u16)]) -> Group {
    Group {
        name: Arc::from(name),
        protocol: Protocol::Tcp.number(),
        port: members.iter().map(|(_, port)| *port).min().unwrap_or(1),
        members: members.iter().map(|(who, port)| (member(who), *port)).collect(),
    }
}

pub(super) fn members() -> impl Strategy<Value = Vec<(Who, u16)>> {
    let some = subsequence(everyone(), 1..4);
    let ports = proptest::collection::vec(select(vec![80_u16, 81, 4096]), 4);
    (some, ports).prop_map(|(some, ports)| some.into_iter().zip(ports).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_group_is_reached_by_whom_every_member_lets_in(
        texts in documents(), settings in settings(), members in members(), others in members(),
    ) {
        let docs: Vec<_> = texts.iter().enumerate().map(|(n, text)| document(&format!("{n}.yaml"), text)).collect();
        let set = set(&docs);
        let mut groups = Groups::default();
        let number = groups.add(group("service:a/one", &members));
        let alone = compile_with(&set, &identities(&IDENTITIES), &groups, &settings, 1).expect("it fits");
        groups.add(group("service:a/two", &others));
        let table = compile_with(&set, &identities(&IDENTITIES), &groups, &settings, 1).expect("it fits");
        let reference = Reference { set: &set, settings: &settings };
        let port = groups.get(number).expect("added").port;
        for source in &everyone() {
            let answers: Vec<_> = members
                .iter()
                .map(|(who, port)| reference.decide(source, who, *port, Protocol::Tcp))
                .collect();
            let allowed = answers.iter().all(|(allowed, ..)| *allowed);
            let denied = answers.iter().any(|(_, reason, _)| *reason == Reason::DenyRule);
            let proof = allowed
                && members
                    .iter()
                    .any(|(who, port)| !reference.requiring(source, who, *port, Protocol::Tcp).is_empty());
            let flow = Flow { source: table.number(source.party()), destination: number, port, protocol: 6 };
            let found = table.decide(&flow);
            prop_assert_eq!(found.allowed, allowed, "{:?} -> {:?}\n{}", source, &members, &table);
            prop_assert_eq!(found.proof, proof, "{:?} -> {:?}\n{}", source, &members, &table);
            prop_assert_eq!(found.reason == Reason::DenyRule, denied, "{:?} -> {:?}\n{}", source, &members, &table);
            if let Some(rule) = table.rule_name(found.rule) {
                let of_members: Vec<&String> = answers.iter().flat_map(|(_, _, rules)| rules).collect();
                prop_assert!(of_members.iter().any(|name| name.as_str() == &*rule), "{} of {:?}", rule, of_members);
            }
            // Who judges a recorded connection by its members says the same.
            let seen: Vec<SeenFlow> = members
                .iter()
                .map(|(who, port)| SeenFlow {
                    source: SeenParty::from(&member(source)),
                    destination: SeenParty::from(&member(who)),
                    port: *port,
                    protocol: Protocol::Tcp,
                })
                .collect();
            let together = SeenFlow::judge_together(&seen, &table).expect("all of them are known");
            prop_assert_eq!(
                (Outcome::from(&together), together.reason == Reason::DenyRule),
                (Outcome::from(&found), denied),
                "{:?} -> {:?}\n{}", source, &members, &table
            );
            // Another port, another protocol: nobody said anything about those.
            for flow in [Flow { port: port + 1, ..flow }, Flow { protocol: 17, ..flow }] {
                let found = table.decide(&flow);
                let by_default = set.policies().iter().all(|policy| policy.default_action == Action::Allow);
                prop_assert_eq!((found.allowed, found.rule), (by_default, 0));
            }
        }
        // A new service adds, and moves nothing.
        prop_assert!(table.additions_over(&alone).is_some());
    }
}

#[test]
fn wildcards_are_about_members_not_about_the_group() {
    let docs = [policy(
        "p",
        "    - {from: {spiffe: '*'}, to: [{spiffe: '*', ports: [80]}]}",
    )];
    let mut groups = Groups::default();
    let (one, other) = (Who::Workload(id("x/a")), Who::Workload(id("x/b")));
    let near = groups.add(group("service:a/one", &[(one.clone(), 80), (other.clone(), 80)]));
    let far = groups.add(group("service:a/two", &[(one, 80), (other, 81)]));
    let table = compile_with(&set(&docs), &BTreeSet::new(), &groups, &Settings::default(), 1).expect("fits");
    let ask = |source: u64, destination: u64| {
        let flow = Flow {
            source,
            destination,
            port: 80,
            protocol: 6,
        };
        table.decide(&flow).allowed
    };
    assert!(
        ask(id("z/z").number(), near),
        "whoever it is, both would let it in"
    );
    assert!(
        !ask(id("z/z").number(), far),
        "one of the two listens at a port that no rule names"
    );
    assert!(!ask(identity::WORLD, near) && !ask(identity::UNKNOWN, near));
    assert!(
        ask(identity::HOST, near) && ask(identity::HOST, far),
        "builtin/host"
    );
    let named: Vec<String> = table.party_names().map(|(_, name)| name).collect();
    assert!(named.contains(&"service:a/one".to_owned()), "{named:?}");
}

#[test]
fn the_same_group_has_the_same_number_and_another_another() {
    let mut groups = Groups::default();
    let who = |name: &str| (Who::Workload(id(name)), 80);
    let one = groups.add(group("service:a/one", &[who("x/a"), who("x/b")]));
    assert_eq!(groups.add(group("service:a/one", &[who("x/b"), who("x/a")])), one);
    let other = groups.add(group("service:a/one", &[who("x/a")]));
    assert_ne!(one, other);
    assert!(identity::is_group(one) && !identity::is_workload(one));
    assert_eq!(groups.len(), 2);
    groups.retain(|number| number == other);
    assert!(groups.get(one).is_none() && groups.get(other).is_some());
}
