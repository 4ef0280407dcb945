// SPDX-License-Identifier: Apache-2.0
//! Which other nodes there are, where their agents are reached, and what each may speak about.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::spiffe_id::{Pattern, SpiffeId, SpiffeIdError};

/// What stands for the node's name in the pattern of agents' SPIFFE IDs.
const NODE: &str = "{node}";

/// Another node, as the configuration or the cluster describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its name, as its agent's `node` says it.
    pub name: Arc<str>,
    /// Where its agent listens: an address or name, and a port.
    pub address: Arc<str>,
    /// The addresses that it speaks for.
    pub speaks_for: Vec<IpNet>,
    /// Identities that it may tell of without showing an SVID.
    pub identities: Vec<Pattern>,
}

/// What one node may say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// The node.
    pub neighbour: Neighbour,
    /// Whose certificate its agent shows.
    pub agent: SpiffeId,
}

impl Speaker {
    /// Whether an address is one of its own.
    pub fn speaks_for(&self, address: IpAddr) -> bool {
        self.neighbour.speaks_for.iter().any(|net| net.contains(&address))
    }

    /// Whether it may tell of an identity without an SVID.
    pub fn may_say(&self, id: &SpiffeId) -> bool {
        self.neighbour
            .identities
            .iter()
            .any(|pattern| pattern.matches(id))
    }
}

/// Why there is no roster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// A node is there twice.
    #[error("the node `{0}` is listed twice")]
    Twice(Arc<str>),
    /// Two nodes speak for the same addresses.
    #[error("`{one}` and `{other}` both speak for {net}: an address has one node")]
    Shared {
        /// One of them.
        one: Arc<str>,
        /// The other one.
        other: Arc<str>,
        /// The smaller of their networks.
        net: IpNet,
    },
    /// With its name in it the pattern is no SPIFFE ID.
    #[error("the agent of `{node}` has no SPIFFE ID by `{pattern}`: {source}")]
    Agent {
        /// The node.
        node: Arc<str>,
        /// The pattern.
        pattern: String,
        /// What is wrong with the ID.
        source: SpiffeIdError,
    },
}

/// The SPIFFE ID of the agent of a node.
pub fn agent_id(pattern: &str, node: &str) -> Result<SpiffeId, SpiffeIdError> {
    SpiffeId::parse(&pattern.replace(NODE, node))
}

/// All other nodes, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    speakers: BTreeMap<Arc<str>, Arc<Speaker>>,
    by_agent: HashMap<SpiffeId, Arc<str>>,
}

impl Roster {
    /// The nodes other than `own`, whose agents' IDs follow `pattern`.
    pub fn new(
        neighbours: impl IntoIterator<Item = Neighbour>,
        pattern: &str,
        own: &str,
    ) -> Result<Self, RosterError> {
        let mut roster = Self::default();
        for neighbour in neighbours {
            if &*neighbour.name == own {
                continue;
            }
            let agent = agent_id(pattern, &neighbour.name).map_err(|source| RosterError::Agent {
                node: Arc::clone(&neighbour.name),
                pattern: pattern.to_owned(),
                source,
            })?;
            let name = Arc::clone(&neighbour.name);
            let speaker = Arc::new(Speaker { neighbour, agent });
            roster.by_agent.insert(speaker.agent.clone(), Arc::clone(&name));
            if roster.speakers.insert(Arc::clone(&name), speaker).is_some() {
                return Err(RosterError::Twice(name));
            }
        }
        roster.check_shared()?;
        Ok(roster)
    }

    /// Networks in order: one that another one has within it comes right before it, or before one that it has too.
    fn check_shared(&self) -> Result<(), RosterError> {
        let mut nets: Vec<(IpNet, &Arc<str>)> = Vec::new();
        for (name, speaker) in &self.speakers {
            let of = speaker.neighbour.speaks_for.iter();
            nets.extend(of.map(|net| (net.trunc(), name)));
        }
        nets.sort_by_key(|(net, _)| (net.network(), net.prefix_len()));
        let mut around: Option<(IpNet, &Arc<str>)> = None;
        for (net, name) in nets {
            match around {
                Some((outer, one)) if outer.contains(&net) => {
                    if one != name {
                        return Err(RosterError::Shared {
                            one: Arc::clone(one),
                            other: Arc::clone(name),
                            net,
                        });
                    }
                }
                _ => around = Some((net, name)),
            }
        }
        Ok(())
    }

    /// The nodes, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Speaker>)> {
        self.speakers.iter()
    }

    /// The node of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Speaker>> {
        self.speakers.get(name)
    }

    /// The node whose agent that is.
    pub fn of_agent(&self, agent: &SpiffeId) -> Option<&Arc<Speaker>> {
        self.speakers.get(self.by_agent.get(agent)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: &str = "spiffe://hanzo.ai/zt-agent/nodes/{node}";

    fn neighbour(name: &str, nets: &[&str]) -> Neighbour {
        Neighbour {
            name: name.into(),
            address: format!("{name}:8056").into(),
            speaks_for: nets.iter().map(|net| net.parse().expect("literal")).collect(),
            identities: vec![Pattern::parse("spiffe://hanzo.ai/db/*").expect("literal")],
        }
    }

    #[test]
    fn a_node_speaks_for_its_own_addresses_and_is_known_by_its_agent() {
        let nodes = [
            neighbour("one", &["10.1.0.0/24"]),
            neighbour("two", &["10.2.0.0/24", "fd00:2::/64"]),
        ];
        let roster = Roster::new(nodes, PATTERN, "one").expect("a roster");
        assert_eq!(roster.iter().count(), 1, "itself is no other node");
        let id = |text: &str| SpiffeId::parse(text).expect("literal");
        let two = roster
            .of_agent(&id("spiffe://hanzo.ai/zt-agent/nodes/two"))
            .expect("known");
        for (address, own) in [("10.2.0.7", true), ("fd00:2::1", true), ("10.1.0.7", false)] {
            assert_eq!(
                two.speaks_for(address.parse().expect("literal")),
                own,
                "{address}"
            );
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
    fn an_address_has_one_node() {
        let shared = |nets: [&[&str]; 3]| {
            let names = ["a", "b", "c"];
            let nodes = names.iter().zip(nets).map(|(name, nets)| neighbour(name, nets));
            Roster::new(nodes, PATTERN, "me").err()
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
        let twice = Roster::new([neighbour("a", &[]), neighbour("a", &[])], PATTERN, "me");
        assert_eq!(twice, Err(RosterError::Twice("a".into())));
        let odd = Roster::new([neighbour("a b", &[])], PATTERN, "me");
        assert!(matches!(odd, Err(RosterError::Agent { .. })));
    }
}
