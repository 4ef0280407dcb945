// SPDX-License-Identifier: Apache-2.0
//! Networks about which the agent of a node has said all there is to say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

/// Which node's agent speaks for an address.
#[derive(Debug, Default)]
pub(super) struct Speaking {
    by_node: HashMap<u32, Vec<IpNet>>,
    /// Which nodes say so of each: two of them for a moment, where what a node speaks for has changed.
    nodes: HashMap<IpNet, BTreeSet<u32>>,
    /// How long the prefixes are that there are, and how many of each.
    lengths: BTreeMap<u8, usize>,
}

impl Speaking {
    /// A node speaks for these networks, and for no others. For which it spoke before.
    pub(super) fn set(&mut self, node: u32, networks: Vec<IpNet>) -> Vec<IpNet> {
        let before = self.by_node.remove(&node).unwrap_or_default();
        for net in &before {
            let Some(nodes) = self.nodes.get_mut(net) else {
                continue;
            };
            nodes.remove(&node);
            if nodes.is_empty() {
                self.nodes.remove(net);
                if let Some(count) = self.lengths.get_mut(&net.prefix_len()) {
                    *count -= 1;
                }
            }
        }
        self.lengths.retain(|_, count| *count > 0);
        for net in &networks {
            let nodes = self.nodes.entry(*net).or_default();
            if nodes.is_empty() {
                *self.lengths.entry(net.prefix_len()).or_default() += 1;
            }
            nodes.insert(node);
        }
        if !networks.is_empty() {
            self.by_node.insert(node, networks);
        }
        before
    }

    /// For which networks a node speaks.
    pub(super) fn of(&self, node: u32) -> &[IpNet] {
        self.by_node.get(&node).map_or(&[], Vec::as_slice)
    }

    /// Whose agent speaks for an address, by the smallest network around it; nobody's, where two say that they do.
    pub(super) fn node(&self, address: IpAddr) -> Option<u32> {
        let lengths = self.lengths.keys().rev();
        let nets = lengths.filter_map(|length| IpNet::new(address, *length).ok());
        let nodes = nets.map(|net| net.trunc()).find_map(|net| self.nodes.get(&net))?;
        nodes.first().copied().filter(|_| nodes.len() == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_network_around_an_address_says_whose_it_is() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("literal")).collect();
        let mut speaking = Speaking::default();
        let node = |speaking: &Speaking, text: &str| speaking.node(text.parse().expect("literal"));
        speaking.set(1, nets(&["10.0.0.0/8", "fd00:1::/64"]));
        speaking.set(2, nets(&["10.2.0.0/16", "10.1.0.7/32"]));
        for (address, expected) in [
            ("10.9.9.9", Some(1)),
            ("10.2.3.4", Some(2)),
            ("10.1.0.7", Some(2)),
            ("10.1.0.8", Some(1)),
            ("fd00:1::9", Some(1)),
            ("fd00:2::9", None),
            ("192.0.2.1", None),
        ] {
            assert_eq!(node(&speaking, address), expected, "{address}");
        }
        // Two have the same: it is neither one's until one of them goes, whichever came first.
        for goes in [2, 3] {
            speaking.set(2, nets(&["10.2.0.0/16", "10.1.0.7/32"]));
            speaking.set(3, nets(&["10.2.0.0/16"]));
            assert_eq!(node(&speaking, "10.2.3.4"), None);
            speaking.set(goes, Vec::new());
            assert_eq!(node(&speaking, "10.2.3.4"), Some(5 - goes));
        }
        speaking.set(3, nets(&["10.2.0.0/16"]));
        speaking.set(2, Vec::new());
        assert_eq!(node(&speaking, "10.1.0.7"), Some(1));
        assert_eq!(speaking.set(3, Vec::new()).len(), 1);
        assert_eq!(node(&speaking, "10.2.3.4"), Some(1));
        speaking.set(1, Vec::new());
        assert!(speaking.lengths.is_empty() && speaking.nodes.is_empty());
    }
}
