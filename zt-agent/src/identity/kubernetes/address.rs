// SPDX-License-Identifier: Apache-2.0
//! Whose an address is: of those who claim it, the one who has the best claim, or nobody.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Part;
use super::ground::{Ground, Grounds};
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
    /// A pod's that has no name or is not believed, or of more than one: whoever is there is nobody.
    Nobody,
}

/// What is known of the cgroup of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cgroup {
    /// Nothing: it is on another node, or not yet there.
    Unseen,
    /// It is there.
    There,
    /// It was there: the pod's address may be another one's by now.
    Gone,
}

/// A pod that claims an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) part: Part,
    /// The node that it is on.
    pub(super) node: Arc<str>,
    pub(super) cgroup: Cgroup,
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
    /// Several claim it, and none with a better right than the others.
    Disputed,
}

/// What follows, and who claims it in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) resolved: Resolved,
    /// Somebody claims what somebody else has a better right to.
    pub(super) beaten: bool,
    /// Somebody claims what is outside of the cluster.
    pub(super) outside: bool,
}

impl From<Resolved> for Verdict {
    fn from(resolved: Resolved) -> Self {
        Self {
            resolved,
            beaten: false,
            outside: false,
        }
    }
}

/// Who claims which address. What has changed is kept until it is asked for.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Mostly one for each address, which then takes the room of one.
    pods: HashMap<IpAddr, SmallVec<[Claim; 1]>>,
    /// Addresses of other nodes, and how many pods of which nodes say so.
    nodes: HashMap<IpAddr, HashMap<Arc<str>, u32>>,
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
    pub(super) fn node(&mut self, address: IpAddr, part: Part, node: &Arc<str>) {
        let count = match part {
            Part::Here => self.own.entry(address).or_default(),
            Part::Elsewhere => {
                let nodes = self.nodes.entry(address).or_default();
                nodes.entry(Arc::clone(node)).or_default()
            }
        };
        *count += 1;
        self.changed.insert(address);
    }

    /// It does no longer.
    pub(super) fn no_node(&mut self, address: IpAddr, part: Part, node: &str) {
        match part {
            Part::Here => {
                if lowered(&mut self.own, &address) {
                    self.changed.insert(address);
                }
            }
            Part::Elsewhere => {
                let Some(nodes) = self.nodes.get_mut(&address) else {
                    return;
                };
                if lowered(nodes, node) {
                    self.changed.insert(address);
                }
                if nodes.is_empty() {
                    self.nodes.remove(&address);
                }
            }
        }
    }

    /// What follows for all addresses is to be found out anew.
    pub(super) fn all_changed(&mut self) {
        self.changed.extend(self.pods.keys().chain(self.nodes.keys()));
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

    /// The nodes of which it is said.
    pub(super) fn nodes_of(&self, address: IpAddr) -> BTreeSet<&str> {
        let pods = self.pods.get(&address).into_iter().flatten();
        let nodes = self.nodes.get(&address).into_iter().flat_map(HashMap::keys);
        pods.map(|claim| &*claim.node)
            .chain(nodes.map(|node| &**node))
            .collect()
    }

    pub(super) fn resolve(&self, address: IpAddr, grounds: &Grounds) -> Verdict {
        let claims = self.pods.get(&address).map_or(&[][..], SmallVec::as_slice);
        let nodes = self.nodes.get(&address);
        let is_here = |claim: &&Claim| claim.part == Part::Here;
        let mut here = claims.iter().filter(is_here);
        let is_own = self.own.contains_key(&address);
        match (here.next(), here.next()) {
            // Nobody knows better which addresses this node has, and where its living pods are.
            (None, _) if is_own || grounds.is_own(address) => Verdict {
                beaten: !claims.is_empty() || nodes.is_some(),
                ..Resolved::Own.into()
            },
            (Some(one), None) if one.cgroup == Cgroup::There && !is_own => Verdict {
                beaten: claims.len() > 1 || nodes.is_some(),
                ..one.resolved().into()
            },
            (Some(one), None) if claims.len() == 1 && nodes.is_none() && !is_own => one.resolved().into(),
            (Some(one), None) if one.cgroup != Cgroup::Gone && !is_own => {
                best(address, claims, nodes, grounds)
            }
            (Some(_), _) => Resolved::Disputed.into(),
            (None, _) => best(address, claims, nodes, grounds),
        }
    }
}

impl Claim {
    /// What follows where it counts.
    fn resolved(&self) -> Resolved {
        match (&self.spiffe, self.part) {
            (None, _) => Resolved::Elsewhere(Whose::Nobody),
            (Some(_), Part::Here) => Resolved::Here(Arc::clone(&self.pod)),
            (Some(spiffe), Part::Elsewhere) => Resolved::Elsewhere(Whose::Pod {
                spiffe: spiffe.clone(),
                pod: Arc::clone(&self.pod),
                uid: Arc::clone(&self.uid),
            }),
        }
    }
}

/// Of those who claim an address, the one with the best claim.
fn best(
    address: IpAddr,
    claims: &[Claim],
    nodes: Option<&HashMap<Arc<str>, u32>>,
    grounds: &Grounds,
) -> Verdict {
    let pods = claims
        .iter()
        .map(|claim| (grounds.of_pod(&claim.node, address), Some(claim)));
    let nodes = nodes.into_iter().flat_map(HashMap::keys);
    let nodes = nodes.map(|node| (grounds.of_node(node, address), None));
    let all: Vec<(Ground, Option<&Claim>)> = pods.chain(nodes).collect();
    let best = all.iter().map(|(ground, _)| *ground).max();
    let best = best.filter(|best| *best > Ground::Outside);
    let with_best = all.iter().filter(|(ground, _)| Some(*ground) == best);
    let with_best: Vec<Option<&Claim>> = with_best.map(|(_, claim)| *claim).collect();
    let resolved = match *with_best {
        [] if all.is_empty() => Resolved::Free,
        // A pod may be there whose network nobody has named: it is not to pass for the world.
        [] => Resolved::Elsewhere(Whose::Nobody),
        [Some(one)] => one.resolved(),
        // That it is another node's is all that there is to know.
        _ if with_best.iter().all(Option::is_none) => Resolved::Elsewhere(Whose::Node),
        _ => Resolved::Disputed,
    };
    Verdict {
        resolved,
        beaten: all
            .iter()
            .any(|(ground, _)| *ground > Ground::Outside && Some(*ground) < best),
        outside: all.iter().any(|(ground, _)| *ground == Ground::Outside),
    }
}

/// One fewer. Whether none is left.
fn lowered<K, Q>(counts: &mut HashMap<K, u32>, key: &Q) -> bool
where
    K: std::borrow::Borrow<Q> + std::hash::Hash + Eq,
    Q: std::hash::Hash + Eq + ?Sized,
{
    let Some(count) = counts.get_mut(key) else {
        return false;
    };
    *count -= 1;
    let none = *count == 0;
    if none {
        counts.remove(key);
    }
    none
}
