// SPDX-License-Identifier: Apache-2.0
//! Ways on which the identity option does not arrive, by who is at their other end: gathered by the reader of events, for `status`.
//!
//! That somebody answers without it means nothing by itself: a listener that is older than the agent does, and a process without an
//! identity. So an answer counts only if it comes from a workload of a node whose agent is known, and a SYN that was repeated without
//! the option always does.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use zt_common::identity;
use zt_common::proof::Proof;
use zt_common::verdict::Reason;

use crate::api::PathStatus;
use crate::audit::clock;
use crate::audit::decode::Decision;
use crate::audit::record::Timestamp;
use crate::metrics::{Metrics, OptionLoss};
use crate::peers::Health;

/// Most ways that are kept. Whoever was seen longest ago makes room.
const MOST: usize = 256;
/// A way on which nothing was lost for so long is kept no more, nanoseconds.
const KEPT: i64 = 3_600_000_000_000;
const TCP: u8 = 6;
/// How much of an address says where somebody is whose node is not known, in bits.
const PREFIXES: [u8; 2] = [24, 64];

/// What was lost on which way.
#[derive(Debug)]
pub(super) struct Paths {
    peers: Option<Arc<Health>>,
    metrics: Arc<Metrics>,
    held: Mutex<HashMap<End, Path>>,
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum End {
    /// Another node.
    Node(Arc<str>),
    /// Somebody in this network: on this node, or on none whose agent is known.
    Network(IpNet),
}

/// What was lost.
#[derive(Clone, Copy, Debug)]
struct Path {
    since: i64,
    last: i64,
    address: IpAddr,
    lost: [u64; OptionLoss::ALL.len()],
}

impl Paths {
    /// `peers` says which node has an address, where agents of other nodes are spoken to.
    pub(super) fn new(peers: Option<Arc<Health>>, metrics: Arc<Metrics>) -> Self {
        Self {
            peers,
            metrics,
            held: Mutex::default(),
        }
    }

    /// Notes a decision if an option was lost in its handshake.
    pub(super) fn saw(&self, decision: &Decision) {
        if let Some((loss, address)) = lost(decision) {
            self.lost(loss, address, clock::now());
        }
    }

    fn lost(&self, loss: OptionLoss, address: IpAddr, now: i64) {
        let node = self.peers.as_ref().and_then(|peers| peers.node_at(address));
        let end = match node {
            Some(node) => End::Node(node),
            None if loss == OptionLoss::Dropped => End::Network(network(address)),
            None => return,
        };
        self.metrics.option_lost(loss);
        let mut held = self.lock();
        let is_over = |path: &Path| path.last < now.saturating_sub(KEPT);
        if held.get(&end).is_some_and(is_over) {
            held.remove(&end);
        }
        if held.len() >= MOST && !held.contains_key(&end) {
            let oldest = held.iter().min_by_key(|(_, path)| path.last);
            if let Some(oldest) = oldest.map(|(end, _)| end.clone()) {
                held.remove(&oldest);
            }
        }
        let path = held.entry(end).or_insert(Path {
            since: now,
            last: now,
            address,
            lost: [0; OptionLoss::ALL.len()],
        });
        (path.last, path.address) = (now, address);
        path.lost[loss as usize] += 1;
    }

    /// The ways on which something was lost of late, the last one first.
    pub(super) fn list(&self) -> Vec<PathStatus> {
        self.list_at(clock::now())
    }

    fn list_at(&self, now: i64) -> Vec<PathStatus> {
        let mut held = self.lock();
        held.retain(|_, path| path.last >= now.saturating_sub(KEPT));
        let mut paths: Vec<(&End, &Path)> = held.iter().collect();
        paths
            .sort_by(|(end, path), (other, before)| before.last.cmp(&path.last).then_with(|| end.cmp(other)));
        paths.into_iter().map(|(end, path)| told(end, path)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<End, Path>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn told(end: &End, path: &Path) -> PathStatus {
    let [dropped, stripped, missing] = path.lost;
    PathStatus {
        node: match end {
            End::Node(name) => Some(name.to_string()),
            End::Network(_) => None,
        },
        network: network(path.address).to_string(),
        since: Timestamp(path.since),
        last: Timestamp(path.last),
        dropped,
        stripped,
        missing,
    }
}

/// The network that an address is in.
fn network(address: IpAddr) -> IpNet {
    let [v4, v6] = PREFIXES;
    let prefix = if address.is_ipv4() { v4 } else { v6 };
    IpNet::new(address, prefix).map_or_else(|_| IpNet::from(address), |net| net.trunc())
}

/// What became of an option in the handshake that a decision is about, and the address at the other end.
fn lost(decision: &Decision) -> Option<(OptionLoss, IpAddr)> {
    if decision.protocol != TCP {
        return None;
    }
    if decision.inbound {
        let missing = decision.reason == Reason::ProofMissing;
        return missing.then(|| (OptionLoss::Missing, decision.source_address.into()));
    }
    if decision.proof != Proof::Absent {
        return None;
    }
    let loss = if decision.omitted {
        OptionLoss::Dropped
    } else if identity::is_workload(decision.destination) {
        OptionLoss::Stripped
    } else {
        return None;
    };
    Some((loss, decision.destination_address.into()))
}

#[cfg(test)]
mod tests;
