// SPDX-License-Identifier: Apache-2.0
//! Namespaces: which there are, and the refused sockets in them that must go.

use std::time::{Duration, Instant};

use super::{AppError, Node};
use crate::kernel::RefusedSocket;
use crate::kernel::netns;
use crate::metrics::NodeEvent;

/// Looking at all processes, and entering all namespaces for their addresses, may each take this part of the time: after one
/// look, so many times its length is waited.
const LOOK_SHARE: u32 = 500;

impl Node {
    /// Processes below the managed roots, and this one, which stands for the host's namespace.
    pub(super) fn pids(&self) -> Vec<u32> {
        let mut pids = vec![std::process::id()];
        for root in &self.parts.roots {
            pids.extend(netns::processes(&root.path));
        }
        pids
    }

    /// Looks at all managed processes' namespaces.
    pub(super) fn look_at_namespaces(&mut self, refresh: bool) -> Result<(), AppError> {
        let started = Instant::now();
        self.look_at_those_of(&self.pids(), refresh, started)
    }

    /// The same without need, now and then: in the cgroups that are known, so that no directory is listed. Who is in one that was
    /// made a moment ago is looked at when that is told of.
    pub(super) fn look_again(&mut self, refresh: bool) -> Result<(), AppError> {
        let started = Instant::now();
        let mut pids = vec![std::process::id()];
        for path in self.cgroups.by_path().keys() {
            pids.extend(netns::members(&self.parts.mount.join(path)));
        }
        self.look_at_those_of(&pids, refresh, started)
    }

    /// Looks at the namespaces of these processes, which are all that there are, and rests in proportion.
    fn look_at_those_of(&mut self, pids: &[u32], refresh: bool, started: Instant) -> Result<(), AppError> {
        let changed = self.namespaces.look(pids, refresh, true);
        let (now, rest) = (Instant::now(), started.elapsed() * LOOK_SHARE);
        self.next_look = now + rest.min(LONGEST_WAIT);
        if refresh {
            self.next_refresh = now + rest.clamp(REFRESH, LONGEST_REFRESH);
        }
        if changed {
            self.write_local()?;
        }
        Ok(())
    }

    /// Reads the host's addresses again: it may have new ones.
    pub(super) fn look_at_host(&mut self) -> Result<(), AppError> {
        if self.namespaces.look(&[std::process::id()], true, false) {
            self.write_local()?;
        }
        Ok(())
    }

    /// Says which addresses are the namespaces' own.
    fn write_local(&mut self) -> Result<(), AppError> {
        self.parts.kernel.set_local(&self.namespaces)?;
        self.is_left_out(self.namespaces.left_out(), "addresses of namespaces");
        Ok(())
    }

    /// Says that something had no room in a map of the kernel's.
    pub(super) fn is_left_out(&self, count: usize, what: &str) {
        if count > 0 {
            tracing::warn!(count, "{what} have no room in the kernel's maps");
            self.parts
                .metrics
                .node_event(NodeEvent::KernelMapFull, count as u64);
        }
    }

    /// Looks at the namespaces of some processes.
    pub(super) fn look_at(&mut self, pids: &[u32]) -> Result<(), AppError> {
        if !pids.is_empty() && self.namespaces.look(pids, false, false) {
            self.write_local()?;
        }
        Ok(())
    }

    /// Looks at a namespace that a decision came from, if it is new.
    pub(super) fn seen(&mut self, netns: u64, pid: u32) -> Result<(), AppError> {
        if pid != 0 && !self.namespaces.knows(netns) {
            return self.look_at(&[pid]);
        }
        Ok(())
    }

    /// Destroys sockets that a hook refused. What fails is tried again.
    pub(super) fn destroy(&mut self, sockets: Vec<RefusedSocket>) {
        if sockets.iter().any(|socket| !self.namespaces.knows(socket.netns))
            && let Err(error) = self.look_at_namespaces(false)
        {
            tracing::warn!(%error, "cannot look at the namespaces");
        }
        let (left, why) = RefusedSocket::destroy(sockets, &self.namespaces);
        if let Some(error) = why.filter(|_| self.pending.refused.is_empty()) {
            tracing::warn!(%error, sockets = left.len(), "refused sockets stay behind their fences for now; trying again");
        }
        self.parts
            .metrics
            .node_event(NodeEvent::DestroyFailed, left.len() as u64);
        for socket in left {
            self.pending.keep_refused(socket);
        }
    }
}

/// How long the look at all processes may wait at most.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How often the addresses of all namespaces are read again, as a rule and at least.
const REFRESH: Duration = Duration::from_secs(15);
const LONGEST_REFRESH: Duration = Duration::from_secs(120);
