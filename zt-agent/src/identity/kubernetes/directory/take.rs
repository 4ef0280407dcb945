// SPDX-License-Identifier: Apache-2.0
//! What is taken of what the API says about a pod.

use std::net::IpAddr;
use std::sync::Arc;

use super::share::{self, Share};
use super::{Directory, MOST_ADDRESSES, MOST_EACH, MOST_PODS};
use crate::identity::kubernetes::known::{Known, Part};
use crate::identity::kubernetes::paths::is_static;
use crate::identity::kubernetes::{Pod, Qos};
use crate::identity::peers::is_reachable;

impl Directory {
    pub(super) fn take(&mut self, part: Part, name: Arc<str>, pod: &Pod) {
        if !self.is_of(part, pod) {
            self.forget(part, &name);
            return;
        }
        if !self.has_room(part, &name, &pod.node, pod.is_over) {
            if pod.is_over {
                // All that there is to know of it.
                self.has_gone(part, &pod.uid);
            } else {
                self.refuse("too_many");
            }
            self.forget(part, &name);
            return;
        }
        let known = self.known(part, &name, pod);
        self.replace(part, name, known);
    }

    /// Whether there is room for a pod of this node, instead of what is known by that name.
    pub(super) fn has_room(&self, part: Part, name: &str, node: &str, is_over: bool) -> bool {
        let pods = self.of(part);
        if pods.len() >= MOST_PODS && !pods.contains_key(name) {
            return false;
        }
        let share = self.share(part, name, node);
        if is_over {
            share.over < share::MOST_OVER
        } else {
            share.pods < share::MOST_PODS
        }
    }

    /// What the other pods of the node take. What this node's own kubelet says is not doubted, and who left no node is of
    /// none.
    fn share(&self, part: Part, name: &str, node: &str) -> Share {
        if part == Part::Here || node.is_empty() {
            return Share::default();
        }
        self.shares.of(node, self.elsewhere.get(name))
    }

    fn is_of(&mut self, part: Part, pod: &Pod) -> bool {
        let here = pod.node == self.node;
        match part {
            Part::Here if !here => self.refuse("node"),
            Part::Elsewhere if here => self.refuse("node"),
            // It waits for a node.
            _ if pod.node.is_empty() => {}
            _ => return true,
        }
        false
    }

    fn known(&mut self, part: Part, name: &str, pod: &Pod) -> Known {
        let spiffe = self.naming.name(pod);
        if spiffe.is_none() && !pod.is_over {
            self.refuse("identity");
        }
        for _ in 0..pod.odd_addresses {
            self.refuse("address");
        }
        // A static pod's cgroup is called after a hash.
        let hash = pod.mirror.as_ref().filter(|mirror| is_static(mirror));
        let uid: Arc<str> = pod.uid.as_str().into();
        let cgroup_uid = hash.map_or_else(|| Arc::clone(&uid), |hash| hash.as_str().into());
        let own = if pod.host_network || pod.is_over {
            &[][..]
        } else {
            &pod.addresses
        };
        let nodes = if pod.is_over { &[][..] } else { &pod.host_addresses };
        let taken = self.share(part, name, &pod.node).addresses;
        let mut room = share::MOST_ADDRESSES.saturating_sub(taken);
        // What it has already does not need room once more.
        let before = self.of(part).get(name);
        let before = before.map(|known| known.addresses.iter().chain(&known.host_addresses));
        let before: Vec<IpAddr> = before.into_iter().flatten().copied().collect();
        Known {
            uid,
            version: pod.version,
            node: self.shares.name(&pod.node),
            spiffe,
            is_over: pod.is_over,
            addresses: self.believed(own, &before, &mut room),
            host_addresses: self.believed(nodes, &before, &mut room),
            cgroup_uid,
            account: pod.service_account.as_str().into(),
            qos: pod.qos.unwrap_or(Qos::Burstable),
        }
    }

    /// The addresses that can be; none where there are more than there can be.
    fn believed(&mut self, addresses: &[IpAddr], before: &[IpAddr], room: &mut usize) -> Box<[IpAddr]> {
        if addresses.len() > MOST_EACH {
            self.refuse("address");
            return Box::default();
        }
        let mut believed: Vec<IpAddr> = Vec::new();
        for address in addresses.iter().map(IpAddr::to_canonical) {
            if believed.contains(&address) {
                continue;
            }
            let full = self.claims.len() >= MOST_ADDRESSES && !before.contains(&address);
            if !is_reachable(address) {
                self.refuse("address");
            } else if full || *room == 0 {
                self.refuse("too_many");
            } else {
                *room -= 1;
                believed.push(address);
            }
        }
        believed.into()
    }
}
