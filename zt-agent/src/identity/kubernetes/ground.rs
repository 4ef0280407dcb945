// SPDX-License-Identifier: Apache-2.0
//! How good a claim to an address is, by which networks the cluster has given to which nodes.
//!
//! Whoever has taken a kubelet over says of its pods whatever he likes. So an address in a node's network is a pod's of that node
//! before it is anybody else's. That is so only where pods get their addresses from these networks: not every network plugin goes
//! by them. This node's own pods show it, of which no other kubelet says anything.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::peers::Roster;

/// How good a claim is. Of those that are equally good none is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ground {
    /// The address is outside of the cluster: not believed even where nobody else claims it. It is nobody's then.
    Outside,
    /// It is in the network of another node.
    Elsewhere,
    /// No node has been given it.
    Said,
    /// It is the node's of which it is said.
    Given,
}

/// Networks, and the nodes that were given them.
#[derive(Debug, Default)]
struct Networks {
    by_net: HashMap<IpNet, Vec<Arc<str>>>,
    /// The lengths of their prefixes.
    lengths: BTreeSet<u8>,
}

impl Networks {
    fn of(nodes: &Roster) -> Self {
        let mut networks = Self::default();
        for (name, speaker) in nodes.iter() {
            for net in &speaker.neighbour.speaks_for {
                networks.lengths.insert(net.prefix_len());
                let named = networks.by_net.entry(net.trunc()).or_default();
                named.push(Arc::clone(name));
            }
        }
        networks
    }

    /// Whose networks an address is in.
    fn around(&self, address: IpAddr) -> impl Iterator<Item = &Arc<str>> {
        let nets = self.lengths.iter();
        let nets = nets.filter_map(move |length| Some(IpNet::new(address, *length).ok()?.trunc()));
        nets.filter_map(move |net| self.by_net.get(&net)).flatten()
    }
}

/// What claims to addresses are judged by.
#[derive(Debug)]
pub(super) struct Grounds {
    /// This node.
    own: Box<str>,
    /// The networks of the cluster, as the configuration says.
    cluster: Vec<IpNet>,
    /// All other nodes, and what this one has; `None` until that is known.
    nodes: Option<Arc<Roster>>,
    networks: Networks,
    /// Pods have addresses of their nodes' networks: of IPv4, of IPv6.
    followed: [bool; 2],
    /// Pods have addresses of the cluster's networks, likewise.
    inside: [bool; 2],
}

impl Grounds {
    /// Nothing is known yet: all claims are equally good.
    pub(super) fn new(own: &str, cluster: Vec<IpNet>) -> Self {
        Self {
            own: own.into(),
            cluster,
            nodes: None,
            networks: Networks::default(),
            followed: [false; 2],
            inside: [false; 2],
        }
    }

    /// Which other nodes there are, if that is known. It counts when it was looked where this node's own pods are.
    pub(super) fn know(&mut self, nodes: Option<Arc<Roster>>) {
        self.networks = nodes.as_deref().map(Networks::of).unwrap_or_default();
        self.nodes = nodes;
    }

    /// Looks where this node's own pods are. Whether claims are judged otherwise by that.
    pub(super) fn look<'a>(&mut self, own_pods: impl Iterator<Item = &'a IpAddr>) -> bool {
        let networks = self
            .nodes
            .as_ref()
            .map_or(&[][..], |nodes| &nodes.own().networks[..]);
        let (mut some, mut followed, mut inside) = ([false; 2], [true; 2], [true; 2]);
        for address in own_pods {
            let family = family(*address);
            some[family] = true;
            followed[family] &= contains(networks, *address);
            inside[family] &= contains(&self.cluster, *address);
        }
        let shown = |[v4, v6]: [bool; 2]| [v4 && some[0], v6 && some[1]];
        let (followed, inside) = (shown(followed), shown(inside));
        let differs = (followed, inside) != (self.followed, self.inside);
        (self.followed, self.inside) = (followed, inside);
        differs
    }

    /// Whether an address is this node's own.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        let nodes = self.nodes.as_ref();
        nodes.is_some_and(|nodes| nodes.own().addresses.contains(&address))
    }

    /// Of a pod on this node, which is the address's.
    pub(super) fn of_pod(&self, node: &str, address: IpAddr) -> Ground {
        match self.holder(address) {
            Some(holder) if holder == node => Ground::Given,
            _ if self.inside[family(address)] && !contains(&self.cluster, address) => Ground::Outside,
            Some(_) => Ground::Elsewhere,
            None => Ground::Said,
        }
    }

    /// Of a node itself.
    pub(super) fn of_node(&self, node: &str, address: IpAddr) -> Ground {
        if !self.followed[family(address)] {
            return Ground::Said;
        }
        let speaker = self.nodes.as_ref().and_then(|nodes| nodes.get(node));
        if speaker.is_some_and(|speaker| speaker.speaks_for(address) && !speaker.is_disputed(address)) {
            return Ground::Given;
        }
        match self.holder(address) {
            Some(holder) if holder != node => Ground::Elsewhere,
            _ => Ground::Said,
        }
    }

    /// The node that has been given an address, and no other one as well.
    fn holder(&self, address: IpAddr) -> Option<&str> {
        let nodes = self.nodes.as_ref().filter(|_| self.followed[family(address)])?;
        if contains(&nodes.own().networks, address) {
            return Some(&*self.own);
        }
        let holds = |name: &&Arc<str>| {
            let speaker = nodes.get(name);
            speaker.is_some_and(|speaker| speaker.was_given(address) && !speaker.is_disputed(address))
        };
        self.networks.around(address).find(holds).map(|name| &**name)
    }
}

fn contains(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}
