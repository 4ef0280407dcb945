// SPDX-License-Identifier: Apache-2.0
//! The nodes of a cluster, as their Node objects describe them, and how much of that counts. Pure.
//!
//! Whoever has taken a node over writes its status, and may make its Node anew with networks of its choice. So a network counts
//! only where this node has been given one as well, and one that holds what several other nodes have counts for nothing: their
//! networks, where nodes are that there were before, and where most of all are. What a few who came later say of themselves takes no
//! network from anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Neighbour, Roster, RosterError, agent_id};

/// Other nodes of which something may lie in the network of a node: one that claims it in vain, and no more.
const MOST_INSIDE: usize = 1;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNode {
    /// Its name.
    pub name: Arc<str>,
    /// Since when there is this Node, Unix seconds: the API server writes it, once.
    pub created: i64,
    /// Where it is, as its kubelet says. Its agent is at the first one.
    pub addresses: Vec<IpAddr>,
    /// The networks of its pods, which are given once.
    pub networks: Vec<IpNet>,
}

/// What other agents are known by.
#[derive(Clone, Debug)]
pub struct Agents {
    /// How the SPIFFE ID of a node's agent is made.
    pub pattern: String,
    /// This node.
    pub own: String,
    /// Where they listen, on every node.
    pub port: u16,
}

impl Roster {
    /// The nodes of a cluster other than this one; `here` are addresses of this machine. One that can have no agent, and a network
    /// that counts for nothing, costs itself and nothing else: it is left out.
    pub fn of_cluster<'n>(
        nodes: impl Iterator<Item = &'n ClusterNode> + Clone,
        agents: &Agents,
        here: &[IpAddr],
    ) -> Result<Self, RosterError> {
        let is_own = |node: &ClusterNode| *node.name == *agents.own;
        let given = nodes
            .clone()
            .any(|node| is_own(node) && !node.networks.is_empty());
        let inside = Inside::new(nodes.clone());
        let mut left_out: BTreeMap<Arc<str>, String> = BTreeMap::new();
        let mut neighbours = Vec::new();
        for node in nodes {
            let mut leave_out = |why: String| left_out.insert(Arc::clone(&node.name), why);
            let mut networks = node.networks.clone();
            if !is_own(node) {
                if let Err(error) = agent_id(&agents.pattern, &node.name) {
                    leave_out(format!("its agent can have no SPIFFE ID: {error}"));
                    continue;
                }
                if node.addresses.is_empty() {
                    leave_out("it has no `InternalIP` that others reach".to_owned());
                    continue;
                }
                if !given && !networks.is_empty() {
                    networks.clear();
                    leave_out("its `podCIDRs` count for nothing, as this node has none".to_owned());
                }
                let wide = networks.extract_if(.., |net| inside.is_wide(net, node));
                if let Some(net) = wide.last() {
                    leave_out(format!(
                        "its network {net} holds what several other nodes have, and counts for nothing"
                    ));
                }
            }
            let at = node
                .addresses
                .first()
                .copied()
                .unwrap_or(IpAddr::from([0, 0, 0, 0]));
            neighbours.push(Neighbour {
                name: Arc::clone(&node.name),
                address: SocketAddr::new(at, agents.port).to_string().into(),
                speaks_for: networks,
                created: node.created,
                says: node.addresses.clone(),
                identities: Vec::new(),
            });
        }
        let roster = Self::new(neighbours, &agents.pattern, &agents.own, here)?;
        Ok(Self { left_out, ..roster })
    }
}

/// Something that a node has.
struct Has<'n> {
    length: u8,
    name: &'n Arc<str>,
    /// Of an address, which its kubelet writes: since when there is the node.
    said_since: Option<i64>,
}

/// What nodes have, in the order of addresses.
struct Inside<'n> {
    all: BTreeMap<IpAddr, Vec<Has<'n>>>,
    nodes: usize,
}

impl<'n> Inside<'n> {
    fn new(nodes: impl Iterator<Item = &'n ClusterNode>) -> Self {
        let mut inside = Self {
            all: BTreeMap::new(),
            nodes: 0,
        };
        for node in nodes {
            inside.nodes += 1;
            // One address of each: a node may say any number of them.
            let first = node.addresses.first().map(|address| IpNet::from(*address));
            let networks = node.networks.iter().map(|net| (*net, None));
            for (net, said_since) in networks.chain(first.map(|net| (net, Some(node.created)))) {
                inside.all.entry(net.network()).or_default().push(Has {
                    length: net.prefix_len(),
                    name: &node.name,
                    said_since,
                });
            }
        }
        inside
    }

    /// Whether a network of this node holds what several others have, or where most of all are.
    fn is_wide(&self, net: &IpNet, node: &ClusterNode) -> bool {
        let within = self.all.range(net.network()..=net.broadcast());
        let inside = within.flat_map(|(_, of)| of);
        let inside = inside.filter(|has| has.length >= net.prefix_len() && *has.name != node.name);
        let (mut found, mut said) = (BTreeSet::new(), 0);
        for has in inside {
            said += usize::from(has.said_since.is_some());
            if has.said_since.is_none_or(|since| since <= node.created) {
                found.insert(has.name);
            }
            if found.len() > MOST_INSIDE || 2 * said > self.nodes {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, created: i64, addresses: &[&str], networks: &[&str]) -> ClusterNode {
        ClusterNode {
            name: name.into(),
            created,
            addresses: addresses
                .iter()
                .map(|text| text.parse().expect("literal"))
                .collect(),
            networks: networks
                .iter()
                .map(|text| text.parse().expect("literal"))
                .collect(),
        }
    }

    fn roster(nodes: &[ClusterNode]) -> Roster {
        let agents = Agents {
            pattern: "spiffe://hanzo.ai/agents/{node}".to_owned(),
            own: "me".to_owned(),
            port: 8056,
        };
        Roster::of_cluster(nodes.iter(), &agents, &[]).expect("a roster")
    }

    /// A cluster of four, and whoever else.
    fn with(others: &[ClusterNode]) -> Roster {
        let mut nodes = vec![
            node("me", 1, &["192.0.2.1"], &["10.1.0.0/24"]),
            node("a", 2, &["192.0.2.2"], &["10.2.0.0/24"]),
            node("b", 3, &["192.0.2.3"], &["10.3.0.0/24"]),
            node("c", 90, &["192.0.2.4"], &["10.4.0.0/24"]),
        ];
        nodes.extend_from_slice(others);
        roster(&nodes)
    }

    fn speaks(roster: &Roster, name: &str, address: &str) -> bool {
        let address = address.parse().expect("literal");
        let speaker = roster.get(name);
        speaker.is_some_and(|speaker| speaker.speaks_for(address) && !speaker.is_disputed(address))
    }

    fn all_have_their_own(roster: &Roster) -> bool {
        [("a", 2), ("b", 3), ("c", 4)].iter().all(|(name, number)| {
            let own = [format!("10.{number}.0.7"), format!("192.0.2.{number}")];
            own.iter().all(|address| speaks(roster, name, address))
        })
    }

    #[test]
    fn a_network_around_those_of_others_takes_nothing_from_them() {
        assert!(all_have_their_own(&with(&[])));
        for networks in [
            &["0.0.0.0/1", "128.0.0.0/1"][..],
            &["0.0.0.0/0"],
            &["10.0.0.0/8"],
            &["192.0.2.0/24"],
        ] {
            for created in [0, 50, 100] {
                let roster = with(&[node("evil", created, &["192.0.2.66"], networks)]);
                assert!(
                    all_have_their_own(&roster),
                    "{networks:?} at {created}: {roster:?}"
                );
                assert!(roster.left_out().contains_key("evil"));
                assert!(speaks(&roster, "evil", "192.0.2.66"), "it is one of them");
            }
        }
    }

    #[test]
    fn who_comes_later_takes_nothing_from_who_was_there() {
        for networks in [&["10.2.0.0/24"][..], &["10.2.0.128/25"], &["10.2.0.7/32"]] {
            let roster = with(&[node("evil", 100, &["192.0.2.66"], networks)]);
            assert!(all_have_their_own(&roster), "{networks:?}");
            assert!(!speaks(&roster, "evil", "10.2.0.200"));
            assert_eq!(roster.disputes().len(), 1);
        }
    }

    #[test]
    fn who_says_to_be_in_the_network_of_an_older_node_takes_it_from_nobody() {
        for count in 1..4 {
            let evil: Vec<ClusterNode> = (1..=count)
                .map(|number| {
                    let address = format!("10.2.0.{number}");
                    node(&format!("evil-{number}"), 100, &[&address], &[])
                })
                .collect();
            let roster = with(&evil);
            assert!(all_have_their_own(&roster), "{count}: {roster:?}");
            assert!(roster.left_out().is_empty(), "{roster:?}");
            assert!(!speaks(&roster, "evil-1", "10.2.0.1"), "{count}");
        }
    }

    #[test]
    fn where_this_node_has_been_given_no_network_those_of_others_count_for_nothing() {
        let roster = roster(&[
            node("me", 1, &["192.0.2.1"], &[]),
            node("a", 2, &["192.0.2.2"], &[]),
            node("evil", 3, &["192.0.2.66"], &["192.0.2.2/32"]),
        ]);
        assert!(speaks(&roster, "a", "192.0.2.2"));
        assert!(roster.disputes().is_empty());
        let left_out: Vec<_> = roster.left_out().keys().map(|name| &**name).collect();
        assert_eq!(left_out, ["evil"]);
    }

    #[test]
    fn who_can_have_no_agent_is_left_out_and_named() {
        let roster = with(&[
            node("nowhere", 5, &[], &["10.5.0.0/24"]),
            node("odd name", 6, &["192.0.2.6"], &["10.6.0.0/24"]),
        ]);
        assert_eq!(roster.iter().count(), 3);
        let left_out: Vec<_> = roster.left_out().keys().map(|name| &**name).collect();
        assert_eq!(left_out, ["nowhere", "odd name"]);
    }
}
