// SPDX-License-Identifier: Apache-2.0
//! The event reader: a thread of its own, beside the one that writes, that waits for neither of those it hands on to.
//!
//! It goes through the ring buffer with two fingers: one for what the node must hear of (refused sockets, notices),
//! one for the decisions that become records. Each goes as far as its receiver has room, so that a store that hangs
//! does not keep a refused socket from being destroyed. What both have passed and the pipeline has settled is given
//! back to the ring.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::newly::Newly;
use super::node::Command;
use super::paths::Paths;
use crate::audit::decode::{Decision, Event, NoticeCode, decode};
use crate::audit::pipeline::{Closed, Handed, Intake};
use crate::audit::store::RingMark;
use crate::kernel::{RefusedSocket, Ring};

/// How long what the ring holds may still be taken when the agent stops. What is left is there for the next agent.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// How long an event may wait on an idle node.
const IDLE: Duration = Duration::from_millis(20);
/// Pause between two rounds under load, in which a batch gathers.
const PAUSE: Duration = Duration::from_millis(1);
/// Events that each finger passes in a round.
const ROUND: usize = 4096;
/// Decisions handed on at once.
const CHUNK: usize = 256;

/// Takes events out of the ring buffer, decisions to the pipeline and what needs doing to the node.
pub(super) struct Reader {
    ring: Ring,
    intake: Intake,
    commands: mpsc::Sender<Command>,
    stopping: watch::Receiver<bool>,
    /// What the node has heard of.
    told: u64,
    /// What the pipeline has been handed.
    handed: u64,
    /// The namespace that the node was last given a hint about.
    last_seen: u64,
    gathering: Gathering,
}

/// What looks at every decision.
pub(super) struct Gathering {
    /// Denials of workloads that a rollout newly enforced.
    pub newly: Arc<Newly>,
    /// Ways on which the identity option does not arrive.
    pub paths: Arc<Paths>,
}

impl Reader {
    /// Begins where the ring does, or behind what an earlier agent has stored, which is `stored`.
    pub(super) fn new(
        ring: Ring,
        stored: Option<RingMark>,
        intake: Intake,
        commands: mpsc::Sender<Command>,
        stopping: watch::Receiver<bool>,
        gathering: Gathering,
    ) -> Self {
        if let Some(mark) = stored.filter(|mark| mark.ring == Uuid::from_bytes(ring.id())) {
            ring.release(mark.position);
        }
        let start = ring.start();
        let produced = ring.produced();
        intake.follow_ring(start, move || produced.position());
        Self {
            ring,
            intake,
            commands,
            stopping,
            told: start,
            handed: start,
            last_seen: 0,
            gathering,
        }
    }

    /// Reads until the agent stops, and then what is still there.
    pub(super) fn run(mut self) {
        let mut deadline = None;
        loop {
            // Asked before the round: what comes in while stopping is still taken by the last one.
            let last = *self.stopping.borrow();
            if last && deadline.is_none() {
                self.intake.hasten();
            }
            let told = self.tell();
            let Ok(handed) = self.hand_over() else { return };
            self.give_back();
            if last {
                let until = *deadline.get_or_insert_with(|| Instant::now() + DRAIN_TIME);
                let done = told + handed == 0 && self.ring.held() == 0;
                // On a busy node no round is ever empty: what the ring still holds waits there for the next agent.
                if done || until <= Instant::now() {
                    return;
                }
            }
            if let Err(error) = self.rest(told.max(handed)) {
                tracing::error!(%error, "the ring buffer cannot be read");
                return;
            }
        }
    }

    /// Pauses after a round of `passed` events, so that more gather.
    fn rest(&self, passed: usize) -> std::io::Result<()> {
        if passed >= ROUND {
            return Ok(());
        }
        // While the ring holds what is not settled it is never quiet: waiting for it would not wait.
        if passed > 0 || self.ring.held() > 0 {
            std::thread::sleep(PAUSE);
            return Ok(());
        }
        self.ring.wait(IDLE)
    }

    /// Gives back what is settled and told.
    fn give_back(&self) {
        self.ring.release(self.intake.settled().min(self.told));
        self.intake.press(self.ring.held() > self.ring.capacity() / 2);
    }

    /// Tells the node what it should hear of, as far as it has room. Returns how many events were passed.
    fn tell(&mut self) -> usize {
        let mut passed = 0;
        while passed < ROUND {
            let mut event = None;
            let Some(next) = self.ring.look(self.told, |bytes| event = decode(bytes).ok()) else {
                break;
            };
            if let Some(event) = event {
                if !self.pass_on(&event) {
                    break;
                }
                if let Event::Decision(decision) = &event {
                    self.gathering.newly.saw(decision);
                    self.gathering.paths.saw(decision);
                }
            }
            self.told = next;
            passed += 1;
        }
        passed
    }

    /// Whether the node has heard of it, if it had to.
    fn pass_on(&mut self, event: &Event) -> bool {
        match event {
            Event::Decision(decision) => {
                if let Some(socket) = refused(decision)
                    && !self.sent(Command::Refused(socket))
                {
                    return false;
                }
                let (netns, pid) = (decision.netns, decision.pid);
                // Who makes a packet socket is in a namespace that the hook cannot tell.
                if pid != 0 && netns != 0 && netns != self.last_seen {
                    self.last_seen = netns;
                    // A hint that finds no room is given again by a later event.
                    let _ = self.commands.try_send(Command::Seen { netns, pid });
                }
                true
            }
            Event::Notice(notice) => self.sent(match notice.code {
                NoticeCode::UnownedListener => Command::UnownedListener { netns: notice.netns },
                NoticeCode::UdpBound => Command::UdpBound {
                    workload: notice.workload,
                    netns: notice.netns,
                    pid: notice.pid,
                },
            }),
        }
    }

    /// `false` where the node has no room now. One that is gone needs to hear nothing.
    fn sent(&self, command: Command) -> bool {
        !matches!(
            self.commands.try_send(command),
            Err(mpsc::error::TrySendError::Full(_))
        )
    }

    /// Hands decisions to the pipeline, as far as it has room. Returns how many events were passed.
    fn hand_over(&mut self) -> Result<usize, Closed> {
        let mut passed = 0;
        while passed < ROUND {
            let (mut decisions, mut unreadable) = (Vec::new(), Vec::new());
            let (mut end, mut events) = (self.handed, 0);
            while events < CHUNK {
                let next = self.ring.look(end, |bytes| match decode(bytes) {
                    Ok(Event::Decision(decision)) => decisions.push(decision),
                    Ok(Event::Notice(_)) => {}
                    Err(error) => unreadable.push(error),
                });
                let Some(next) = next else { break };
                end = next;
                events += 1;
            }
            if events == 0 {
                break;
            }
            let mark = RingMark {
                ring: Uuid::from_bytes(self.ring.id()),
                position: end,
            };
            if self.intake.submit(&mut decisions, Some(mark))? == Handed::NoRoom {
                break;
            }
            for error in unreadable {
                self.intake.stats().undecodable();
                tracing::warn!(%error, "an event of the kernel side cannot be read");
            }
            self.handed = end;
            passed += events;
        }
        Ok(passed)
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
