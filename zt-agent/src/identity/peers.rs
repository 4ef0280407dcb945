// SPDX-License-Identifier: Apache-2.0
//! The `peers` identity source: who is at which address of another node, as the agent there says. Pure.
//!
//! A node is believed about its own addresses and about identities that it has shown to hold, and about nothing else. Whoever
//! it says is there and cannot show is silent: he has the name that others give him, if it is the same. What else it says is
//! counted and changes nothing.

mod roster;
mod standing;
mod table;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

pub use self::roster::{
    Agents, ClusterNode, Dispute, Neighbour, Own, Roster, RosterError, Speaker, agent_id,
};
pub use self::standing::{Counts, Evidence, Standing};
pub use self::table::{Difference, Refusal, Table};
use crate::spiffe_id::SpiffeId;

/// Somebody at an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resident {
    /// Where. Never in the IPv6-mapped form of IPv4.
    pub address: IpAddr,
    /// Who.
    pub spiffe: SpiffeId,
    /// Tells one workload at that address from the next, also where both have the same identity: the cgroup's id.
    pub incarnation: u64,
    /// Nobody has shown who it is, on the node itself: it is only called so. Not said where it is not so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
}

/// Who is at an address of another node, for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Who.
    pub who: Who,
    /// The node's number.
    pub node: u32,
    /// Workloads there prove who they are.
    pub proves: bool,
}

/// Who is at an address of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A workload that has been shown to live there.
    Workload(SpiffeId),
    /// A workload that lives there and of which nothing is shown: whoever else says the same of it is believed.
    Silent(SpiffeId),
    /// The node itself.
    Node,
    /// The node was not heard for so long that it counts for nothing: whoever else knows is believed.
    Nobody,
    /// Another node claims the address as well: it is neither one's.
    Disputed,
}

/// What this node says of itself. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// Who is at its addresses.
    pub residents: BTreeMap<IpAddr, Resident>,
    /// Everybody who is known to live here, and what proves it where there is such a thing.
    pub identities: BTreeMap<Arc<str>, Identity>,
}

impl Local {
    /// Whether something is to be told of.
    pub fn differs(&self, before: &Self) -> bool {
        self.residents != before.residents
            || self.identities.len() != before.identities.len()
            || self.identities.iter().any(|(text, identity)| {
                let known = before.identities.get(text);
                known.is_none_or(|known| identity.differs(known))
            })
    }
}

/// An identity that lives on this node.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Which.
    pub spiffe: SpiffeId,
    /// Its SVID and the SVID's key.
    pub svid: Option<Arc<CertifiedKey>>,
}

impl Identity {
    /// Whether it is to be told of anew.
    pub fn differs(&self, before: &Self) -> bool {
        match (&self.svid, &before.svid) {
            (Some(now), Some(before)) => !Arc::ptr_eq(now, before),
            (None, None) => false,
            _ => true,
        }
    }
}

/// The SVIDs of the workloads of this node, by cgroup.
pub type Svids = HashMap<u64, (SpiffeId, Arc<CertifiedKey>)>;

/// Whether others can reach somebody there: an address that is only good within a node says nothing elsewhere.
pub fn is_reachable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local)
}
