// SPDX-License-Identifier: Apache-2.0
//! Raw sockets that are older than a workload's loss of the right to have them.

use std::collections::BTreeSet;

use zt_common::abi::{MODE_ENFORCE, settled};
use zt_common::address::Address;
use zt_common::event::Hook;
use zt_common::identity;
use zt_common::verdict::{Reason, Verdict};

use super::Node;
use super::sweep::monotonic;
use crate::audit::decode::Decision;
use crate::kernel::netns;
use crate::kernel::{RawSocket, cut_off};
use crate::metrics::NodeEvent;

impl Node {
    /// Cuts off what a workload that is refused raw sockets opened while it was not. Each workload is looked at when
    /// that begins.
    pub(super) fn cut_off_raw(&mut self) {
        if self.observe_all {
            self.raw_refused.clear();
            return;
        }
        let Some(table) = self.parts.kernel.table().cloned() else {
            return;
        };
        let workloads = self.parts.kernel.workloads();
        let revision = table.revision();
        let refused: BTreeSet<u64> = workloads
            .iter()
            .filter(|(_, own)| settled(own.mode, revision) == MODE_ENFORCE)
            .filter(|(_, own)| !table.decide_raw_socket(own.identity).allowed)
            .map(|(id, _)| *id)
            .collect();
        let new: Vec<(u64, u64)> = refused
            .difference(&self.raw_refused)
            .filter_map(|id| Some((*id, workloads.get(id)?.identity)))
            .collect();
        let mut records = Vec::new();
        for (cgroup, number) in new {
            let Some(directory) = self.directory(cgroup) else {
                continue;
            };
            // Inside of it may be another workload, with its own rights.
            let mount = &self.parts.mount;
            let another = |path: &std::path::Path| {
                path.strip_prefix(mount)
                    .ok()
                    .and_then(|path| self.cgroups.id(path))
                    .is_some_and(|id| id != cgroup && workloads.contains_key(&id))
            };
            let sockets = cut_off(&netns::processes_outside(&directory, &another));
            let verdict = table.decide_raw_socket(number);
            for socket in &sockets {
                self.tell_of_raw(&directory, socket);
                records.push(decision(cgroup, number, &verdict, socket));
            }
        }
        self.raw_refused = refused;
        self.parts.intake.revoked(records);
    }

    fn tell_of_raw(&self, cgroup: &std::path::Path, socket: &RawSocket) {
        let comm = String::from_utf8_lossy(&socket.comm);
        let (comm, cgroup) = (comm.trim_end_matches('\0'), cgroup.display());
        let (pid, protocol) = (socket.pid, socket.protocol);
        let event = match &socket.left {
            None => {
                tracing::warn!(%cgroup, pid, comm, protocol, "older raw socket cut off: the workload may not have it any more");
                NodeEvent::RawFenced
            }
            Some(error) => {
                tracing::error!(%cgroup, pid, comm, protocol, %error, "older raw socket could not be cut off: restart the process that has it");
                NodeEvent::RawLeft
            }
        };
        self.parts.metrics.node_event(event, 1);
    }
}

/// A socket that was cut off as a decision for the trail.
fn decision(workload: u64, source: u64, verdict: &Verdict, socket: &RawSocket) -> Decision {
    Decision {
        time: monotonic(),
        source,
        destination: identity::RAW_SOCKETS,
        rule: verdict.rule,
        revision: verdict.revision,
        workload,
        cookie: socket.cookie,
        netns: socket.netns,
        source_address: Address::UNSPECIFIED_V6,
        destination_address: Address::UNSPECIFIED_V6,
        source_port: 0,
        destination_port: 0,
        target_port: 0,
        protocol: socket.protocol,
        hook: Hook::Sweep,
        pid: socket.pid,
        latency: 0,
        reason: if socket.left.is_none() {
            Reason::Revoked
        } else {
            Reason::Unfenced
        },
        allowed: false,
        enforced: true,
        inbound: false,
        refused_socket: false,
        ipv6: socket.ipv6,
        proof: zt_common::proof::Proof::None,
        omitted: false,
        comm: socket.comm,
    }
}
