// SPDX-License-Identifier: Apache-2.0
//! When the API is asked about pods of other nodes as well.

use super::*;
use crate::identity::peers::Neighbour;

fn roster(names: &[&str]) -> Roster {
    let neighbours = names.iter().map(|name| Neighbour {
        name: (*name).into(),
        address: "192.0.2.1:8056".into(),
        speaks_for: Vec::new(),
        created: 0,
        says: Vec::new(),
        identities: Vec::new(),
    });
    Roster::new(neighbours, "spiffe://hanzo.ai/agents/{node}", "me", &[]).expect("a roster")
}

/// What others are asked for after so long.
fn wanted(health: &Health, asked: bool, after: Duration) -> bool {
    let wanted = health.others_wanted(asked, Instant::now() + after);
    assert_eq!(health.status().asked.is_some(), wanted, "it is said why");
    wanted
}

const SOON: Duration = Duration::from_secs(1);

#[test]
fn others_are_asked_until_all_nodes_are_heard() {
    let health = Health::default();
    assert!(wanted(&health, true, SOON) && wanted(&health, false, SOON));
    // Whatever is known of them is known at once with which there are.
    health.knows(&roster(&["one", "two"]));
    assert!(wanted(&health, true, SOON) && wanted(&health, false, SOON));
    health.stands("one", State::Connected, None);
    // What the last agent knew of it is not what it says.
    health.stands("two", State::Stale, None);
    assert!(wanted(&health, true, SOON) && wanted(&health, true, WHOLE_FOR * 9));
    health.stands("two", State::Connected, None);
    assert!(wanted(&health, true, SOON), "they may be gone in a moment");
    assert!(!wanted(&health, true, SOON + WHOLE_FOR));
    assert!(!wanted(&health, false, SOON));
}

#[test]
fn others_are_asked_before_what_was_heard_last_is_forgotten() {
    let health = Health::default();
    health.knows(&roster(&["one", "two"]));
    for node in ["one", "two"] {
        health.stands(node, State::Connected, None);
    }
    assert!(!wanted(&health, false, SOON));
    health.stands("two", State::Stale, None);
    assert!(!wanted(&health, false, SOON), "it is given time");
    assert!(wanted(&health, false, MISSING_FOR + SOON));
    assert!(
        wanted(&health, true, SOON),
        "whoever is asked is asked until it is back"
    );
    // One that is new has not been heard of by anybody.
    health.stands("two", State::Connected, None);
    assert!(!wanted(&health, false, SOON));
    health.knows(&roster(&["one", "two", "three"]));
    assert!(wanted(&health, false, SOON));
}

#[test]
fn who_is_heard_and_not_believed_has_others_asked() {
    let health = Health::default();
    health.knows(&roster(&["one"]));
    health.stands("one", State::Connected, None);
    assert!(!wanted(&health, false, MISSING_FOR * 2));
    health.disbelieved("one", true);
    assert!(!wanted(&health, false, SOON) && wanted(&health, false, MISSING_FOR + SOON));
    assert!(wanted(&health, true, WHOLE_FOR * 9), "as long as it is so");
    health.disbelieved("one", false);
    let silent = Counts {
        silent: 3,
        ..Counts::default()
    };
    health.counts("one", silent);
    assert!(wanted(&health, false, MISSING_FOR + SOON) && wanted(&health, true, WHOLE_FOR * 9));
    let asked = health.status().asked.expect("it is said");
    assert!(asked.contains("one") && asked.contains('3'), "{asked}");
    health.counts("one", Counts::default());
    assert!(!wanted(&health, false, WHOLE_FOR));
}

#[test]
fn a_node_that_no_agent_can_tell_of_has_others_asked_for_good() {
    use crate::identity::peers::{Agents, ClusterNode};
    let node = |name: &str, addresses: &[&str]| ClusterNode {
        name: name.into(),
        created: 0,
        addresses: addresses
            .iter()
            .map(|text| text.parse().expect("literal"))
            .collect(),
        networks: Vec::new(),
    };
    let agents = Agents {
        pattern: "spiffe://hanzo.ai/agents/{node}".to_owned(),
        own: "me".to_owned(),
        port: 8056,
    };
    let nodes = [
        node("me", &["192.0.2.1"]),
        node("one", &["192.0.2.2"]),
        node("nowhere", &[]),
    ];
    let health = Health::default();
    health.knows(&Roster::of_cluster(nodes.iter(), &agents, &[]).expect("a roster"));
    health.stands("one", State::Connected, None);
    assert!(wanted(&health, false, SOON) && wanted(&health, true, WHOLE_FOR * 9));
    health.knows(&Roster::of_cluster(nodes[..2].iter(), &agents, &[]).expect("a roster"));
    assert!(!wanted(&health, false, SOON));
    // One for which there is no number left is never heard.
    health.knows(&roster(&["one", "more"]));
    health.stands("more", State::Unknown, Some("there are too many"));
    assert!(wanted(&health, false, SOON));
}
