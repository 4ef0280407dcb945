// SPDX-License-Identifier: Apache-2.0
//! Connections that were seen are judged by whom a policy knows at their ends.

use std::collections::BTreeSet;

use super::super::{policy, set};
use super::{PARTIES, flow};
use crate::policy::{SeenFlow, Settings, Undecided, compile};

#[test]
fn ends_without_a_name_are_looked_up_by_their_address() {
    let rules = "    - {from: {spiffe: 'spiffe://hanzo.ai/k8s/x/a'}, to: [{cidr: 10.0.0.0/8}]}";
    let policy = set(&[policy("p", rules)]);
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
