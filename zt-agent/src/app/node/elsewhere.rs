// SPDX-License-Identifier: Apache-2.0
//! Whose the addresses of other nodes' pods are. They change often and each by itself: what changes costs what it is, and no look
//! at everything else.

use std::collections::HashMap;
use std::net::IpAddr;

use zt_common::abi::{PEER_HERE, Peer};
use zt_common::address::Address;
use zt_common::identity;

use super::numbers::Numbers;
use super::{AppError, Node};
use crate::identity::kubernetes::{Changes, Whose};
use crate::spiffe_id::SpiffeId;

/// Addresses elsewhere, and who is there.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    by_address: HashMap<IpAddr, Whose>,
    /// Each identity, and at how many addresses it is.
    identities: HashMap<SpiffeId, usize>,
}

impl Elsewhere {
    pub(super) fn set(&mut self, address: IpAddr, whose: Option<Whose>) {
        if let Some(Whose::Pod { spiffe, .. }) = &whose {
            *self.identities.entry(spiffe.clone()).or_default() += 1;
        }
        let before = match whose {
            Some(whose) => self.by_address.insert(address, whose),
            None => self.by_address.remove(&address),
        };
        if let Some(Whose::Pod { spiffe, .. }) = before
            && let Some(count) = self.identities.get_mut(&spiffe)
        {
            *count -= 1;
            if *count == 0 {
                self.identities.remove(&spiffe);
            }
        }
    }

    /// Who there is.
    pub(super) fn identities(&self) -> impl Iterator<Item = &SpiffeId> {
        self.identities.keys()
    }

    /// What the kernel is told.
    pub(super) fn peers(&self, numbers: &Numbers) -> impl Iterator<Item = (Address, Peer)> {
        let peers = self.by_address.iter();
        peers.map(|(address, whose)| (Address::from(*address), peer(whose, numbers)))
    }

    /// Whose an address is.
    pub(super) fn whose(&self, address: IpAddr) -> Option<&Whose> {
        self.by_address.get(&address)
    }

    fn peer(&self, address: IpAddr, numbers: &Numbers) -> Option<Peer> {
        self.by_address.get(&address).map(|whose| peer(whose, numbers))
    }
}

fn peer(whose: &Whose, numbers: &Numbers) -> Peer {
    Peer {
        identity: match whose {
            Whose::Pod { spiffe, .. } => numbers.workload(spiffe),
            Whose::Node => identity::REMOTE_NODE,
            Whose::Nobody => identity::UNKNOWN,
        },
        flags: 0,
        node: 0,
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
}
