// SPDX-License-Identifier: Apache-2.0
//! Names with one number, and groups that a table has no room for: they cost nobody else anything.

use std::collections::BTreeSet;

use zt_common::entry::Flow;
use zt_common::identity;

use super::{id, policy, set};
use crate::policy::{AllowTable, Group, Groups, Member, Party, Protocol, Settings, compile, compile_with};
use crate::spiffe_id::SpiffeId;

const WILD: &str =
    "    - {from: {spiffe: 'spiffe://hanzo.ai/w/*'}, to: [{spiffe: 'spiffe://hanzo.ai/db', ports: [5432]}]}";

fn numbered(name: &str, number: u64) -> SpiffeId {
    SpiffeId::numbered(&format!("spiffe://hanzo.ai/{name}"), number)
}

fn compiled(rules: &str, identities: &[&SpiffeId]) -> AllowTable {
    let identities: BTreeSet<SpiffeId> = identities.iter().copied().cloned().collect();
    compile(&set(&[policy("p", rules)]), &identities, &Settings::default(), 1).expect("the rest compiles")
}

fn allows(table: &AllowTable, source: &SpiffeId) -> bool {
    let db = id("db");
    let decision = table.evaluate(Party::Spiffe(source), Party::Spiffe(&db), 5432, Protocol::Tcp);
    decision.allowed
}

#[test]
fn two_names_with_one_number_are_nobody_and_the_rest_compiles() {
    let (one, other) = (numbered("w/one", 1 << 40), numbered("w/other", 1 << 40));
    let third = id("w/third");
    let table = compiled(WILD, &[&one, &other, &third]);
    assert!(allows(&table, &third) && !allows(&table, &one) && !allows(&table, &other));
    assert_eq!(table.number(Party::Spiffe(&one)), identity::UNKNOWN);
    assert!(!table.knows(&one) && table.knows(&third));
    assert_eq!(table.alike().get(&one), Some(&other));
    assert_eq!(table.alike().get(&other), Some(&one));
    assert!(table.entries().all(|(key, _)| key.source != 1 << 40));
    // Alone it is somebody.
    let table = compiled(WILD, &[&one, &third]);
    assert!(allows(&table, &one) && table.alike().is_empty());
}

#[test]
fn a_name_that_a_policy_writes_is_not_taken_from_it() {
    let db = id("db");
    let impostor = numbered("w/impostor", db.number());
    let rules = format!(
        "{WILD}\n    - {{from: {{spiffe: 'spiffe://hanzo.ai/db'}}, to: [{{spiffe: 'spiffe://hanzo.ai/x', ports: [1]}}]}}"
    );
    let table = compiled(&rules, &[&impostor, &db]);
    let x = id("x");
    let to_x = |source: &SpiffeId| {
        let decision = table.evaluate(Party::Spiffe(source), Party::Spiffe(&x), 1, Protocol::Tcp);
        decision.allowed
    };
    assert!(to_x(&db) && !to_x(&impostor) && !allows(&table, &impostor));
    assert_eq!(table.number(Party::Spiffe(&db)), db.number());
    assert_eq!(table.alike().get(&impostor), Some(&db));
}

#[test]
fn whoever_stands_behind_an_address_with_such_a_name_is_nobody() {
    let (one, other) = (numbered("w/one", 1 << 40), numbered("w/other", 1 << 40));
    let rules =
        "    - {from: {spiffe: 'spiffe://hanzo.ai/a'}, to: [{spiffe: 'spiffe://hanzo.ai/w/*', ports: [80]}]}";
    let group = |name: &str, members: &[&SpiffeId]| Group {
        name: name.into(),
        protocol: 6,
        port: 80,
        members: members
            .iter()
            .map(|id| (Member::Workload((*id).clone()), 80))
            .collect(),
    };
    let mut groups = Groups::default();
    let tainted = groups.add(group("service:n/tainted", &[&one, &id("w/x")]));
    let clean = groups.add(group("service:n/clean", &[&id("w/x"), &id("w/y")]));
    let docs = [policy("p", rules)];
    let identities = BTreeSet::from([other]);
    let table = compile_with(&set(&docs), &identities, &groups, &Settings::default(), 1).expect("compiles");
    let allowed = |destination: u64| {
        let flow = Flow {
            source: id("a").number(),
            destination,
            port: 80,
            protocol: 6,
        };
        table.decide(&flow).allowed
    };
    assert!(allowed(clean) && !allowed(tainted));
}
