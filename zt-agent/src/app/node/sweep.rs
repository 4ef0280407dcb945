// SPDX-License-Identifier: Apache-2.0
//! Revocation, and what is on record of it.

use std::time::Instant;

use zt_common::abi::{CONNECTION_INBOUND, CONNECTION_IPV6};
use zt_common::event::Hook;
use zt_common::verdict::Reason;

use super::Node;
use crate::audit::decode::Decision;
use crate::kernel::{Fate, Revoked};
use crate::metrics::NodeEvent;

impl Node {
    /// Judges every live connection again, destroys what is refused, and records it. Returns how many it refused. What
    /// could not be done is tried again.
    pub(super) fn sweep(&mut self) -> usize {
        self.pending.sweep = false;
        if self.observe_all {
            self.pending.unswept.clear();
            return 0;
        }
        let started = Instant::now();
        let cgroups = &self.cgroups;
        let sweep = self
            .parts
            .kernel
            .sweep(&self.namespaces, &self.older, &|id, workloads| {
                cgroups.nearest(id, workloads)
            });
        let mut sweep = match sweep {
            Ok(sweep) => sweep,
            Err(error) => {
                self.parts.metrics.node_event(NodeEvent::SweepFailed, 1);
                self.pending.sweep = true;
                tracing::error!(%error, "connections could not be judged again; new ones are decided by the policy in force, the others are tried again");
                return 0;
            }
        };
        if sweep
            .revoked
            .iter()
            .any(|revoked| revoked.fate == Fate::Unreached)
        {
            // A namespace that was not known yet: look, and try once more.
            if let Err(error) = self.look_at_namespaces(true) {
                tracing::warn!(%error, "cannot look at the namespaces");
            }
            sweep.retry(&self.namespaces);
        }
        self.settle(&sweep.revoked, sweep.looked_at, started);
        sweep.revoked.len()
    }

    /// A sweep after a change of modes, and one more on the tick: unlike a swap of tables, such a change does not wait
    /// for programs that run on another processor, which may file by the old mode after the first one has read.
    pub(super) fn sweep_after_modes(&mut self) {
        self.sweep();
        self.pending.sweep = true;
    }

    /// Forgets what is gone, keeps what is left for another try, and records each end once.
    fn settle(&mut self, revoked: &[Revoked], looked_at: usize, started: Instant) {
        let (mut destroyed, mut gone, mut left) = (0_usize, 0_u64, 0_u64);
        let mut records = Vec::with_capacity(revoked.len());
        let before = std::mem::take(&mut self.pending.unswept);
        let looked = std::mem::take(&mut self.pending.connecting);
        let mut connecting = false;
        for revoked in revoked {
            match revoked.fate {
                Fate::Destroyed => destroyed += 1,
                Fate::Gone => gone += 1,
                Fate::Connecting => connecting |= self.pending.keep_connecting(&looked, revoked.cookie),
                Fate::Unreached | Fate::Failed => {
                    left += 1;
                    self.pending.unswept.insert(revoked.cookie);
                }
            }
            if revoked.fate.is_over() {
                self.older.remove(&revoked.cookie);
            }
            // One that went by itself was not revoked; one that stays is told of once.
            let told = matches!(revoked.fate, Fate::Gone | Fate::Connecting)
                || (!revoked.fate.is_over() && before.contains(&revoked.cookie));
            if !told {
                let decision = decision(revoked);
                self.parts.newly.saw(&decision);
                records.push(decision);
            }
        }
        self.pending.sweep = left > 0 || connecting;
        let metrics = &self.parts.metrics;
        metrics.node_event(NodeEvent::RevokedGone, gone);
        metrics.node_event(NodeEvent::SweepFailed, left);
        if left > 0 && before.is_empty() {
            tracing::error!(
                left,
                "sockets that policy revoked are still there: see above; trying again until they are gone"
            );
        }
        if !revoked.is_empty() {
            tracing::info!(
                looked_at,
                revoked = revoked.len(),
                destroyed,
                gone,
                left,
                ms = started.elapsed().as_millis() as u64,
                "connections revoked"
            );
        }
        self.parts.intake.revoked(records);
    }
}

/// A revocation as a decision for the trail.
fn decision(revoked: &Revoked) -> Decision {
    let connection = &revoked.connection;
    let inbound = connection.flags & CONNECTION_INBOUND != 0;
    let local = (connection.local, connection.local_port);
    let remote = (connection.remote, connection.remote_port);
    let (source, destination) = if inbound { (remote, local) } else { (local, remote) };
    Decision {
        time: monotonic(),
        source: connection.source,
        destination: connection.destination,
        rule: revoked.verdict.rule,
        revision: revoked.verdict.revision,
        workload: connection.workload,
        cookie: revoked.cookie,
        netns: connection.netns,
        source_address: source.0,
        destination_address: destination.0,
        source_port: source.1,
        destination_port: destination.1,
        target_port: connection.target_port,
        protocol: connection.protocol,
        hook: Hook::Sweep,
        pid: 0,
        latency: 0,
        reason: if revoked.fate.is_over() {
            Reason::Revoked
        } else {
            Reason::Unfenced
        },
        allowed: false,
        enforced: true,
        inbound,
        refused_socket: false,
        ipv6: connection.flags & CONNECTION_IPV6 != 0,
        proof: zt_common::proof::Proof::None,
        omitted: false,
        comm: [0; 16],
    }
}

/// `CLOCK_MONOTONIC`, nanoseconds, as the kernel side stamps its events.
pub(super) fn monotonic() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()
    })
}
