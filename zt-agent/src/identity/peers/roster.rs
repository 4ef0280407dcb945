// SPDX-License-Identifier: Apache-2.0
//! Which other nodes there are, where their agents are reached, and what each may speak about.

mod cluster;
mod settle;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use self::cluster::{Agents, ClusterNode};
use self::settle::{minus, settle};
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
    /// The addresses that others have given to it.
    pub speaks_for: Vec<IpNet>,
    /// Since when there is this node, Unix seconds: what was given to two is the elder one's. The same for all in a list.
    pub created: i64,
    /// Addresses that it says are its own, which is worth less.
    pub says: Vec<IpAddr>,
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
    /// What of its addresses is another node's, or this one's, with a better claim.
    without: Vec<IpNet>,
    /// What of its addresses another node claims just as well.
    disputed: Vec<IpNet>,
}

impl Speaker {
    /// A node about whose addresses there is no dispute.
    pub fn new(neighbour: Neighbour, agent: SpiffeId) -> Self {
        Self {
            neighbour,
            agent,
            without: Vec::new(),
            disputed: Vec::new(),
        }
    }

    /// Whether an address is in a network that was given to it.
    pub fn was_given(&self, address: IpAddr) -> bool {
        let given = self.neighbour.speaks_for.iter().any(|net| net.contains(&address));
        given && !contains(&self.without, address)
    }

    /// Whether an address is one of its own.
    pub fn speaks_for(&self, address: IpAddr) -> bool {
        let says = self.neighbour.says.contains(&address) && !contains(&self.without, address);
        says || self.was_given(address)
    }

    /// Whether an address of its own is another node's just as well, and so nobody's.
    pub fn is_disputed(&self, address: IpAddr) -> bool {
        contains(&self.disputed, address)
    }

    /// The addresses of the node itself, among those that it speaks for.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let nets = self.neighbour.speaks_for.iter();
        let single = nets.filter(|net| net.prefix_len() == net.max_prefix_len());
        let single = single.map(|net| net.addr().to_canonical());
        let all = single.chain(self.neighbour.says.iter().copied());
        all.filter(|address| !contains(&self.without, *address))
    }

    /// The networks that it speaks for, but for those that are not its own as a whole.
    pub fn networks(&self) -> Vec<IpNet> {
        let said = self.neighbour.says.iter().map(|address| IpNet::from(*address));
        let all = self.neighbour.speaks_for.iter().map(IpNet::trunc).chain(said);
        all.filter(|net| !self.without.iter().any(|without| without.contains(net)))
            .collect()
    }

    /// What of these of its networks is its own alone.
    pub fn alone_in(&self, networks: &[IpNet]) -> Vec<IpNet> {
        let not_its: Vec<IpNet> = self.without.iter().chain(&self.disputed).copied().collect();
        let nets = self.networks().into_iter().filter(|net| networks.contains(net));
        nets.flat_map(|net| minus(net, &not_its)).collect()
    }

    /// Whether it may tell of an identity without an SVID.
    pub fn may_say(&self, id: &SpiffeId) -> bool {
        self.neighbour
            .identities
            .iter()
            .any(|pattern| pattern.matches(id))
    }
}

fn contains(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

/// Addresses that more than one node claims.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dispute {
    /// Which.
    pub net: IpNet,
    /// Whose they are: of this node, or of one to which others gave them; `None`: nobody's.
    pub owner: Option<Arc<str>>,
    /// Who claims them in vain.
    pub claimants: BTreeSet<Arc<str>>,
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

/// How good a claim to an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The node says so itself.
    Said,
    /// Others have given it to the node, which there is since then: who comes later takes nothing from anybody.
    Given(Reverse<i64>),
    /// It is this node's.
    Own,
}

/// What this node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Networks that were given to it.
    pub networks: Vec<IpNet>,
    /// Its own addresses: what it says, and those of its interfaces.
    pub addresses: BTreeSet<IpAddr>,
}

/// All other nodes, by name, and what this one has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    own: Own,
    speakers: BTreeMap<Arc<str>, Arc<Speaker>>,
    by_agent: HashMap<SpiffeId, Arc<str>>,
    disputes: Vec<Dispute>,
    left_out: BTreeMap<Arc<str>, String>,
}

impl Roster {
    /// The nodes other than `own`, whose agents' IDs follow `pattern`. What this node has, by its own entry and by `here`, is
    /// no other node's. What two others claim with equal right is nobody's, and all else is theirs. What was given to two is
    /// the elder one's, and what a node says of itself is worth less than what was given to another one.
    pub fn new(
        neighbours: impl IntoIterator<Item = Neighbour>,
        pattern: &str,
        own: &str,
        here: &[IpAddr],
    ) -> Result<Self, RosterError> {
        let mut speakers: BTreeMap<Arc<str>, Speaker> = BTreeMap::new();
        let own: Arc<str> = Arc::from(own);
        let mut claims: Vec<(IpNet, Rank, Arc<str>)> = Vec::new();
        let here = here.iter().map(IpAddr::to_canonical);
        let mut of_this = Own {
            networks: Vec::new(),
            addresses: here.collect(),
        };
        let addresses = of_this.addresses.iter().map(|address| IpNet::from(*address));
        claims.extend(addresses.map(|net| (net, Rank::Own, Arc::clone(&own))));
        for neighbour in neighbours {
            let name = Arc::clone(&neighbour.name);
            let (given, said) = if name == own {
                (Rank::Own, Rank::Own)
            } else {
                (Rank::Given(Reverse(neighbour.created)), Rank::Said)
            };
            let nets = neighbour.speaks_for.iter().map(IpNet::trunc);
            claims.extend(nets.map(|net| (net, given, Arc::clone(&name))));
            let addresses = neighbour.says.iter().map(|address| IpNet::from(*address));
            claims.extend(addresses.map(|net| (net, said, Arc::clone(&name))));
            if name == own {
                of_this.networks.extend(neighbour.speaks_for);
                of_this.addresses.extend(neighbour.says);
                continue;
            }
            let agent = agent_id(pattern, &name).map_err(|source| RosterError::Agent {
                node: Arc::clone(&name),
                pattern: pattern.to_owned(),
                source,
            })?;
            let speaker = Speaker::new(neighbour, agent);
            if speakers.insert(Arc::clone(&name), speaker).is_some() {
                return Err(RosterError::Twice(name));
            }
        }
        let disputes = settle(claims, &mut speakers);
        let by_agent = speakers.iter();
        Ok(Self {
            own: of_this,
            by_agent: by_agent
                .map(|(name, speaker)| (speaker.agent.clone(), Arc::clone(name)))
                .collect(),
            speakers: speakers
                .into_iter()
                .map(|(name, speaker)| (name, Arc::new(speaker)))
                .collect(),
            disputes,
            left_out: BTreeMap::new(),
        })
    }

    /// What this node has.
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// Nodes of the cluster that cannot be told of whole by an agent of theirs, and why.
    pub fn left_out(&self) -> &BTreeMap<Arc<str>, String> {
        &self.left_out
    }

    /// The same, if no address has two nodes.
    pub fn undisputed(self) -> Result<Self, RosterError> {
        let Some(dispute) = self.disputes.first() else {
            return Ok(self);
        };
        let mut nodes = dispute.owner.iter().chain(&dispute.claimants).cloned();
        let mut next = || nodes.next().unwrap_or_default();
        Err(RosterError::Shared {
            one: next(),
            other: next(),
            net: dispute.net,
        })
    }

    /// Addresses that more than one node claims.
    pub fn disputes(&self) -> &[Dispute] {
        &self.disputes
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
mod tests;
