// SPDX-License-Identifier: Apache-2.0
//! Parts of rules that nothing used.

use std::collections::BTreeSet;

use super::super::{id, policy, set};
use super::{PARTIES, flow};
use crate::policy::{Settings, compile, unused};
use crate::spiffe_id::SpiffeId;

/// What of a rule from `x/a` is idle, when `x/a` reached `x/b` at these TCP ports.
fn idle(rule: &str, used: &[u16], opened: Option<&[&str]>) -> Vec<String> {
    let rules = format!("    - {{from: {{spiffe: 'spiffe://hanzo.ai/k8s/x/a'}}, {rule}}}");
    let policy = set(&[policy("p", &rules)]);
    let workloads = [id("k8s/x/a"), id("k8s/x/b")].into();
    let table = compile(&policy, &workloads, &Settings::default(), 1).expect("it fits");
    let flows: Vec<_> = used
        .iter()
        .map(|port| flow(PARTIES[0], PARTIES[1], *port, 6))
        .collect();
    let opened: Option<BTreeSet<SpiffeId>> = opened.map(|names| names.iter().map(|name| id(name)).collect());
    unused(&policy, &table, &flows, opened.as_ref())
        .iter()
        .map(|unused| unused.target.clone().unwrap_or_else(|| "all".to_owned()))
        .collect()
}

#[test]
fn ports_and_ends_of_ranges_that_nothing_used_are_named() {
    let to = |ports: &str| format!("to: [{{spiffe: 'spiffe://hanzo.ai/k8s/x/b', ports: [{ports}]}}]");
    let b = |ports: &str| vec![format!("spiffe://hanzo.ai/k8s/x/b TCP {ports}")];
    assert_eq!(idle(&to("5432, 22"), &[5432], None), b("22"));
    assert_eq!(idle(&to("5432, 22"), &[5432, 22], None), [""; 0]);
    assert_eq!(idle(&to("5432, 22"), &[], None), ["all"]);
    assert_eq!(
        idle(&to("'8000-8100'"), &[8005, 8050, 9000], None),
        b("8000-8004, 8051-8100")
    );
    assert_eq!(
        idle(&to("'8000-8100', 1, '2-3'"), &[8000, 3], None),
        b("8001-8100, 1, 2")
    );
    assert_eq!(idle(&to("'1-65535'"), &[1, 65535], None), [""; 0]);
    // Every port is not written out, and so is no port of it.
    assert_eq!(
        idle("to: [{spiffe: 'spiffe://hanzo.ai/k8s/x/b'}]", &[80], None),
        [""; 0]
    );
}

#[test]
fn a_right_to_raw_sockets_is_used_by_who_opens_them() {
    let alone = "rawSockets: true";
    assert_eq!(idle(alone, &[], None), [""; 0], "nobody knows");
    assert_eq!(idle(alone, &[], Some(&["k8s/x/b"])), ["all"]);
    assert_eq!(idle(alone, &[], Some(&["k8s/x/a"])), [""; 0]);
    let beside = "rawSockets: true, to: [{spiffe: 'spiffe://hanzo.ai/k8s/x/b', ports: [80]}]";
    assert_eq!(idle(beside, &[80], Some(&[])), ["raw sockets"]);
    assert_eq!(
        idle(beside, &[], Some(&["k8s/x/a"])),
        ["spiffe://hanzo.ai/k8s/x/b TCP 80"]
    );
    assert_eq!(idle(beside, &[], Some(&[])), ["all"]);
}
