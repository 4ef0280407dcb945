// SPDX-License-Identifier: Apache-2.0
//! Sockets that nobody told of: those older than the hooks, and those whose notice the ring buffer lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use zt_common::counter::Counter;

use super::{AppError, Node};
use crate::kernel::{Older, Search};
use crate::metrics::NodeEvent;

/// Events that the kernel lost so far: decisions, among them those of fenced sockets, and notices.
pub(super) type Losses = (u64, u64);

impl Node {
    /// What the kernel has lost, by its own count.
    pub(super) fn losses(&self) -> Losses {
        match self.counters.read() {
            Ok(counters) => (
                counters[Counter::EventsLost as usize],
                counters[Counter::NoticesLost as usize],
            ),
            Err(error) => {
                tracing::warn!(%error, "the kernel's counters cannot be read");
                self.lost
            }
        }
    }

    /// Whether something was lost since the last time that everything was looked at. While one workload floods, something
    /// is lost all the time: looking rests between its turns, so that the flood does not cost the agent a core.
    pub(super) fn check_losses(&mut self) {
        let now = self.losses();
        if now != self.lost && self.losses_turn.remaining(Instant::now()).is_zero() {
            if !self.pending.recover {
                tracing::warn!(
                    events = now.0.saturating_sub(self.lost.0),
                    notices = now.1.saturating_sub(self.lost.1),
                    "the ring buffer was full: every socket is looked at, for those that nobody told of"
                );
            }
            self.pending.recover = true;
        }
    }

    /// Makes up for what was lost, if anything was.
    pub(super) fn recover_if_wanted(&mut self) {
        if !self.pending.recover {
            return;
        }
        // Read before the sockets: what is lost while they are listed is lost anew.
        let (lost, begun) = (self.losses(), Instant::now());
        match self.find_older(Search::Missed, None) {
            Ok(()) => {
                if lost != self.lost {
                    self.parts.metrics.node_event(NodeEvent::Recovered, 1);
                }
                self.pending.recover = false;
                self.lost = lost;
            }
            Err(error) => tracing::warn!(%error, "cannot list the sockets of this node; trying again"),
        }
        self.losses_turn.worked(begun, Instant::now());
    }

    /// Finds the owners of listeners that no hook saw. A workload can make such listeners in a loop: it rests between its
    /// turns, too.
    pub(super) fn find_owners(&mut self) {
        if self.pending.unowned.is_empty() {
            return;
        }
        let begun = Instant::now();
        let wait = self.owners_turn.remaining(begun);
        self.pending.unowned_turn = (!wait.is_zero()).then(|| begun + wait);
        if self.pending.unowned_turn.is_some() {
            return;
        }
        let namespaces = std::mem::take(&mut self.pending.unowned);
        if namespaces.iter().any(|netns| !self.namespaces.knows(*netns))
            && let Err(error) = self.look_at_namespaces(false)
        {
            tracing::warn!(%error, "cannot look at the namespaces");
        }
        if let Err(error) = self.find_older(Search::Missed, Some(&namespaces)) {
            tracing::warn!(%error, "cannot list the sockets of a namespace; trying again");
            self.pending.unowned = namespaces;
        }
        self.owners_turn.worked(begun, Instant::now());
    }

    /// How long it is until owners are to be looked for that only wait for their turn.
    pub(super) fn owners_wait(&self) -> Option<Duration> {
        let turn = self
            .pending
            .unowned_turn
            .filter(|_| !self.pending.unowned.is_empty())?;
        Some(turn.saturating_duration_since(Instant::now()))
    }

    /// Looks at the sockets of some namespaces, or of all.
    pub(super) fn find_older(
        &mut self,
        search: Search,
        only: Option<&BTreeSet<u64>>,
    ) -> Result<(), AppError> {
        let pids = self.pids();
        let cgroups = &self.cgroups;
        let Older {
            connections,
            udp_workloads,
            fenced,
            listed,
            adopted,
            left_out,
            ..
        } = self.parts.kernel.find_older(
            &self.namespaces,
            only,
            search,
            &|id, workloads| {
                let known = cgroups.path(id).is_some();
                known.then(|| cgroups.nearest(id, workloads).unwrap_or(id))
            },
            &|id, ancestor| cgroups.is_below(id, ancestor),
            &pids,
        )?;
        if search == Search::Older && !connections.is_empty() {
            tracing::info!(
                connections = connections.len(),
                "connections older than the hooks are judged like the others"
            );
        }
        self.is_left_out(left_out, "older listeners or connections");
        if only.is_none() {
            // A look at all of them comes upon those again that failed before.
            self.adopted.failed = 0;
        }
        self.adopted.add(adopted);
        if adopted.proving > 0 {
            tracing::info!(
                listeners = adopted.proving,
                "older listeners prove from now on who they are"
            );
        }
        if adopted.reading > 0 {
            tracing::warn!(
                listeners = adopted.reading,
                "older listeners read who calls, and cannot prove who they are on this kernel: restart those programs"
            );
        }
        // What was older and is not there any more has been closed.
        self.older
            .retain(|_, connection| !listed.contains(&connection.netns));
        self.older.extend(connections);
        for workload in udp_workloads {
            self.guard(workload);
        }
        if !fenced.is_empty() {
            self.parts
                .metrics
                .node_event(NodeEvent::FencedFound, fenced.len() as u64);
            self.destroy(fenced);
        }
        Ok(())
    }
}
