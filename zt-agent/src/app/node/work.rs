// SPDX-License-Identifier: Apache-2.0
//! The node thread's round: commands in batches, what is to be looked at now and then, and what is tried again.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{AppError, Command, Node, QUEUE};
use crate::api::ControlError;

/// How often hooks are checked, namespaces looked at, and the kernel's log read.
const TICK: Duration = Duration::from_secs(1);
/// How often the host's addresses are read again, and what else is attached there.
const HOST: Duration = Duration::from_secs(15);
/// After what is attached to all cgroups was looked at, so many times the length of that look is waited, if that is longer, and at most
/// so long.
const AROUND_SHARE: u32 = 2000;
const AROUND_WAIT: Duration = Duration::from_secs(300);

impl Node {
    /// Works until everybody who has something to tell it has gone.
    pub(in crate::app) fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let Ok(runtime) = runtime else {
            tracing::error!("cannot start the node thread's timer");
            return;
        };
        let mut ticked = Instant::now();
        loop {
            let tick = TICK.saturating_sub(ticked.elapsed());
            let wait = self.owners_wait().map_or(tick, |turn| turn.min(tick));
            let command = runtime.block_on(async { tokio::time::timeout(wait, inbox.recv()).await });
            let mut batch = match command {
                Ok(Some(command)) => vec![command],
                Ok(None) => {
                    // What is not pinned ends with this process.
                    self.check_hooks();
                    return;
                }
                Err(_) => Vec::new(),
            };
            while batch.len() < QUEUE {
                let Ok(command) = inbox.try_recv() else { break };
                batch.push(command);
            }
            if let Err(error) = self.work(batch) {
                tracing::error!(%error, "a change was not carried out whole; what was in force before still is");
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                if let Err(error) = self.tick() {
                    tracing::error!(%error, "the periodic check of the node failed");
                }
            }
        }
    }

    /// Does a batch of commands; what they change together is merged once.
    #[expect(clippy::too_many_lines, reason = "one arm a command")]
    fn work(&mut self, batch: Vec<Command>) -> Result<(), AppError> {
        let mut declared = false;
        let mut fronted = false;
        let mut moved = false;
        let mut lives = false;
        let mut addresses = Vec::new();
        let mut refused = Vec::new();
        let mut outcome = Ok(());
        for command in batch {
            let done = match command {
                Command::Policies(contents) => {
                    self.policies_changed(contents);
                    Ok(())
                }
                Command::Workloads(contents) => {
                    declared |= self.workloads_changed(&contents);
                    Ok(())
                }
                Command::Attested(said) => {
                    declared |= self.attested(said);
                    Ok(())
                }
                Command::Pods(changes) => {
                    declared |= self.pods_changed(changes, &mut addresses);
                    Ok(())
                }
                Command::Peers(told) => {
                    lives |= self.peer_said(told, &mut addresses);
                    Ok(())
                }
                Command::Services(events) => {
                    self.services_said(events);
                    fronted = true;
                    Ok(())
                }
                Command::Cgroup(event, at) => {
                    moved = true;
                    self.note_cgroup(&event, at);
                    declared |= self.forget_attested(&event);
                    let done = self.cgroup_changed(event);
                    self.pending.merge |= done.is_err();
                    done
                }
                Command::UdpBound { workload, netns, pid } => {
                    self.guard(workload);
                    self.seen(netns, pid)
                }
                Command::ToggleDiagnostics => {
                    self.diagnostics = !self.diagnostics;
                    tracing::info!(on = self.diagnostics, "kernel-side diagnostics");
                    self.write_control()
                }
                Command::UnownedListener { netns } => {
                    self.pending.unowned.insert(netns);
                    Ok(())
                }
                Command::Seen { netns, pid } => self.seen(netns, pid),
                Command::Refused(socket) => {
                    refused.push(socket);
                    Ok(())
                }
                Command::ObserveAll { on, answer } => {
                    let done = self.set_observe_all(on);
                    let told = match &done {
                        Ok(()) => Ok(()),
                        Err(error) => Err(ControlError {
                            message: error.to_string(),
                        }),
                    };
                    // The caller may have given up waiting.
                    let _ = answer.send(told);
                    done
                }
                Command::ResumeRollout { caller, answer } => {
                    let stop = self.resume_rollout(&caller);
                    // The caller may have given up waiting.
                    let _ = answer.send(stop.map(|stop| stop.stage));
                    Ok(())
                }
                Command::Recorded => self.recorded(),
                Command::Status(answer) => {
                    let _ = answer.send(self.status());
                    Ok(())
                }
            };
            outcome = outcome.and(done);
        }
        if !refused.is_empty() {
            self.destroy(refused);
        }
        self.find_owners();
        if declared {
            self.put_together();
            outcome = outcome.and(self.merged());
        } else if fronted && self.settle_services() {
            outcome = outcome.and(self.merged());
        } else {
            if moved {
                outcome = outcome.and(self.cgroups_settled());
            }
            if lives || !addresses.is_empty() {
                outcome = outcome.and(self.moved(&addresses));
            }
        }
        self.note_named();
        outcome
    }

    /// Tries again what was left.
    fn retry(&mut self) {
        let now = Instant::now();
        let is_due = self.pending.is_due(now);
        if is_due && let Some((policies, problems)) = self.pending.policies.take() {
            self.try_in_force(policies, problems);
        }
        if self.pending.is_merge_due(now)
            && let Err(error) = self.merged()
        {
            tracing::warn!(%error, "who is who is still not written whole; trying again");
        }
        if !is_due {
            return;
        }
        self.recover_if_wanted();
        self.find_owners();
        for id in self.pending.guards.clone() {
            self.guard(id);
        }
        let refused = std::mem::take(&mut self.pending.refused);
        if !refused.is_empty() {
            self.destroy(refused);
        }
        if self.pending.sweep {
            self.sweep();
        }
        self.pending.tried(now);
    }

    /// Checks what may have changed without anybody saying so. Whatever of it fails, the hooks are looked after.
    fn tick(&mut self) -> Result<(), AppError> {
        let outcome = self.look_after();
        self.check_hooks();
        outcome
    }

    fn look_after(&mut self) -> Result<(), AppError> {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        // First, and whatever else fails: a node that is ill must find its way back.
        self.watch_rollout();
        let known = self.known_workloads().into_owned();
        self.enforced_as.keep(&known);
        self.adopt_switches()?;
        self.tend_keys()?;
        self.check_roots()?;
        let now = Instant::now();
        let mut written = Ok(());
        let refresh = now >= self.next_refresh;
        if refresh || now >= self.next_look {
            self.look_again(refresh)?;
        }
        if now >= self.next_host {
            self.next_host = now + HOST;
            self.look_at_host()?;
            // What it finds to write is what failed before: what is open was not looked at by then either.
            let directed = self.direct();
            let changes = directed.as_ref().copied().unwrap_or_default();
            // A part may have been written, which nobody tells of any more.
            let partly = directed.is_err();
            self.pending.merge |= partly;
            self.pending.recover |= changes.resettled;
            if partly || changes.renamed || changes.resettled {
                self.sweep_after_modes();
            }
            written = directed.map(drop);
            let begun = Instant::now();
            if begun >= self.next_around {
                self.look_around();
                let rest = begun.elapsed() * AROUND_SHARE;
                self.next_around = Instant::now() + rest.min(AROUND_WAIT);
            }
            let cgroups = &self.cgroups;
            self.parts.kernel.tidy_shares(&|id| cgroups.path(id).is_some())?;
        }
        self.look_for_proxies()?;
        self.check_losses();
        self.remember_services();
        self.retry();
        written
    }
}
