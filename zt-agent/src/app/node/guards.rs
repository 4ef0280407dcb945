// SPDX-License-Identifier: Apache-2.0
//! Which workloads' datagrams are guarded: those that policy makes destinations of UDP, before they bind a port, and
//! those that bound one.

use std::collections::HashSet;

use zt_common::entry::ACTION_ALLOW;
use zt_common::identity;

use super::Node;
use crate::metrics::NodeEvent;
use crate::policy::AllowTable;

const UDP: u8 = 17;

/// The identities that policy makes destinations of UDP.
#[derive(Debug, Default)]
pub(super) struct Receivers(HashSet<u64>);

impl Receivers {
    fn of(table: &AllowTable) -> Self {
        let udp = table
            .entries()
            .filter(|(key, entry)| key.protocol == UDP && entry.bits & ACTION_ALLOW != 0);
        Self(udp.map(|(key, _)| key.destination).collect())
    }

    /// Whether an identity is one.
    pub(super) fn takes(&self, number: u64) -> bool {
        self.0.contains(&number) || self.0.contains(&identity::ANY)
    }
}

impl Node {
    /// After a change of the table: who receives now.
    pub(super) fn receivers_changed(&mut self) {
        if let Some(table) = self.parts.kernel.table() {
            self.receivers = Receivers::of(table);
        }
        self.guard_receivers();
    }

    /// Guards the workloads that policy makes destinations of UDP.
    pub(super) fn guard_receivers(&mut self) {
        if self.receivers.0.is_empty() {
            return;
        }
        let numbers = self.numbers();
        let own: Vec<u64> = self
            .places
            .placed()
            .iter()
            .filter(|placed| self.receivers.takes(numbers.workload(&placed.record.spiffe)))
            .filter_map(|placed| self.cgroups.id(&placed.record.cgroup))
            .collect();
        for id in own {
            self.guard(id);
        }
    }

    /// Guards the datagrams of one workload. One that fails is tried again as long as its cgroup exists, and holds up
    /// nothing.
    pub(super) fn guard(&mut self, id: u64) {
        let Some(directory) = self.directory(id) else {
            self.pending.guards.remove(&id);
            return;
        };
        match self.parts.kernel.guard(&directory, id) {
            Ok(_) => {
                self.pending.guards.remove(&id);
            }
            // It may be gone by now, and the event of that still under way.
            Err(_) if !directory.exists() => {
                self.pending.guards.remove(&id);
            }
            Err(error) => {
                self.parts.metrics.node_event(NodeEvent::GuardFailed, 1);
                if self.pending.guards.insert(id) {
                    tracing::warn!(%error, cgroup = id, "the datagrams of a workload are not guarded; trying again");
                }
            }
        }
    }
}
