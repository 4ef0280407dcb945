// SPDX-License-Identifier: Apache-2.0
//! Whose the addresses of other nodes' pods are. They change often and each by itself: what changes costs what it is, and no look
//! at everything else.

use std::collections::HashMap;
use std::net::IpAddr;

use zt_common::abi::{PEER_HERE, PEER_PROVES, Peer};
use zt_common::address::Address;
use zt_common::identity;

use super::numbers::Numbers;
use super::{AppError, Node};
use crate::identity::kubernetes::{Changes, Whose};
use crate::identity::peers::{Located, Who};
use crate::spiffe_id::SpiffeId;

/// Addresses elsewhere, and who is there: as Kubernetes says, and as the agents there say.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    by_address: HashMap<IpAddr, Whose>,
    located: HashMap<IpAddr, Located>,
    /// Who lives on other nodes, by the node's number.
    residents: HashMap<u32, Vec<SpiffeId>>,
    /// Each identity, and how often it is in these three.
    identities: HashMap<SpiffeId, usize>,
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

    /// What the agent of its node says of an address.
    pub(super) fn locate(&mut self, address: IpAddr, located: Option<Located>) {
        let id = |located: &Option<Located>| match located.as_ref().map(|located| &located.who) {
            Some(Who::Workload(spiffe)) => Some(spiffe.clone()),
            _ => None,
        };
        self.count(id(&located));
        let before = match located {
            Some(located) => self.located.insert(address, located),
            None => self.located.remove(&address),
        };
        self.discount(id(&before));
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
        let located = self.located.iter().filter(|(_, located)| located.node == node);
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
        if let Some(id) = id {
            *self.identities.entry(id).or_default() += 1;
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

    /// What the kernel is told.
    pub(super) fn peers(&self, numbers: &Numbers) -> impl Iterator<Item = (Address, Peer)> {
        let located = self.located.keys();
        let located = located.filter(|address| !self.by_address.contains_key(*address));
        let addresses = self.by_address.keys().chain(located);
        addresses.filter_map(|address| Some((Address::from(*address), self.peer(*address, numbers)?)))
    }

    /// Whose an address is, as Kubernetes says.
    pub(super) fn whose(&self, address: IpAddr) -> Option<&Whose> {
        self.by_address.get(&address)
    }

    /// Who is at an address, as the agent of its node says.
    pub(super) fn who(&self, address: IpAddr) -> Option<&Who> {
        self.located.get(&address).map(|located| &located.who)
    }

    fn peer(&self, address: IpAddr, numbers: &Numbers) -> Option<Peer> {
        let whose = self.by_address.get(&address);
        let located = self.located.get(&address);
        let by_kubernetes = whose.map(|whose| match whose {
            Whose::Pod { spiffe, .. } => numbers.workload(spiffe),
            Whose::Node => identity::REMOTE_NODE,
            Whose::Nobody => identity::UNKNOWN,
        });
        let by_agent = located.map(|located| match &located.who {
            Who::Workload(spiffe) => numbers.workload(spiffe),
            Who::Node => identity::REMOTE_NODE,
            Who::Nobody => identity::UNKNOWN,
        });
        let identity = match (by_kubernetes, by_agent) {
            (None, None) => return None,
            (Some(one), None) | (None, Some(one)) => one,
            (Some(one), Some(other)) if one == other => one,
            // Whoever is at a node's own address is not told of by Kubernetes.
            (Some(identity::REMOTE_NODE), Some(other)) => other,
            _ => identity::UNKNOWN,
        };
        Some(Peer {
            identity,
            flags: if located.is_some_and(|located| located.proves) {
                PEER_PROVES
            } else {
                0
            },
            node: located.map_or(0, |located| located.node),
        })
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

    /// Addresses elsewhere are somebody else's now.
    pub(super) fn moved(&mut self, addresses: &[IpAddr]) -> Result<(), AppError> {
        let unknown = self
            .elsewhere
            .identities()
            .any(|id| !self.identities.contains(id));
        // What somebody here has, too, is for who sees both.
        let here = |address: &IpAddr| {
            let peer = self.parts.kernel.peers().get(&Address::from(*address));
            peer.is_some_and(|peer| peer.flags & PEER_HERE != 0)
        };
        // Who stands behind a virtual address may be another by that.
        if unknown || addresses.iter().any(here) || self.settle_services() {
            return self.merged();
        }
        let numbers = self.numbers();
        self.write_residents(&numbers);
        let wanted = addresses
            .iter()
            .map(|address| (Address::from(*address), self.elsewhere.peer(*address, &numbers)));
        let moved = self.parts.kernel.set_peers(wanted);
        self.pending.merge |= moved.is_err();
        Ok(moved.map(drop)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn an_identity_is_there_as_long_as_one_address_is_its() {
        let spiffe = SpiffeId::parse("spiffe://hanzo.ai/c/n/a").expect("literal");
        let pod = Whose::Pod {
            spiffe: spiffe.clone(),
            pod: "n/a".into(),
            uid: "u".into(),
        };
        let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse::<IpAddr>().expect("literal"));
        let mut elsewhere = Elsewhere::default();
        elsewhere.set(one, Some(pod.clone()));
        elsewhere.set(one, Some(pod.clone()));
        elsewhere.set(two, Some(pod));
        elsewhere.set(one, Some(Whose::Node));
        assert_eq!(elsewhere.identities().count(), 1);
        assert_eq!(
            elsewhere.peer(one, &Numbers::default()).map(|peer| peer.identity),
            Some(identity::REMOTE_NODE)
        );
        elsewhere.set(two, None);
        assert_eq!(elsewhere.identities().count(), 0);
        elsewhere.set(two, None);
        assert_eq!(elsewhere.peers(&Numbers::default()).count(), 1);
    }

    #[test]
    fn what_kubernetes_and_the_agent_there_say_must_be_the_same() {
        let [one, other] = ["a", "b"]
            .map(|name| SpiffeId::parse(&format!("spiffe://hanzo.ai/c/n/{name}")).expect("literal"));
        let table = {
            let ids = [&one, &other].into_iter().cloned().collect();
            let (policies, settings) = Default::default();
            Arc::new(crate::policy::compile(&policies, &ids, &settings, 1).expect("it fits"))
        };
        let numbers = Numbers::of(Some(&table));
        let address: IpAddr = "10.0.0.1".parse().expect("literal");
        let located = |who: Who| Located {
            proves: matches!(who, Who::Workload(_)),
            who,
            node: 7,
        };
        let pod = |spiffe: &SpiffeId| Whose::Pod {
            spiffe: spiffe.clone(),
            pod: "n/a".into(),
            uid: "u".into(),
        };
        let mut elsewhere = Elsewhere::default();
        let peer = |elsewhere: &Elsewhere| {
            let peer = elsewhere.peer(address, &numbers).expect("told of");
            (peer.identity, peer.flags, peer.node)
        };
        elsewhere.locate(address, Some(located(Who::Workload(one.clone()))));
        assert_eq!(peer(&elsewhere), (one.number(), PEER_PROVES, 7));
        elsewhere.set(address, Some(pod(&one)));
        assert_eq!(peer(&elsewhere), (one.number(), PEER_PROVES, 7));
        elsewhere.set(address, Some(pod(&other)));
        assert_eq!(peer(&elsewhere), (identity::UNKNOWN, PEER_PROVES, 7));
        elsewhere.set(address, Some(Whose::Node));
        assert_eq!(peer(&elsewhere), (one.number(), PEER_PROVES, 7));
        elsewhere.locate(address, Some(located(Who::Nobody)));
        assert_eq!(peer(&elsewhere), (identity::UNKNOWN, 0, 7));
        elsewhere.locate(address, None);
        assert_eq!(peer(&elsewhere), (identity::REMOTE_NODE, 0, 0));
        elsewhere.live(7, vec![one.clone(), other.clone()]);
        assert_eq!(elsewhere.identities().count(), 2);
        elsewhere.live(7, vec![one]);
        assert_eq!(elsewhere.identities().count(), 1);
        assert_eq!(elsewhere.peers(&numbers).count(), 1);
    }
}
