// SPDX-License-Identifier: Apache-2.0
//! What the last agent left of other nodes. Of nodes that are not known to be there, nothing is taken up.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::memory::{Kept, KeptNode};
use crate::identity::peers::{Located, Roster, Speaker, Standing, Table, Who};
use crate::spiffe_id::SpiffeId;

/// What the last agent left, for the start of the node thread.
#[derive(Clone, Debug, Default)]
pub struct Recalled {
    /// Who is at addresses of other nodes.
    pub addresses: Vec<(IpAddr, Located)>,
    /// Who lives on them, by the node's number. Nothing is left of the keys of others.
    pub identities: HashMap<u32, Vec<SpiffeId>>,
    /// About which addresses their word is all there is to know.
    pub networks: HashMap<u32, Vec<IpNet>>,
}

impl Recalled {
    /// What is still believed of it at that time, Unix seconds.
    pub(super) fn new(kept: &Kept, roster: Option<&Roster>, hold: Duration, now: i64) -> Self {
        let mut recalled = Self::default();
        for (name, node) in kept.nodes() {
            let Some(speaker) = roster.and_then(|roster| roster.get(name)) else {
                continue;
            };
            let rests = !node.rest(hold, now).is_zero();
            let mut table = Table::new(Arc::clone(speaker), now);
            if rests {
                take_up(&mut table, node);
                recalled.networks.insert(node.number, told(speaker, node));
                let identities = table.difference().identities.unwrap_or_default();
                recalled.identities.insert(node.number, identities);
            }
            let own = speaker.own_addresses();
            let at = own.chain(table.residents().map(|resident| resident.address));
            for address in at {
                let who = who_is_at(speaker, &table, address);
                let located = who.map(|who| located(who, node.number, node.proves));
                recalled
                    .addresses
                    .extend(located.map(|located| (address, located)));
            }
            let nobody = lost(speaker, node, rests).map(|address| {
                let located = located(Who::Nobody, node.number, node.proves);
                (address, located)
            });
            recalled.addresses.extend(nobody);
        }
        recalled
    }
}

/// Goes on with what was believed of a node.
pub(super) fn take_up(table: &mut Table, node: &KeptNode) {
    table.recall(node.shown.iter().cloned(), node.residents.iter().cloned());
}

/// About which addresses its word was all there is to know.
pub(super) fn told(speaker: &Speaker, node: &KeptNode) -> Vec<IpNet> {
    let networks = if node.proves { &node.networks[..] } else { &[] };
    speaker.alone_in(networks)
}

/// Addresses of a node at which nobody is known since it was silent for too long: of one that is not `believed` any more, also those
/// at which somebody was until now.
pub(super) fn lost(speaker: &Speaker, node: &KeptNode, believed: bool) -> impl Iterator<Item = IpAddr> {
    let residents = node.residents.iter().filter(move |_| !believed);
    let residents = residents.map(|resident| resident.address);
    let lost = residents.chain(node.lost.iter().copied());
    lost.filter(|address| speaker.speaks_for(*address))
}

/// Who is at an address of a node.
pub(super) fn who_is_at(speaker: &Speaker, table: &Table, address: IpAddr) -> Option<Who> {
    let is_own = || speaker.own_addresses().any(|own| own == address);
    let who = match table.resident(address) {
        Some(_) if speaker.is_disputed(address) => Who::Disputed,
        Some(Standing::Shown(id)) => Who::Workload(id.clone()),
        Some(Standing::Silent(id)) if !is_own() => Who::Silent(id.clone()),
        _ if !is_own() => return None,
        _ if speaker.is_disputed(address) => Who::Disputed,
        _ => Who::Node,
    };
    Some(who)
}

/// The same, for the kernel.
pub(super) fn located(who: Who, node: u32, proves: bool) -> Located {
    Located {
        proves: proves && matches!(who, Who::Workload(_)),
        who,
        node,
    }
}
