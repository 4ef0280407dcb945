// SPDX-License-Identifier: Apache-2.0
//! Who speaks for which addresses, whatever others claim.

use super::*;

const PATTERN: &str = "spiffe://hanzo.ai/zt-agent/nodes/{node}";

fn neighbour(name: &str, nets: &[&str]) -> Neighbour {
    Neighbour {
        name: name.into(),
        address: format!("{name}:8056").into(),
        speaks_for: nets.iter().map(|net| net.parse().expect("literal")).collect(),
        created: 0,
        says: Vec::new(),
        identities: vec![Pattern::parse("spiffe://hanzo.ai/db/*").expect("literal")],
    }
}

/// One that says of itself where it is.
fn says(name: &str, nets: &[&str], addresses: &[&str]) -> Neighbour {
    Neighbour {
        says: addresses.iter().map(|address| ip(address)).collect(),
        ..neighbour(name, nets)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("literal")
}

/// Of which of these addresses a node is believed, and which of those are disputed.
fn about(roster: &Roster, node: &str, addresses: &[&str]) -> Vec<(bool, bool)> {
    let speaker = roster.get(node).expect("a node");
    let of = |address: &&str| (speaker.speaks_for(ip(address)), speaker.is_disputed(ip(address)));
    addresses.iter().map(of).collect()
}

#[test]
fn a_node_speaks_for_its_own_addresses_and_is_known_by_its_agent() {
    let nodes = [
        neighbour("one", &["10.1.0.0/24"]),
        neighbour("two", &["10.2.0.0/24", "fd00:2::/64"]),
    ];
    let roster = Roster::new(nodes, PATTERN, "one", &[]).expect("a roster");
    assert_eq!(roster.iter().count(), 1, "itself is no other node");
    let id = |text: &str| SpiffeId::parse(text).expect("literal");
    let two = roster
        .of_agent(&id("spiffe://hanzo.ai/zt-agent/nodes/two"))
        .expect("known");
    for (address, own) in [("10.2.0.7", true), ("fd00:2::1", true), ("10.1.0.7", false)] {
        assert_eq!(two.speaks_for(ip(address)), own, "{address}");
    }
    assert!(two.may_say(&id("spiffe://hanzo.ai/db/main")));
    assert!(!two.may_say(&id("spiffe://hanzo.ai/web/main")));
    assert!(
        roster
            .of_agent(&id("spiffe://hanzo.ai/zt-agent/nodes/three"))
            .is_none()
    );
}

#[test]
fn in_a_list_an_address_has_one_node() {
    let shared = |nets: [&[&str]; 3]| {
        let names = ["a", "b", "c"];
        let nodes = names.iter().zip(nets).map(|(name, nets)| neighbour(name, nets));
        let roster = Roster::new(nodes, PATTERN, "me", &[]).expect("a roster");
        roster.undisputed().err()
    };
    assert_eq!(
        shared([&["10.0.0.0/24"], &["10.0.1.0/24"], &["10.0.2.1/32"]]),
        None
    );
    assert_eq!(
        shared([&["10.0.0.0/16", "10.0.0.0/24"], &["10.1.0.0/24"], &[]]),
        None,
        "of one node"
    );
    for nets in [
        [&["10.0.0.0/24"][..], &["10.0.0.0/24"], &[]],
        [&["10.0.0.0/16"], &["10.0.7.0/24"], &[]],
        [&["10.0.7.0/24"], &[], &["10.0.0.0/16"]],
        // What lies between hides nothing.
        [&["10.0.0.0/16", "10.0.3.0/24"], &["10.0.7.1/32"], &[]],
    ] {
        assert!(
            matches!(shared(nets), Some(RosterError::Shared { .. })),
            "{nets:?}"
        );
    }
    let twice = Roster::new([neighbour("a", &[]), neighbour("a", &[])], PATTERN, "me", &[]);
    assert_eq!(twice, Err(RosterError::Twice("a".into())));
    let odd = Roster::new([neighbour("a b", &[])], PATTERN, "me", &[]);
    assert!(matches!(odd, Err(RosterError::Agent { .. })));
}

#[test]
fn what_two_claim_with_equal_right_is_nobodys_and_all_else_is_theirs() {
    let nodes = [
        neighbour("a", &["10.1.0.0/24", "192.0.2.1/32"]),
        neighbour("b", &["10.2.0.0/24", "10.1.0.128/25", "192.0.2.1/32"]),
        neighbour("c", &["10.3.0.0/24"]),
    ];
    let roster = Roster::new(nodes, PATTERN, "me", &[]).expect("a roster");
    let asked = ["10.1.0.5", "10.1.0.200", "192.0.2.1", "10.2.0.5"];
    let (own, disputed, not) = ((true, false), (true, true), (false, false));
    assert_eq!(about(&roster, "a", &asked), [own, disputed, disputed, not]);
    assert_eq!(about(&roster, "b", &asked), [not, disputed, disputed, own]);
    assert_eq!(about(&roster, "c", &["10.3.0.5", "10.1.0.5"]), [own, not]);
    let of = |dispute: &Dispute| {
        (
            dispute.net.to_string(),
            dispute.owner.clone(),
            dispute.claimants.len(),
        )
    };
    let networks = |node: &str| {
        let speaker = roster.get(node).expect("a node");
        speaker.alone_in(&speaker.networks())
    };
    let texts = |nets: Vec<IpNet>| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        texts(networks("a")),
        ["10.1.0.0/25"],
        "what is not disputed of it"
    );
    assert_eq!(texts(networks("b")), ["10.2.0.0/24"]);
    let disputes: Vec<_> = roster.disputes().iter().map(of).collect();
    assert_eq!(
        disputes,
        [
            ("10.1.0.128/25".to_owned(), None, 2),
            ("192.0.2.1/32".to_owned(), None, 2)
        ]
    );
}

#[test]
fn what_a_node_says_of_itself_takes_nothing_from_whom_it_was_given() {
    let nodes = || {
        [
            neighbour("me", &["10.9.0.0/24"]),
            says("a", &["10.1.0.0/24"], &["192.0.2.1", "192.0.2.9"]),
            // It would be one of node a's pods, and node a and node c.
            says(
                "evil",
                &["10.2.0.0/24"],
                &["192.0.2.2", "10.1.0.7", "192.0.2.1", "192.0.2.3"],
            ),
            neighbour("c", &["192.0.2.3/32"]),
        ]
    };
    let roster = Roster::new(nodes(), PATTERN, "me", &[]).expect("a roster");
    let asked = ["10.1.0.7", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.9"];
    let (own, disputed, not) = ((true, false), (true, true), (false, false));
    assert_eq!(about(&roster, "a", &asked), [own, disputed, not, not, own]);
    assert_eq!(about(&roster, "evil", &asked), [not, disputed, own, not, not]);
    assert_eq!(about(&roster, "c", &asked), [not, not, not, own, not]);
    let evil = roster.get("evil").expect("a node");
    let named: Vec<String> = evil.own_addresses().map(|address| address.to_string()).collect();
    assert_eq!(
        named,
        ["192.0.2.2", "192.0.2.1"],
        "as far as it is asked who is there"
    );
    let named = roster.disputes().iter().map(|dispute| dispute.owner.as_deref());
    assert_eq!(named.collect::<Vec<_>>(), [Some("a"), None, Some("c")]);
}

#[test]
fn what_is_this_nodes_is_no_other_ones_whatever_is_claimed() {
    let nodes = || {
        [
            says("me", &["10.9.0.0/24"], &["192.0.2.9"]),
            // All there is, one address of this node's, and one of its interfaces'.
            says("a", &["0.0.0.0/0"], &["192.0.2.9", "172.17.0.1"]),
            neighbour("b", &["10.9.0.7/32"]),
        ]
    };
    let roster = Roster::new(nodes(), PATTERN, "me", &[ip("172.17.0.1")]).expect("a roster");
    for node in ["a", "b"] {
        let asked = ["10.9.0.7", "192.0.2.9", "172.17.0.1"];
        let believed = about(&roster, node, &asked).into_iter();
        assert!(believed.map(|(speaks, _)| speaks).all(|speaks| !speaks), "{node}");
    }
    assert_eq!(about(&roster, "a", &["10.7.0.1"]), [(true, false)]);
    let owners = roster.disputes().iter().map(|dispute| dispute.owner.as_deref());
    assert!(owners.clone().count() > 0 && owners.clone().all(|owner| owner == Some("me")));
    assert!(roster.undisputed().is_err());
}
