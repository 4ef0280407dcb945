// SPDX-License-Identifier: Apache-2.0
//! Networks as blocks of addresses. The longest prefix names an address, so a block that is allowed leaves out what is
//! narrower and is not. Entities of which it is known where they are, are such blocks too.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use zt_common::identity;

use super::Peer;
use crate::policy::entity::entity_number;
use crate::policy::table::AllowTable;

/// The networks that have a name, and those that are the cluster's.
pub(super) struct Blocks(Vec<(IpNet, u64)>);

impl Blocks {
    pub(super) fn new(table: &AllowTable, entities: &BTreeMap<String, Vec<IpNet>>) -> Self {
        let located: Vec<(IpNet, u64)> = entities
            .iter()
            .filter_map(|(name, networks)| Some((entity_number(name)?, networks)))
            .flat_map(|(number, networks)| networks.iter().map(move |network| (*network, number)))
            .collect();
        // In a network of the cluster that an entity fills, nobody else is.
        let filled = |network: &IpNet, number: u64| {
            number == identity::UNKNOWN && located.iter().any(|(other, _)| other == network)
        };
        let mut blocks: Vec<(IpNet, u64)> = table
            .networks()
            .entries()
            .filter(|(network, number)| *number != identity::WORLD && !filled(network, *number))
            .collect();
        blocks.extend(&located);
        let everything = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        for network in everything {
            if blocks.iter().all(|(known, _)| *known != network) {
                blocks.push((network, identity::WORLD));
            }
        }
        blocks.sort_unstable();
        Self(blocks)
    }

    /// The numbers of all.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|(_, number)| *number)
    }

    /// The blocks that are allowed. Whoever is unknown in the cluster is a pod, and no address.
    pub(super) fn allowed(&self, allowed: &dyn Fn(u64) -> bool) -> Vec<Peer> {
        let is_allowed = |number: u64| number != identity::UNKNOWN && allowed(number);
        // Where several are in one network, all of them must be.
        let mut open: BTreeMap<IpNet, bool> = BTreeMap::new();
        for (network, number) in &self.0 {
            let allowed = is_allowed(*number);
            open.entry(*network)
                .and_modify(|all| *all &= allowed)
                .or_insert(allowed);
        }
        let blocks = open.iter().filter(|(_, allowed)| **allowed).map(|(network, _)| {
            let inside = |other: &IpNet| other != network && network.contains(other);
            let mut except: Vec<IpNet> = Vec::new();
            // Wider ones come first.
            for (closed, _) in open.iter().filter(|(other, allowed)| !**allowed && inside(other)) {
                if !except.iter().any(|wider| wider.contains(closed)) {
                    except.push(*closed);
                }
            }
            Peer::Block(*network, except)
        });
        blocks.collect()
    }
}
