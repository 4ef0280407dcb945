// SPDX-License-Identifier: Apache-2.0
//! Named networks: which number an address has that no identity owns, and which networks a rule reaches.
//!
//! The longest prefix names an address, so a rule about a wide network must be written out for every narrower one
//! inside it. Addresses of the cluster are the exception: whoever is not known there is `unknown`, and no ALLOW of a
//! wider network reaches through a cluster's CIDR into it, or `0.0.0.0/0` would open pods nobody knows, and naming
//! a network for one rule would open it to others. A DENY does reach through.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use zt_common::identity;

use super::Settings;
use super::action::Action;
use super::endpoint::canonical;
use super::hash::FastMap;
use super::set::PolicySet;
use crate::spiffe_id::number_of;

/// The name of a network in records: `cidr:10.0.0.0/8`.
pub(super) fn name(network: &IpNet) -> String {
    format!("cidr:{network}")
}

/// The number that stands for a named network in the kernel.
pub(super) fn number(network: &IpNet) -> u64 {
    identity::NETWORK_BIT | (number_of(&name(network)) & (identity::NETWORK_BIT - 1))
}

/// The networks of a policy and of the cluster: what the kernel's longest-prefix map holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// Those that policies name, sorted by address and then prefix: what is inside a network follows it directly.
    named: Vec<Named>,
    /// Content of the longest-prefix map.
    entries: Arc<FastMap<IpNet, u64>>,
    /// The prefix lengths that occur, longest first, for IPv4 and for IPv6.
    lengths: [Vec<u8>; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    network: IpNet,
    number: u64,
    /// Prefix length of the narrowest cluster CIDR around it.
    cluster: Option<u8>,
}

impl Networks {
    /// Those that a table has which is compiled of these policies, whoever the workloads are.
    pub fn of(set: &PolicySet, settings: &Settings) -> Self {
        Self::new(set.networks(), &settings.cluster_cidrs)
    }

    pub(super) fn new(named: &[(IpNet, u64)], cluster: &[IpNet]) -> Self {
        let cluster: Vec<IpNet> = cluster.iter().copied().map(canonical).collect();
        let mut entries = FastMap::default();
        entries.extend(cluster.iter().map(|network| (*network, identity::UNKNOWN)));
        // Whoever names a cluster's CIDR itself means it.
        entries.extend(named.iter().copied());
        // In the map, IPv4 lives inside IPv6 (`::ffff:0:0/96`): without this `::/0` would name IPv4 addresses.
        let v4_in_v6 = IpNet::V6(Ipv6Net::new_assert(
            std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
            96,
        ));
        if entries.keys().any(|network| network.contains(&v4_in_v6)) {
            entries
                .entry(IpNet::V4(Ipv4Net::default()))
                .or_insert(identity::WORLD);
        }
        let lengths = [false, true].map(|v6| {
            let family = entries
                .keys()
                .filter(|network| matches!(network, IpNet::V6(_)) == v6);
            let mut lengths: Vec<u8> = family.map(IpNet::prefix_len).collect();
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
            lengths
        });
        let around = |network: &IpNet| {
            cluster
                .iter()
                .filter(|c| c.contains(network))
                .map(IpNet::prefix_len)
                .max()
        };
        let mut named: Vec<Named> = named
            .iter()
            .map(|&(network, number)| Named {
                network,
                number,
                cluster: around(&network),
            })
            .collect();
        named.sort_unstable_by_key(|named| (named.network.network(), named.network.prefix_len()));
        Self {
            named,
            entries: Arc::new(entries),
            lengths,
        }
    }

    /// The content of the longest-prefix map, in no order: network → number of a named network, `unknown` for the
    /// cluster's, or `world`.
    pub fn entries(&self) -> impl Iterator<Item = (IpNet, u64)> + '_ {
        self.entries.iter().map(|(network, number)| (*network, *number))
    }

    /// The number of a network that is one of them.
    pub(super) fn number_of(&self, network: &IpNet) -> Option<u64> {
        self.entries.get(network).copied()
    }

    /// The number of an address that no identity owns: that of the longest prefix around it, or `world`.
    pub fn number_at(&self, address: IpAddr) -> u64 {
        let address = address.to_canonical();
        let [v4, v6] = &self.lengths;
        let lengths = if address.is_ipv6() { v6 } else { v4 };
        let found = lengths.iter().find_map(|length| {
            let network = IpNet::new(address, *length).ok()?.trunc();
            self.entries.get(&network).copied()
        });
        found.unwrap_or(identity::WORLD)
    }

    /// Numbers of the named networks that a rule about `wide`, itself named, reaches.
    pub(super) fn reached_by(&self, wide: &IpNet, action: Action) -> Vec<u64> {
        let key = (wide.network(), wide.prefix_len());
        let start = self
            .named
            .partition_point(|named| (named.network.network(), named.network.prefix_len()) < key);
        let inside = self
            .named
            .iter()
            .skip(start)
            .take_while(|named| wide.contains(&named.network));
        let through = |named: &&Named| {
            action == Action::Deny || named.cluster.is_none_or(|cluster| cluster <= wide.prefix_len())
        };
        inside.filter(through).map(|named| named.number).collect()
    }

    /// Numbers of the named networks that lie in the world: those outside the cluster's CIDRs.
    pub(super) fn in_the_world(&self) -> impl Iterator<Item = u64> + '_ {
        self.named
            .iter()
            .filter(|named| named.cluster.is_none())
            .map(|named| named.number)
    }

    /// The networks that policies name, by number.
    pub(super) fn names(&self) -> impl Iterator<Item = (u64, String)> + '_ {
        self.named
            .iter()
            .map(|named| (named.number, name(&named.network)))
    }
}

#[cfg(test)]
mod tests {
    use zt_common::identity;

    use super::{Networks, number};
    use crate::policy::Action;

    fn networks(named: &[&str], cluster: &[&str]) -> Networks {
        let parse = |text: &&str| text.parse().expect("a literal network");
        let named: Vec<_> = named
            .iter()
            .map(parse)
            .map(|network| (network, number(&network)))
            .collect();
        Networks::new(&named, &cluster.iter().map(parse).collect::<Vec<_>>())
    }

    fn of(network: &str) -> u64 {
        number(&network.parse().expect("a literal network"))
    }

    fn at(networks: &Networks, address: &str) -> u64 {
        networks.number_at(address.parse().expect("a literal address"))
    }

    #[test]
    fn the_longest_prefix_names_an_address() {
        let networks = networks(&["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"], &["10.1.2.0/24"]);
        assert_eq!(at(&networks, "10.9.9.9"), of("10.0.0.0/8"));
        assert_eq!(at(&networks, "10.1.9.9"), of("10.1.0.0/16"));
        assert_eq!(at(&networks, "::ffff:10.1.9.9"), of("10.1.0.0/16"));
        assert_eq!(at(&networks, "10.1.2.3"), identity::UNKNOWN);
        assert_eq!(at(&networks, "fd00::1"), of("fd00::/8"));
        assert_eq!(at(&networks, "192.0.2.1"), identity::WORLD);
    }

    #[test]
    fn an_ipv6_network_never_names_ipv4() {
        let networks = networks(&["::/0"], &[]);
        assert_eq!(at(&networks, "192.0.2.1"), identity::WORLD);
        let all = "0.0.0.0/0".parse().expect("literal");
        assert!(networks.entries().any(|entry| entry == (all, identity::WORLD)));
        let both = Networks::new(&[(all, number(&all))], &["::/0".parse().expect("literal")]);
        assert_eq!(at(&both, "192.0.2.1"), number(&all));
    }

    #[test]
    fn an_allow_does_not_reach_through_the_clusters_range_and_a_deny_does() {
        let networks = networks(
            &[
                "0.0.0.0/0",
                "10.0.0.0/8",
                "10.1.0.0/16",
                "10.2.0.0/16",
                "9.0.0.0/8",
            ],
            &["10.1.0.0/16"],
        );
        let wide = "0.0.0.0/0".parse().expect("literal");
        let allowed = networks.reached_by(&wide, Action::Allow);
        assert!(allowed.contains(&of("10.2.0.0/16")) && !allowed.contains(&of("10.1.0.0/16")));
        assert!(
            networks
                .reached_by(&wide, Action::Deny)
                .contains(&of("10.1.0.0/16"))
        );
        let itself = networks.reached_by(&"10.1.0.0/16".parse().expect("literal"), Action::Allow);
        assert_eq!(itself, [of("10.1.0.0/16")]);
        assert_eq!(networks.in_the_world().count(), 4);
    }
}
