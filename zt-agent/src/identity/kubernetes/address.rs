// SPDX-License-Identifier: Apache-2.0
//! Whose an address is: of those who claim it, the only one, or nobody.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Part;
use crate::spiffe_id::SpiffeId;

/// Whose an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A pod's.
    Pod {
        /// Who it is.
        spiffe: SpiffeId,
        /// Its namespace and name.
        pod: Arc<str>,
        /// Which of those that had that name.
        uid: Arc<str>,
    },
    /// Another node's.
    Node,
    /// A pod's that has no name, or of more than one: whoever is there is nobody.
    Nobody,
}

/// A pod that claims an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) part: Part,
    pub(super) pod: Arc<str>,
    pub(super) uid: Arc<str>,
    pub(super) spiffe: Option<SpiffeId>,
}

/// What follows from the claims on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    /// Nobody claims it.
    Free,
    /// It is this node's own.
    Own,
    /// A pod's of this node.
    Here(Arc<str>),
    /// Somebody else's.
    Elsewhere(Whose),
    /// Several claim it.
    Disputed,
}

/// Who claims which address. What has changed is kept until it is asked for.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pods: HashMap<IpAddr, Vec<Claim>>,
    /// Addresses of other nodes, and how many pods say so.
    nodes: HashMap<IpAddr, u32>,
    /// Addresses of this node, likewise.
    own: HashMap<IpAddr, u32>,
    changed: HashSet<IpAddr>,
}

impl Claims {
    pub(super) fn claim(&mut self, address: IpAddr, claim: Claim) {
        self.pods.entry(address).or_default().push(claim);
        self.changed.insert(address);
    }

    pub(super) fn release(&mut self, address: IpAddr, part: Part, pod: &str) {
        let Some(claims) = self.pods.get_mut(&address) else {
            return;
        };
        claims.retain(|claim| claim.part != part || *claim.pod != *pod);
        if claims.is_empty() {
            self.pods.remove(&address);
        }
        self.changed.insert(address);
    }

    /// A pod says that its node has this address.
    pub(super) fn node(&mut self, address: IpAddr, part: Part) {
        let nodes = self.of(part);
        *nodes.entry(address).or_default() += 1;
        self.changed.insert(address);
    }

    /// It does no longer.
    pub(super) fn no_node(&mut self, address: IpAddr, part: Part) {
        let nodes = self.of(part);
        if let Some(count) = nodes.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                nodes.remove(&address);
                self.changed.insert(address);
            }
        }
    }

    fn of(&mut self, part: Part) -> &mut HashMap<IpAddr, u32> {
        match part {
            Part::Here => &mut self.own,
            Part::Elsewhere => &mut self.nodes,
        }
    }

    /// What follows for all addresses of pods is to be found out anew.
    pub(super) fn all_changed(&mut self) {
        self.changed.extend(self.pods.keys());
    }

    pub(super) fn changed(&mut self) -> HashSet<IpAddr> {
        std::mem::take(&mut self.changed)
    }

    /// Whether a pod of this node claims it.
    pub(super) fn is_here(&self, address: IpAddr) -> bool {
        let claims = self.pods.get(&address);
        claims.is_some_and(|claims| claims.iter().any(|claim| claim.part == Part::Here))
    }

    pub(super) fn len(&self) -> usize {
        self.pods.len() + self.nodes.len()
    }

    pub(super) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn resolve(&self, address: IpAddr) -> Resolved {
        let claims = self.pods.get(&address).map_or(&[][..], Vec::as_slice);
        let (own, node) = (self.own.contains_key(&address), self.nodes.contains_key(&address));
        match claims {
            [] if own && node => Resolved::Disputed,
            [] if own => Resolved::Own,
            [] if node => Resolved::Elsewhere(Whose::Node),
            [] => Resolved::Free,
            _ if own || node => Resolved::Disputed,
            [one] => match (&one.spiffe, one.part) {
                (None, _) => Resolved::Elsewhere(Whose::Nobody),
                (Some(_), Part::Here) => Resolved::Here(Arc::clone(&one.pod)),
                (Some(spiffe), Part::Elsewhere) => Resolved::Elsewhere(Whose::Pod {
                    spiffe: spiffe.clone(),
                    pod: Arc::clone(&one.pod),
                    uid: Arc::clone(&one.uid),
                }),
            },
            _ => Resolved::Disputed,
        }
    }
}

/// Whether an address can be a pod's or a node's in a network that others reach.
pub(super) fn is_reachable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local)
}
