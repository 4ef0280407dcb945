// SPDX-License-Identifier: Apache-2.0
//! What tables hold, who is named, and which changes can be made in place.

use std::collections::BTreeSet;

use zt_common::entry::{ACTION_ALLOW, ACTION_DENY, AllowKey, Flow, REQUIRES_PROOF};
use zt_common::identity;
use zt_common::verdict::{AllowLookup, RULE_HOST, Reason};

use super::{document, id, policy, set, table, table_with};
use crate::policy::{Action, AllowTable, Party, Protocol, Settings, entity_name, entity_number};

fn tcp(table: &AllowTable, source: u64, destination: u64, port: u16) -> zt_common::verdict::Verdict {
    table.decide(&Flow {
        source,
        destination,
        port,
        protocol: 6,
    })
}

fn named(table: &AllowTable, source: u64, destination: u64, port: u16) -> Option<&'static str> {
    rule(table, tcp(table, source, destination, port).rule)
}

/// A name for comparing, which lives as long as the tests.
fn rule(table: &AllowTable, number: u64) -> Option<&'static str> {
    table.rule_name(number).map(|name| &*name.to_string().leak())
}

#[test]
fn without_a_table_nothing_is_allowed() {
    let table = AllowTable::default();
    assert_eq!(
        tcp(&table, id("a").number(), id("a").number(), 1).reason,
        Reason::NoPolicy
    );
    assert_eq!((table.revision(), table.len(), table.is_empty()), (0, 0, true));
    let empty = super::compile(
        &crate::policy::PolicySet::default(),
        &BTreeSet::default(),
        &Settings::default(),
        3,
    );
    let empty = empty.expect("an empty table");
    assert_eq!((empty.revision(), empty.len()), (3, 1));
    assert_eq!(
        tcp(&empty, id("a").number(), id("b").number(), 1).reason,
        Reason::NoRule
    );
    assert_eq!(tcp(&empty, identity::HOST, id("b").number(), 1).rule, RULE_HOST);
}

#[test]
fn who_requires_proof_is_not_overruled_by_who_does_not() {
    let rules = "    - {from: {spiffe: '*'}, to: [{spiffe: '*'}]}\n    \
         - {from: {spiffe: spiffe://hanzo.ai/t/*}, to: [{spiffe: spiffe://hanzo.ai/b, ports: [80-95], requireProof: true}]}\n    \
         - {from: {spiffe: spiffe://hanzo.ai/t/a}, to: [{spiffe: spiffe://hanzo.ai/b, ports: [80]}]}\n    \
         - {from: {spiffe: spiffe://hanzo.ai/t/a}, to: [{spiffe: spiffe://hanzo.ai/b, ports: [80], requireProof: true}]}\n    \
         - {from: {spiffe: spiffe://hanzo.ai/b}, to: [{spiffe: spiffe://hanzo.ai/b, ports: [80], requireProof: true}]}\n    \
         - {from: {spiffe: spiffe://hanzo.ai/t/b}, to: [{spiffe: spiffe://hanzo.ai/b, ports: [81]}], action: DENY}\n    \
         - {from: {spiffe: spiffe://hanzo.ai/u}, to: [{spiffe: spiffe://hanzo.ai/b, ports: [53], protocol: UDP, requireProof: true}]}\n    \
         - {from: {spiffe: spiffe://hanzo.ai/t/*}, to: [{spiffe: spiffe://hanzo.ai/a}]}";
    let before = table(&[policy("p", rules)], &[]);
    let table = table(&[policy("p", rules)], &[id("t/new")]);
    let [a, b, other, to, u] = ["t/a", "t/b", "o", "b", "u"].map(|name| id(name).number());
    let said = |source: u64, port: u16| {
        let verdict = tcp(&table, source, to, port);
        (verdict.allowed, verdict.proof, named(&table, source, to, port))
    };
    assert_eq!(said(a, 80), (true, true, Some("p/rule-4")), "the exact one first");
    assert_eq!(said(a, 81), (true, true, Some("p/rule-2")));
    assert_eq!(said(b, 81), (false, false, Some("p/rule-6")), "a DENY beats it");
    assert_eq!(
        said(other, 80),
        (true, false, Some("p/rule-1")),
        "it is not about that source"
    );
    assert_eq!(
        said(to, 80),
        (true, true, Some("p/rule-5")),
        "builtin/self does not overrule it"
    );
    let datagram = table.decide(&Flow {
        source: u,
        destination: to,
        port: 53,
        protocol: 17,
    });
    assert_eq!(
        (datagram.allowed, datagram.reason, rule(&table, datagram.rule)),
        (false, Reason::ProofRequired, Some("p/rule-7"))
    );
    let unproven = tcp(&table, a, to, 80).unproven();
    assert_eq!(
        (unproven.allowed, unproven.reason),
        (false, Reason::ProofRequired)
    );
    assert!(tcp(&table, other, to, 80).unproven().allowed);
    let listed = table.to_string();
    assert!(
        listed.contains("ALLOW spiffe://hanzo.ai/t/a -> spiffe://hanzo.ai/b TCP 80 with proof by p/rule-4"),
        "{listed}"
    );
    // A new workload gets what restricts it before what it restricts.
    let additions = table.additions_over(&before).expect("only more");
    let bits: Vec<u64> = additions.iter().map(|(_, entry)| entry.bits).collect();
    assert_eq!(bits, [ACTION_ALLOW | REQUIRES_PROOF, ACTION_ALLOW]);
}

#[test]
fn the_built_in_rules_can_be_switched_off() {
    let off = Settings {
        allow_self: false,
        allow_host: false,
        ..Settings::default()
    };
    let table = table_with(&[policy("p", "    []")], &[], &off);
    assert!(!tcp(&table, id("a").number(), id("a").number(), 1).allowed);
    assert!(!tcp(&table, identity::HOST, id("a").number(), 1).allowed);
}

#[test]
fn any_identity_is_one_entry_and_means_identities_only() {
    let table = table(
        &[policy(
            "p",
            "    - {from: {spiffe: '*'}, to: [{spiffe: '*', ports: [80]}]}",
        )],
        &[id("a"), id("b")],
    );
    assert_eq!(table.len(), 2);
    assert!(tcp(&table, id("never-seen").number(), id("a").number(), 80).allowed);
    for entity in [identity::WORLD, identity::UNKNOWN, identity::REMOTE_NODE] {
        assert!(!tcp(&table, entity, id("a").number(), 80).allowed);
        assert!(!tcp(&table, id("a").number(), entity, 80).allowed);
    }
}

#[test]
fn patterns_stand_for_identities_present_and_named() {
    let rules =
        "    - {from: {spiffe: spiffe://hanzo.ai/*/x}, to: [{spiffe: spiffe://hanzo.ai/n/x, ports: [80]}]}";
    let table = table(&[policy("p", rules)], &[id("a/x"), id("a/y"), id("b/x/c")]);
    let target = id("n/x").number();
    assert!(tcp(&table, id("a/x").number(), target, 80).allowed);
    assert!(!tcp(&table, id("a/y").number(), target, 80).allowed);
    assert!(!tcp(&table, id("b/x/c").number(), target, 80).allowed);
    assert_eq!(named(&table, target, target, 80), Some("builtin/self"));
    assert_eq!(table.len(), 3, "header, a/x and n/x");
    assert!(table.knows(&id("n/x")) && !table.knows(&id("z/x")));
    for known in ["a/x", "a/y", "n/x"].map(id) {
        assert_eq!(table.identity(known.as_str()), Some(&known));
    }
    assert_eq!(table.identity(id("z/x").as_str()), None);
}

#[test]
fn a_deny_beats_every_allow() {
    let allow =
        "    - {from: {spiffe: spiffe://hanzo.ai/a}, to: [{spiffe: spiffe://hanzo.ai/b, ports: [80, 81]}]}";
    let deny = "    - {from: {spiffe: '*'}, to: [{spiffe: spiffe://hanzo.ai/b, ports: [80]}], action: DENY}";
    let same = "    - {from: {spiffe: spiffe://hanzo.ai/a}, to: [{spiffe: spiffe://hanzo.ai/b, ports: [81]}], action: DENY}";
    let (a, b) = (id("a").number(), id("b").number());
    let table1 = table(&[policy("p", &format!("{allow}\n{deny}"))], &[]);
    assert_eq!(tcp(&table1, a, b, 80).reason, Reason::DenyRule);
    assert_eq!(named(&table1, a, b, 80), Some("p/rule-2"));
    assert!(tcp(&table1, a, b, 81).allowed);
    assert!(!tcp(&table1, b, b, 80).allowed, "before builtin/self as well");
    let table2 = table(&[policy("p", &format!("{allow}\n{same}"))], &[]);
    assert!(tcp(&table2, a, b, 80).allowed);
    assert_eq!(named(&table2, a, b, 81), Some("p/rule-2"));
}

#[test]
fn the_first_rule_in_order_of_policies_gives_the_name() {
    let rule =
        "    - {from: {spiffe: spiffe://hanzo.ai/a}, to: [{spiffe: spiffe://hanzo.ai/b, ports: [80]}]}";
    let twice = format!("{rule}\n{rule}");
    let table = table(
        &[policy("z", &twice), policy("m", &twice), policy("n", rule)],
        &[],
    );
    assert_eq!(
        named(&table, id("a").number(), id("b").number(), 80),
        Some("m/rule-1")
    );
    assert_eq!(table.len(), 2);
    let decision = table.evaluate(
        Party::Spiffe(&id("a")),
        Party::Spiffe(&id("b")),
        80,
        Protocol::Tcp,
    );
    assert_eq!(decision.rule.as_deref(), Some("m/rule-1"));
    let udp = table.evaluate(
        Party::Spiffe(&id("a")),
        Party::Spiffe(&id("b")),
        80,
        Protocol::Udp,
    );
    assert!(!udp.allowed);
}

#[test]
fn all_policies_must_agree_to_allow_by_default() {
    let allow = |name: &str| {
        let doc = policy(name, "");
        document(
            &doc.file,
            &doc.text
                .replace("  rules:\n", "  rules: []\n  defaultAction: ALLOW"),
        )
    };
    assert_eq!(set(&[allow("a"), allow("b")]).default_action(), Action::Allow);
    assert_eq!(
        set(&[allow("a"), policy("b", "    []")]).default_action(),
        Action::Deny
    );
    let table = table(&[allow("a")], &[]);
    assert_eq!(
        tcp(&table, identity::WORLD, id("a").number(), 80).reason,
        Reason::DefaultAllow
    );
}

#[test]
fn raw_sockets_are_a_right_of_their_holders() {
    let rules = "    - {from: {spiffe: spiffe://hanzo.ai/ping}, rawSockets: true}\n    - {from: {spiffe: spiffe://hanzo.ai/t/*}, rawSockets: true}\n    - {from: {spiffe: spiffe://hanzo.ai/t/b}, rawSockets: true, action: DENY}";
    let table1 = table(&[policy("p", rules)], &[id("t/a"), id("t/b")]);
    let rule = |id| rule(&table1, table1.decide_raw_socket(id).rule);
    assert_eq!(rule(id("ping").number()), Some("p/rule-1"));
    assert_eq!(rule(id("t/a").number()), Some("p/rule-2"));
    assert!(!table1.decide_raw_socket(id("t/b").number()).allowed);
    assert_eq!(
        table1.decide_raw_socket(id("other").number()).reason,
        Reason::RawSocket
    );
    let everyone = table(
        &[policy("p", "    - {from: {spiffe: '*'}, rawSockets: true}")],
        &[id("a")],
    );
    assert!(everyone.decide_raw_socket(id("a").number()).allowed);
    assert!(!everyone.decide_raw_socket(identity::WORLD).allowed);
    let header = everyone.get(&AllowKey::HEADER).expect("a header");
    assert_eq!(
        zt_common::entry::Shapes(header.bits).allowing(),
        0,
        "no shape to look up for it"
    );
}

#[test]
fn networks_inherit_and_the_cluster_stays_closed() {
    let rules = "    - {from: {spiffe: spiffe://hanzo.ai/a}, to: [{cidr: 0.0.0.0/0, ports: [443]}]}\n    - {from: {spiffe: spiffe://hanzo.ai/b}, to: [{cidr: 10.1.2.0/24}, {cidr: 192.0.2.0/24}]}\n    - {from: {spiffe: spiffe://hanzo.ai/w}, to: [{entity: world}]}";
    let settings = Settings {
        cluster_cidrs: vec!["10.1.0.0/16".parse().expect("literal")],
        ..Settings::default()
    };
    let table = table_with(&[policy("p", rules)], &[], &settings);
    let ask = |source: &str, address: &str, port| {
        let address = address.parse().expect("a literal address");
        table.evaluate(
            Party::Spiffe(&id(source)),
            Party::Address(address),
            port,
            Protocol::Tcp,
        )
    };
    assert!(ask("a", "8.8.8.8", 443).allowed);
    assert!(ask("a", "192.0.2.1", 443).allowed, "a narrower network inherits");
    assert!(!ask("a", "192.0.2.1", 80).allowed);
    assert_eq!(ask("a", "10.1.9.9", 443).reason, Reason::UnknownDestination);
    assert!(
        !ask("a", "10.1.2.9", 443).allowed,
        "naming a part of the cluster for b does not open it to a"
    );
    assert!(ask("b", "10.1.2.9", 443).allowed);
    assert!(ask("w", "192.0.2.1", 1).allowed && ask("w", "2001:db8::1", 1).allowed);
    assert!(!ask("w", "10.1.2.9", 1).allowed && !ask("w", "10.1.9.9", 1).allowed);
    assert!(
        ask("a", "::ffff:8.8.8.8", 443).allowed,
        "the mapped form is the same address"
    );
}

#[test]
fn entities_have_names() {
    for name in ["host", "remote-node", "kube-apiserver", "world", "unknown"] {
        assert_eq!(entity_number(name).and_then(entity_name), Some(name));
    }
    assert_eq!(entity_name(identity::ANY), None);
    assert_eq!(entity_number("anyone"), None);
}

#[test]
fn a_new_identity_only_adds_entries() {
    let rules = "    - {from: {spiffe: spiffe://hanzo.ai/t/*}, to: [{spiffe: spiffe://hanzo.ai/b, ports: [80]}]}\n    - {from: {spiffe: spiffe://hanzo.ai/*/evil}, to: [{spiffe: spiffe://hanzo.ai/b}], action: DENY}";
    let docs = [policy("p", rules)];
    let before = table(&docs, &[id("t/a")]);
    let after = table(&docs, &[id("t/a"), id("t/evil")]);
    let additions = after.additions_over(&before).expect("a superset");
    assert_eq!(additions.len(), 3);
    assert_eq!(additions[0].0, AllowKey::HEADER, "the shape of the denial is new");
    assert_eq!(additions[1].1.bits, ACTION_DENY, "a denial before what it denies");
    assert_eq!(after.additions_over(&after), Some(vec![]));
    assert_eq!(
        before.additions_over(&after),
        None,
        "an identity that left needs a swap"
    );
    assert_eq!(after.additions_over(&AllowTable::default()), None);
    assert_eq!(AllowTable::default().additions_over(&after), None);
    let off = Settings {
        allow_self: false,
        ..Settings::default()
    };
    assert_eq!(
        table_with(&docs, &[id("t/a")], &off).additions_over(&before),
        None
    );
    let cluster = Settings {
        cluster_cidrs: vec!["10.0.0.0/8".parse().expect("literal")],
        ..Settings::default()
    };
    assert_eq!(
        table_with(&docs, &[id("t/a")], &cluster).additions_over(&before),
        None
    );
    let identities = [id("t/a"), id("t/evil")].into_iter().collect();
    let next = super::compile(&set(&docs), &identities, &Settings::default(), 8).expect("it fits");
    assert_eq!(
        next.additions_over(&before),
        None,
        "another revision needs a swap"
    );
}

#[test]
fn port_ranges_are_blocks() {
    let rule = |ports: &str| {
        let text = format!(
            "    - {{from: {{spiffe: spiffe://hanzo.ai/a}}, to: [{{spiffe: spiffe://hanzo.ai/b, ports: [{ports}]}}]}}"
        );
        table(&[policy("p", &text)], &[])
    };
    assert_eq!(rule("1-65535").len(), 61);
    assert_eq!(rule("8000-8015").len(), 2);
    assert_eq!(rule("'8000-8007', 8008, '8009-8015'").len(), 2);
    let table = rule("8000-8100");
    let allowed = |port| tcp(&table, id("a").number(), id("b").number(), port).allowed;
    assert!(!allowed(7999) && allowed(8000) && allowed(8057) && allowed(8100) && !allowed(8101));
}

#[test]
fn the_listing_names_everyone() {
    let rules = "    - {from: {cidr: 10.0.0.0/8}, to: [{spiffe: '*', ports: [8000-8015], protocol: UDP}]}\n    - {from: {spiffe: spiffe://hanzo.ai/a}, to: [{entity: kube-apiserver}], rawSockets: true}";
    let listing = table(&[policy("p", rules)], &[]).to_string();
    let lines: Vec<&str> = listing.lines().collect();
    assert_eq!(
        lines,
        [
            "builtin/self",
            "builtin/host",
            "default DENY",
            "ALLOW cidr:10.0.0.0/8 -> * UDP 8000-8015 by p/rule-1",
            "ALLOW spiffe://hanzo.ai/a -> kube-apiserver TCP every port by p/rule-2",
            "ALLOW spiffe://hanzo.ai/a raw sockets by p/rule-2",
        ]
    );
}
