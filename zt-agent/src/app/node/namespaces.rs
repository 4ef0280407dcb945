// SPDX-License-Identifier: Apache-2.0
//! Namespaces, sockets that must go, and the hooks' well-being.

use std::time::Instant;

use zt_common::abi::{CONNECTION_INBOUND, CONNECTION_IPV6};
use zt_common::event::Hook;
use zt_common::verdict::Reason;

use super::{AppError, Node};
use crate::audit::decode::Decision;
use crate::kernel::netns;
use crate::kernel::{RefusedSocket, Revoked};

impl Node {
    /// Processes below the managed roots, and this one, which stands for the host's namespace.
    fn pids(&self) -> Vec<u32> {
        let mut pids = vec![std::process::id()];
        for root in &self.parts.roots {
            pids.extend(netns::processes(&root.path));
        }
        pids
    }

    /// Looks at all managed processes' namespaces.
    pub(super) fn look_at_namespaces(&mut self, refresh: bool) -> Result<(), AppError> {
        if refresh {
            self.refreshed = Instant::now();
        }
        if self.namespaces.look(&self.pids(), refresh, true) {
            self.parts.kernel.set_local(&self.namespaces)?;
        }
        Ok(())
    }

    /// Looks at a namespace that a decision came from, if it is new.
    pub(super) fn seen(&mut self, netns: u64, pid: u32) -> Result<(), AppError> {
        if pid != 0 && !self.namespaces.knows(netns) && self.namespaces.look(&[pid], false, false) {
            self.parts.kernel.set_local(&self.namespaces)?;
        }
        Ok(())
    }

    /// Destroys a socket that a hook refused.
    pub(super) fn destroy(&mut self, socket: &RefusedSocket) -> Result<(), AppError> {
        if !self.namespaces.knows(socket.netns) {
            self.look_at_namespaces(false)?;
        }
        Ok(socket.destroy(&self.namespaces)?)
    }

    /// Finds the sockets that are older than the hooks.
    pub(super) fn find_older(&mut self) -> Result<(), AppError> {
        let pids = self.pids();
        let workloads = self.parts.kernel.workloads();
        let owners: std::collections::HashMap<u64, u64> = self
            .paths
            .iter()
            .map(|(id, path)| {
                let owner = path
                    .ancestors()
                    .filter_map(|ancestor| self.cgroups.get(ancestor))
                    .find(|ancestor| workloads.contains_key(ancestor));
                (*id, owner.copied().unwrap_or(*id))
            })
            .collect();
        let owner = |cgroup: u64| owners.get(&cgroup).copied();
        let found = self.parts.kernel.find_older(&self.namespaces, &owner, &pids)?;
        if !found.connections.is_empty() {
            tracing::info!(
                connections = found.connections.len(),
                "connections older than the hooks are judged like the others"
            );
        }
        self.older = found.connections;
        for workload in found.udp_workloads {
            if let Err(error) = self.guard(workload) {
                tracing::warn!(%error, cgroup = workload, "the datagrams of a workload are not guarded");
            }
        }
        Ok(())
    }

    /// Judges every live connection again, destroys what is refused, and records it. Returns how many.
    pub(super) fn sweep(&mut self) -> usize {
        if self.observe_all {
            return 0;
        }
        let started = Instant::now();
        let mut sweep = match self.parts.kernel.sweep(&self.namespaces, &self.older) {
            Ok(sweep) => sweep,
            Err(error) => {
                tracing::error!(%error, "connections could not be judged again; new ones are decided by the policy in force");
                return 0;
            }
        };
        if sweep.revoked.iter().any(|revoked| !revoked.destroyed) {
            // A namespace that was not known yet: look, and try once more.
            if let Err(error) = self.look_at_namespaces(true) {
                tracing::warn!(%error, "cannot look at the namespaces");
            }
            sweep.retry(&self.namespaces);
        }
        let gone: Vec<u64> = sweep
            .revoked
            .iter()
            .filter(|r| r.destroyed)
            .map(|r| r.cookie)
            .collect();
        self.older.retain(|(cookie, _)| !gone.contains(cookie));
        if !sweep.revoked.is_empty() {
            tracing::info!(
                looked_at = sweep.looked_at,
                revoked = sweep.revoked.len(),
                destroyed = gone.len(),
                ms = started.elapsed().as_millis() as u64,
                "connections revoked"
            );
        }
        self.parts
            .intake
            .revoked(sweep.revoked.iter().map(decision).collect());
        sweep.revoked.len()
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
        reason: if revoked.destroyed {
            Reason::Revoked
        } else {
            Reason::Unfenced
        },
        allowed: false,
        enforced: true,
        inbound,
        refused_socket: false,
        ipv6: connection.flags & CONNECTION_IPV6 != 0,
        comm: [0; 16],
    }
}

/// `CLOCK_MONOTONIC`, nanoseconds, as the kernel side stamps its events.
fn monotonic() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()
    })
}
