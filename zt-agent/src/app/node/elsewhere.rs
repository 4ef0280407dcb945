// SPDX-License-Identifier: Apache-2.0
//! Whose the addresses of other nodes' pods are. They change often and each by itself: what changes costs what it is, and no look
//! at everything else.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use ipnet::IpNet;
use zt_common::abi::{PEER_HERE, PEER_PROVES, Peer};
use zt_common::address::Address;
use zt_common::identity;

use super::numbers::Numbers;
use super::speaking::Speaking;
use super::{AppError, Node};
use crate::identity::kubernetes::{Changes, Whose};
use crate::identity::peers::{Located, Who};
use crate::spiffe_id::SpiffeId;

/// Addresses elsewhere, and who is there: as Kubernetes says, and as the agents there say.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    by_address: HashMap<IpAddr, Whose>,
    located: HashMap<IpAddr, Located>,
    /// What other nodes than that one say of the same address.
    rivals: HashMap<IpAddr, Vec<Located>>,
    speaking: Speaking,
    /// Who lives on other nodes, by the node's number.
    residents: HashMap<u32, Vec<SpiffeId>>,
    /// Each identity, and how often it is in these.
    identities: HashMap<SpiffeId, usize>,
    /// Those of them that came since somebody asked.
    came: Vec<SpiffeId>,
}

impl Elsewhere {
    /// What Kubernetes says of an address.
    pub(super) fn set(&mut self, address: IpAddr, whose: Option<Whose>) {
        let id = |whose: &Option<Whose>| match whose {
            Some(Whose::Pod { spiffe, .. }) => Some(spiffe.clone()),
            _ => None,
        };
        self.count(id(&whose));
        let before = match whose {
            Some(whose) => self.by_address.insert(address, whose),
            None => self.by_address.remove(&address),
        };
        self.discount(id(&before));
    }

    /// What the agent of a node says of an address.
    pub(super) fn locate(&mut self, node: u32, address: IpAddr, located: Option<Located>) {
        self.count(workload(located.as_ref()));
        let before = if self.located.get(&address).is_none_or(|known| known.node == node) {
            match located {
                Some(located) => self.located.insert(address, located),
                None => self.located.remove(&address),
            }
        } else {
            let rivals = self.rivals.entry(address).or_default();
            let before = rivals.iter().position(|rival| rival.node == node);
            let before = before.map(|index| rivals.swap_remove(index));
            rivals.extend(located);
            before
        };
        self.discount(workload(before.as_ref()));
        // Whoever is left has it.
        let Some(rivals) = self.rivals.get_mut(&address) else {
            return;
        };
        if !self.located.contains_key(&address)
            && let Some(rival) = rivals.pop()
        {
            self.located.insert(address, rival);
        }
        if rivals.is_empty() {
            self.rivals.remove(&address);
        }
    }

    /// All that there is to say about these networks is what the agent of a node says. The addresses that are another's by
    /// that.
    pub(super) fn speaks(&mut self, node: u32, networks: Vec<IpNet>) -> Vec<IpAddr> {
        let before = self.speaking.set(node, networks);
        let now = self.speaking.of(node);
        let within = |nets: &[IpNet], address: &IpAddr| nets.iter().any(|net| net.contains(address));
        let pods = self.by_address.keys();
        let moved = pods.filter(|address| within(&before, address) != within(now, address));
        moved.copied().collect()
    }

    /// Who lives on a node.
    pub(super) fn live(&mut self, node: u32, identities: Vec<SpiffeId>) {
        for id in &identities {
            self.count(Some(id.clone()));
        }
        let before = if identities.is_empty() {
            self.residents.remove(&node)
        } else {
            self.residents.insert(node, identities)
        };
        for id in before.into_iter().flatten() {
            self.discount(Some(id));
        }
    }

    /// Where the agent of a node has said that somebody is.
    pub(super) fn located_on(&self, node: u32) -> Vec<IpAddr> {
        let rivals = self.rivals.iter();
        let rivals = rivals.flat_map(|(address, rivals)| rivals.iter().map(move |rival| (address, rival)));
        let located = self.located.iter().chain(rivals);
        let located = located.filter(|(_, located)| located.node == node);
        located.map(|(address, _)| *address).collect()
    }

    /// Who lives where.
    pub(super) fn residents(&self) -> impl Iterator<Item = (u32, &Vec<SpiffeId>)> {
        self.residents
            .iter()
            .map(|(node, identities)| (*node, identities))
    }

    /// Who lives on a node.
    pub(super) fn residents_of(&self, node: u32) -> &[SpiffeId] {
        self.residents.get(&node).map_or(&[], Vec::as_slice)
    }

    fn count(&mut self, id: Option<SpiffeId>) {
        let Some(id) = id else { return };
        match self.identities.entry(id) {
            Entry::Occupied(mut known) => *known.get_mut() += 1,
            Entry::Vacant(new) => {
                self.came.push(new.key().clone());
                new.insert(1);
            }
        }
    }

    fn discount(&mut self, id: Option<SpiffeId>) {
        if let Some(id) = id
            && let Some(count) = self.identities.get_mut(&id)
        {
            *count -= 1;
            if *count == 0 {
                self.identities.remove(&id);
            }
        }
    }

    /// Who there is.
    pub(super) fn identities(&self) -> impl Iterator<Item = &SpiffeId> {
        self.identities.keys()
    }

    /// Those that came since this was asked last, and may have gone again.
    pub(super) fn came(&mut self) -> Vec<SpiffeId> {
        std::mem::take(&mut self.came)
    }

    /// What the kernel is told.
    pub(super) fn peers(&self, numbers: &Numbers) -> impl Iterator<Item = (Address, Peer)> {
        let located = self.located.keys();
        let located = located.filter(|address| !self.by_address.contains_key(*address));
        let addresses = self.by_address.keys().chain(located);
        addresses.filter_map(|address| Some((Address::from(*address), self.peer(*address, numbers)?)))
    }

    /// Whose an address is, as Kubernetes says. Of a pod about which the agent of its node says nothing although it could,
    /// that is not believed: nobody lives there any more, or not yet.
    pub(super) fn whose(&self, address: IpAddr) -> Option<&Whose> {
        let whose = self.by_address.get(&address)?;
        let is_free = matches!(whose, Whose::Pod { .. })
            && !self.located.contains_key(&address)
            && self.speaking.node(address).is_some();
        Some(if is_free { &Whose::Nobody } else { whose })
    }

    /// Who is at an address, as the agent of its node says.
    pub(super) fn who(&self, address: IpAddr) -> Option<&Who> {
        if self.rivals.contains_key(&address) {
            return Some(&Who::Disputed);
        }
        self.located.get(&address).map(|located| &located.who)
    }

    fn peer(&self, address: IpAddr, numbers: &Numbers) -> Option<Peer> {
        let whose = self.whose(address);
        let who = self.who(address);
        let speaking = || {
            self.speaking
                .node(address)
                .map(|node| (node, true))
                .unwrap_or_default()
        };
        let located = || {
            let located = self.located.get(&address);
            located.map_or((0, false), |located| (located.node, located.proves))
        };
        let nowhere = (0, false);
        let (identity, (node, proves)) = match (who, whose) {
            (None, None) => return None,
            // Whom the agent there has not named yet may still prove who he is.
            (None, Some(whose)) => (by_kubernetes(whose, numbers), speaking()),
            (Some(Who::Disputed), _) => (identity::UNKNOWN, nowhere),
            // Who is not heard takes nothing from who is. Nothing that comes from there proves anything; yet the kernel there goes on
            // asking for proof, and is given it.
            (Some(Who::Nobody), Some(whose)) => (by_kubernetes(whose, numbers), (located().0, false)),
            (Some(Who::Silent(said)), Some(whose)) if is_same(said, whose) => {
                (by_kubernetes(whose, numbers), nowhere)
            }
            (Some(Who::Silent(_)), _) => (identity::UNKNOWN, speaking()),
            // Whoever is at a node's own address is not told of by Kubernetes.
            (Some(Who::Workload(said)), whose) if whose.is_none_or(|whose| is_same(said, whose)) => {
                (numbers.workload(said), located())
            }
            (Some(Who::Node), None | Some(Whose::Node)) => (identity::REMOTE_NODE, located()),
            (Some(_), _) => (identity::UNKNOWN, located()),
        };
        Some(Peer {
            identity,
            flags: if proves { PEER_PROVES } else { 0 },
            node,
        })
    }
}

fn by_kubernetes(whose: &Whose, numbers: &Numbers) -> u64 {
    match whose {
        Whose::Pod { spiffe, .. } => numbers.workload(spiffe),
        Whose::Node => identity::REMOTE_NODE,
        Whose::Nobody => identity::UNKNOWN,
    }
}

/// Whether Kubernetes says the same as the agent. Of an address of a node it does not say who is there.
fn is_same(said: &SpiffeId, whose: &Whose) -> bool {
    matches!(whose, Whose::Pod { spiffe, .. } if spiffe == said) || *whose == Whose::Node
}

/// Who is there, if somebody is.
fn workload(located: Option<&Located>) -> Option<SpiffeId> {
    match located.map(|located| &located.who) {
        Some(Who::Workload(spiffe)) => Some(spiffe.clone()),
        _ => None,
    }
}

impl Node {
    /// What is new of the pods. Whether there is something to put together; what is new elsewhere only is noted in `moved`.
    pub(super) fn pods_changed(&mut self, changes: Changes, moved: &mut Vec<IpAddr>) -> bool {
        for (address, whose) in changes.addresses {
            self.elsewhere.set(address, whose);
            self.fronting.moved(address);
            moved.push(address);
        }
        if changes.told {
            self.unnamed.told();
        }
        let is_new = changes.workloads.is_some();
        if let Some(workloads) = changes.workloads {
            self.pods = workloads;
        }
        is_new || changes.told
    }

    /// Addresses elsewhere are somebody else's now. What that takes does not depend on how many others there are, but for
    /// a name that is new, for which the policy is compiled.
    pub(super) fn moved(&mut self, addresses: &[IpAddr]) -> Result<(), AppError> {
        let came = self.elsewhere.came();
        let unknown = came.iter().any(|id| !self.identities.contains(id));
        // What somebody here has, too, is for who sees both.
        let here = |address: &IpAddr| {
            let peer = self.parts.kernel.peers().get(&Address::from(*address));
            peer.is_some_and(|peer| peer.flags & PEER_HERE != 0)
        };
        // Who stands behind a virtual address may be another by that.
        let together = !self.unruled.is_empty() || addresses.iter().any(here) || self.settle_services();
        // Rules first: nobody is named before there are some for him.
        if together || unknown && !self.rule_newcomers() {
            return self.merged();
        }
        let numbers = self.numbers();
        self.write_residents(&numbers);
        let wanted = addresses
            .iter()
            .map(|address| (Address::from(*address), self.elsewhere.peer(*address, &numbers)));
        let moved = self.parts.kernel.set_peers(wanted);
        self.pending.merge |= moved.is_err();
        if unknown {
            self.publish_names();
            self.publish();
        }
        Ok(moved.map(drop)?)
    }
}

#[cfg(test)]
mod tests;
