// SPDX-License-Identifier: Apache-2.0
//! Which handshakes count, on whose way, and for how long.

use zt_common::address::Address;

use super::*;
use crate::audit::sample;
use crate::identity::peers::{Neighbour, Roster};

const PEER: u64 = identity::FIRST_WORKLOAD + 1;
const SECOND: i64 = 1_000_000_000;

fn node(name: &str, net: &str) -> Neighbour {
    Neighbour {
        name: name.into(),
        address: "192.0.2.1:8056".into(),
        speaks_for: vec![net.parse().expect("a network")],
        created: 0,
        says: Vec::new(),
        identities: Vec::new(),
    }
}

fn paths() -> Paths {
    let peers = Arc::new(Health::default());
    let nodes = [node("one", "10.244.1.0/24"), node("two", "10.244.2.0/24")];
    peers.knows(&Roster::new(nodes, "spiffe://hanzo.ai/agents/{node}", "me", &[]).expect("a roster"));
    Paths::new(Some(peers), Metrics::new())
}

/// A connection to a workload of node two that was answered as if it bore no option.
fn bare() -> Decision {
    Decision {
        destination: PEER,
        destination_address: Address::from_v4([10, 244, 2, 7]),
        proof: Proof::Absent,
        ..sample::decision()
    }
}

/// Somebody at an address of node two who bore none.
fn unproven() -> Decision {
    Decision {
        source: identity::UNKNOWN,
        source_address: Address::from_v4([10, 244, 2, 7]),
        destination_address: Address::from_v4([10, 244, 3, 7]),
        inbound: true,
        allowed: false,
        reason: Reason::ProofMissing,
        ..bare()
    }
}

fn counts(path: &PathStatus) -> (Option<&str>, &str, [u64; 3]) {
    let counts = [path.dropped, path.stripped, path.missing];
    (path.node.as_deref(), &path.network, counts)
}

#[test]
fn what_was_lost_is_told_by_node_and_by_how() {
    let paths = paths();
    let dropped = Decision {
        omitted: true,
        ..bare()
    };
    for decision in [bare(), dropped.clone(), dropped, unproven()] {
        paths.saw(&decision);
    }
    let list = paths.list();
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(counts(&list[0]), (Some("two"), "10.244.2.0/24", [2, 1, 1]));
    assert!(list[0].since <= list[0].last && list[0].since.0 > 0, "{list:?}");
}

#[test]
fn whoever_is_on_no_node_that_is_known_is_told_by_his_network() {
    let paths = paths();
    let omitted = |destination_address| Decision {
        destination: identity::WORLD,
        destination_address,
        omitted: true,
        ..bare()
    };
    paths.saw(&omitted(Address::from_v4([203, 0, 113, 9])));
    let v6: IpAddr = "2001:db8:1:2:3::4".parse().expect("an address");
    paths.saw(&omitted(v6.into()));
    let mut list = paths.list();
    list.sort_by(|one, other| one.network.cmp(&other.network));
    let found: Vec<_> = list.iter().map(counts).collect();
    assert_eq!(
        found,
        [
            (None, "2001:db8:1:2::/64", [1, 0, 0]),
            (None, "203.0.113.0/24", [1, 0, 0])
        ]
    );
}

#[test]
fn what_bears_no_option_in_the_usual_course_is_nobodys_loss() {
    let paths = paths();
    for (what, decision) in [
        (
            "who is proven",
            Decision {
                proof: Proof::Mutual,
                ..bare()
            },
        ),
        (
            "who proves after all",
            Decision {
                proof: Proof::Mutual,
                omitted: true,
                ..bare()
            },
        ),
        (
            "nobody answers",
            Decision {
                proof: Proof::Unanswered,
                omitted: true,
                ..bare()
            },
        ),
        (
            "no handshake bore any",
            Decision {
                proof: Proof::None,
                ..bare()
            },
        ),
        (
            "a process of the other node",
            Decision {
                destination: identity::REMOTE_NODE,
                ..bare()
            },
        ),
        (
            "a listener of this node that is older",
            Decision {
                destination_address: Address::from_v4([10, 244, 3, 9]),
                ..bare()
            },
        ),
        (
            "somebody of this node",
            Decision {
                source_address: Address::from_v4([10, 244, 3, 9]),
                ..unproven()
            },
        ),
        (
            "who is denied for something else",
            Decision {
                reason: Reason::NoRule,
                ..unproven()
            },
        ),
        (
            "a datagram",
            Decision {
                protocol: 17,
                ..bare()
            },
        ),
    ] {
        paths.saw(&decision);
        assert!(paths.list().is_empty(), "{what}");
    }
    // Without agents of other nodes there are no nodes.
    let alone = Paths::new(None, Metrics::new());
    alone.saw(&bare());
    assert!(alone.list().is_empty());
}

#[test]
fn a_way_is_forgotten_when_nothing_is_lost_on_it_any_more() {
    let paths = paths();
    let at = |second: i64| {
        paths.lost(
            OptionLoss::Stripped,
            IpAddr::from([10, 244, 2, 7]),
            second * SECOND,
        );
    };
    at(1);
    at(3000);
    let list = paths.list_at(6000 * SECOND);
    assert_eq!((list[0].since.0, list[0].last.0), (SECOND, 3000 * SECOND));
    assert_eq!(list[0].stripped, 2);
    // Nobody has looked meanwhile: it begins anew all the same.
    at(7000);
    let list = paths.list_at(7000 * SECOND);
    assert_eq!((list[0].since.0, list[0].stripped), (7000 * SECOND, 1));
    assert!(paths.list_at(10_601 * SECOND).is_empty());
}

#[test]
fn only_so_many_ways_are_kept_and_the_last_ones_first() {
    let paths = paths();
    for (second, third) in (1..).zip(0..=255_u8) {
        paths.lost(OptionLoss::Dropped, IpAddr::from([198, 51, third, 1]), second);
    }
    paths.lost(OptionLoss::Dropped, IpAddr::from([198, 51, 0, 2]), 1000);
    paths.lost(OptionLoss::Dropped, IpAddr::from([192, 0, 2, 1]), 1001);
    let list = paths.list_at(1001);
    assert_eq!(list.len(), MOST);
    let first: Vec<&str> = list.iter().take(3).map(|path| &*path.network).collect();
    assert_eq!(first, ["192.0.2.0/24", "198.51.0.0/24", "198.51.255.0/24"]);
    assert_eq!(list[1].dropped, 2);
    // The one that was seen longest ago has made room.
    assert!(list.iter().all(|path| path.network != "198.51.1.0/24"));
}
