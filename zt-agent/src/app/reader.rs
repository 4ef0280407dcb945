// SPDX-License-Identifier: Apache-2.0
//! The event reader: a thread of its own, beside the one that writes. It still waits for both of those it hands on to:
//! a store that hangs, or a node thread that is busy for long, makes the ring buffer fill, which the kernel counts.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::node::Command;
use crate::audit::decode::{Decision, Event, NoticeCode, decode};
use crate::audit::pipeline::Intake;
use crate::kernel::{RefusedSocket, Ring};

/// How long the ring is drained when the agent stops.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Takes events out of the ring buffer, decisions to the pipeline and what needs doing to the node.
pub(super) struct Reader {
    ring: Ring,
    intake: Intake,
    commands: mpsc::Sender<Command>,
    stopping: watch::Receiver<bool>,
}

impl Reader {
    pub(super) fn new(
        ring: Ring,
        intake: Intake,
        commands: mpsc::Sender<Command>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self {
            ring,
            intake,
            commands,
            stopping,
        }
    }

    /// Reads until the agent stops, and then what is still there.
    pub(super) fn run(mut self) {
        let mut deadline = None;
        loop {
            // Asked before the round: what comes in while stopping is still taken by the last one.
            let last = *self.stopping.borrow();
            // On a busy node no round is ever empty: what the ring still holds then waits there for the next agent.
            let late = last && *deadline.get_or_insert_with(|| Instant::now() + DRAIN_TIME) <= Instant::now();
            let mut decisions = Vec::new();
            let mut commands = Vec::new();
            let intake = &self.intake;
            let round = self.ring.round(|bytes| match decode(bytes) {
                Ok(Event::Decision(decision)) => {
                    commands.extend(refused(&decision).map(Command::Refused));
                    commands.push(Command::Seen {
                        netns: decision.netns,
                        pid: decision.pid,
                    });
                    decisions.push(decision);
                }
                Ok(Event::Notice(notice)) => match notice.code {
                    NoticeCode::UnownedListener => commands.push(Command::UnownedListener),
                    NoticeCode::UdpBound => commands.push(Command::UdpBound {
                        workload: notice.workload,
                        netns: notice.netns,
                        pid: notice.pid,
                    }),
                },
                Err(error) => {
                    intake.stats().undecodable();
                    tracing::warn!(%error, "an event of the kernel side cannot be read");
                }
            });
            self.pass_on(commands);
            if !decisions.is_empty() && self.intake.submit(decisions).is_err() {
                return;
            }
            match round {
                Ok(0) if last => return,
                Ok(_) if late => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "the ring buffer cannot be read");
                    return;
                }
            }
        }
    }

    /// Hands the node what it should look at; each namespace once a round.
    fn pass_on(&self, commands: Vec<Command>) {
        let mut last_seen = 0;
        for command in commands {
            match command {
                Command::Seen { netns, pid } => {
                    if pid == 0 || netns == last_seen {
                        continue;
                    }
                    last_seen = netns;
                    // A hint that finds no room is given again by the next event.
                    let _ = self.commands.try_send(Command::Seen { netns, pid });
                }
                command => {
                    if self.commands.blocking_send(command).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// The socket that waits to be destroyed after a decision.
fn refused(decision: &Decision) -> Option<RefusedSocket> {
    if !decision.refused_socket {
        return None;
    }
    let source = (decision.source_address, decision.source_port);
    let destination = (decision.destination_address, decision.destination_port);
    let (local, remote) = if decision.inbound {
        (destination, source)
    } else {
        (source, destination)
    };
    Some(RefusedSocket {
        cookie: decision.cookie,
        netns: decision.netns,
        local: local.0,
        remote: remote.0,
        local_port: local.1,
        remote_port: remote.1,
        ipv6: decision.ipv6,
    })
}
