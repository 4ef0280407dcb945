// SPDX-License-Identifier: Apache-2.0
//! Identities that a table was not compiled for are answered about as if it had been.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use zt_common::verdict::Reason;

use super::groups::{group, members};
use super::{IDENTITIES, Who, documents, everyone, identities, settings};
use crate::policy::tests::{document, id, policy, set};
use crate::policy::{
    Decision, Endpoint, Groups, Party, PolicySet, Protocol, Settings, compile, compile_with,
};
use crate::spiffe_id::{Pattern, SpiffeId};

/// Whether a rule speaks about it, `*` alone left out.
fn spoken_of(set: &PolicySet, id: &SpiffeId) -> bool {
    let rules = set.policies().iter().flat_map(|policy| &policy.rules);
    let mut endpoints =
        rules.flat_map(|rule| std::iter::once(&rule.from).chain(rule.to.iter().map(|to| &to.endpoint)));
    endpoints.any(|endpoint| match endpoint {
        Endpoint::Spiffe(Pattern::Any) => false,
        Endpoint::Spiffe(pattern) => pattern.matches(id),
        _ => false,
    })
}

/// The decision with the reason that a refusal has about identities that nobody knows.
fn told(
    set: &PolicySet,
    known: &BTreeSet<SpiffeId>,
    decision: Decision,
    ends: (&Who, Option<&Who>),
) -> Decision {
    let unknown = |who: &Who| matches!(who, Who::Workload(id) if !known.contains(id) && !spoken_of(set, id));
    let reason = match decision.reason {
        Reason::NoRule if unknown(ends.0) => Reason::UnknownSource,
        Reason::NoRule if ends.1.is_some_and(unknown) => Reason::UnknownDestination,
        reason => reason,
    };
    Decision { reason, ..decision }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn who_the_table_was_not_compiled_for_is_answered_as_if_it_had_been(
        texts in documents(), settings in settings(), known in subsequence(&IDENTITIES[..], 0..5),
        port in select(vec![79_u16, 80, 81, 100, 4095, 4096]),
    ) {
        let docs: Vec<_> = texts.iter().enumerate().map(|(n, text)| document(&format!("{n}.yaml"), text)).collect();
        let set = set(&docs);
        let known = identities(&known);
        let table = compile(&set, &known, &settings, 3).expect("it fits");
        let whole = compile(&set, &identities(&IDENTITIES), &settings, 3).expect("it fits");
        for source in &everyone() {
            for destination in &everyone() {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let ends = (source.party(), destination.party());
                    let wanted = whole.evaluate(ends.0, ends.1, port, protocol);
                    let wanted = told(&set, &known, wanted, (source, Some(destination)));
                    let found = set.evaluate(&table, &settings, ends, port, protocol).expect("it fits");
                    prop_assert_eq!(found, wanted, "{:?} -> {:?} {:?} {}\n{}", source, destination, protocol, port, whole);
                }
            }
        }
    }

    #[test]
    fn and_so_is_what_it_may_reach_behind_a_virtual_address(
        texts in documents(), settings in settings(), known in subsequence(&IDENTITIES[..], 0..5), members in members(),
    ) {
        let docs: Vec<_> = texts.iter().enumerate().map(|(n, text)| document(&format!("{n}.yaml"), text)).collect();
        let set = set(&docs);
        let mut groups = Groups::default();
        let number = groups.add(group("service:a/one", &members));
        let known = identities(&known);
        let table = compile_with(&set, &known, &groups, &settings, 3).expect("it fits");
        let whole = compile_with(&set, &identities(&IDENTITIES), &groups, &settings, 3).expect("it fits");
        let known = table.identities().iter().cloned().collect();
        let port = groups.get(number).expect("added").port;
        for source in &everyone() {
            for (port, protocol) in [(port, Protocol::Tcp), (port + 1, Protocol::Tcp), (port, Protocol::Udp)] {
                let ends = (source.party(), Party::Number(number));
                let wanted = told(&set, &known, whole.evaluate(ends.0, ends.1, port, protocol), (source, None));
                let found = set.evaluate(&table, &settings, ends, port, protocol).expect("it fits");
                prop_assert_eq!(found, wanted, "{:?} -> {:?}\n{}", source, &members, &whole);
            }
        }
    }
}

#[test]
fn the_first_rule_answers_and_one_that_denies_before_it() {
    let docs = [policy(
        "p",
        "    - {from: {spiffe: 'spiffe://hanzo.ai/*/a'}, to: [{spiffe: 'spiffe://hanzo.ai/x/*', ports: [80]}]}\n    \
         - {from: {spiffe: 'spiffe://hanzo.ai/y/*'}, to: [{spiffe: 'spiffe://hanzo.ai/*/b', ports: [80]}]}\n    \
         - {from: {spiffe: 'spiffe://hanzo.ai/*/*'}, to: [{spiffe: 'spiffe://hanzo.ai/x/c', ports: [80]}], action: DENY}",
    )];
    let (set, settings) = (set(&docs), Settings::default());
    let table = compile(&set, &BTreeSet::new(), &settings, 1).expect("fits");
    let ask = |source: &str, destination: &str| {
        let (source, destination) = (id(source), id(destination));
        let ends = (Party::Spiffe(&source), Party::Spiffe(&destination));
        let decision = set
            .evaluate(&table, &settings, ends, 80, Protocol::Tcp)
            .expect("fits");
        (decision.rule, decision.reason)
    };
    let by = |rule: &str, reason| (Some(Arc::from(rule)), reason);
    assert_eq!(
        ask("y/a", "x/b"),
        by("p/rule-1", Reason::Rule),
        "both, and this one comes first"
    );
    assert_eq!(ask("y/z", "x/b"), by("p/rule-2", Reason::Rule));
    assert_eq!(ask("y/a", "x/c"), by("p/rule-3", Reason::DenyRule));
    assert_eq!(ask("y/z", "y/z"), by("builtin/self", Reason::Rule));
    assert_eq!(
        ask("y/z", "y/y"),
        (None, Reason::NoRule),
        "patterns speak about both"
    );
    assert_eq!(ask("q", "x/b"), (None, Reason::UnknownSource));
    assert_eq!(ask("y/z", "q"), (None, Reason::UnknownDestination));
}

#[test]
fn a_name_that_is_taken_for_nobody_is_nobody_here_too() {
    let docs = [policy(
        "p",
        "    - {from: {spiffe: 'spiffe://hanzo.ai/w/*'}, to: [{spiffe: '*', ports: [80]}]}",
    )];
    let (set, settings) = (set(&docs), Settings::default());
    let [one, other] =
        ["w/one", "w/other"].map(|name| SpiffeId::numbered(&format!("spiffe://hanzo.ai/{name}"), 1 << 40));
    let known = BTreeSet::from([one.clone(), other]);
    let table = compile(&set, &known, &settings, 1).expect("fits");
    let (outside, third) = (id("q"), id("w/third"));
    let ask = |source: &SpiffeId| {
        let ends = (Party::Spiffe(source), Party::Spiffe(&outside));
        let decision = set
            .evaluate(&table, &settings, ends, 80, Protocol::Tcp)
            .expect("fits");
        (decision.allowed, decision.reason)
    };
    assert_eq!(ask(&one), (false, Reason::UnknownSource));
    assert_eq!(ask(&third), (true, Reason::Rule));
}
