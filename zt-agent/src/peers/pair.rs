// SPDX-License-Identifier: Apache-2.0
//! One other node: its agent is dialled or waited for, listened to, and believed for a while when it is no longer heard.

mod begin;
mod belief;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

pub(super) use self::begin::Recall;
use super::allowance::{Allowance, Pace, Words};
use super::connection::{Connection, End, unix_seconds};
use super::health::{Health, State};
use super::keys::{Known, Role};
use super::memory::Kept;
use super::reach::{Arrived, dial};
use super::retiring::Retiring;
use super::{Settings, Told};
use crate::identity::peers::{Local, Refusal, Speaker, Table};
use crate::tls::{Authorities, Certificates};

/// What a node may say at once: all that it can have, twice.
const BURST: f64 = 16_384.0;
/// What it may say in a second from then on.
const PER_SECOND: f64 = 200.0;
/// What a connection of its own costs it.
const CONNECTION: f64 = 64.0;
/// A connection that lives as long as that was none that somebody has end again and again.
const STEADY: Duration = Duration::from_secs(10);

/// What all pairs have in common.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) health: Arc<Health>,
    pub(super) certificates: Certificates,
    pub(super) local: watch::Receiver<Option<Arc<Local>>>,
    pub(super) out: mpsc::Sender<Told>,
    pub(super) kept: Mutex<Kept>,
}

/// Nobody listens any more.
pub(super) struct Stopped;

/// One other node.
pub(super) struct Pair {
    shared: Arc<Shared>,
    speaker: Arc<Speaker>,
    /// What it speaks for may change.
    speakers: watch::Receiver<Arc<Speaker>>,
    number: u32,
    role: Role,
    table: Table,
    known: Known,
    proves: bool,
    /// Addresses of which nothing is believed since it was silent for too long.
    lost: HashSet<IpAddr>,
    /// Addresses that are to be told of beside those that the table says.
    restless: HashSet<IpAddr>,
    /// Networks about which the node thread was told that all has been said.
    networks: Vec<IpNet>,
    /// When what it said is no longer believed; `None` while it is heard, and when it is so already.
    hold: Option<Instant>,
    /// Since when it is not heard, Unix seconds.
    unheard: Option<i64>,
    /// Networks about which all has been said, and is believed.
    covered: Vec<IpNet>,
    /// Epochs of the keys that it needs; `None` until it has said so.
    needed: Option<[u64; 2]>,
    retiring: Retiring,
    /// Whom its certificates were believed by.
    authorities: Option<Arc<Authorities>>,
    allowance: Allowance,
    words: Words,
    pause: Duration,
    arriving: mpsc::Receiver<Arrived>,
    /// Who was refused is not listened to before.
    not_before: Instant,
    /// How often the node thread is told what has changed.
    pace: Pace,
    /// When what has changed is kept for the next agent.
    keep_at: Option<Instant>,
}

impl Pair {
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    pub(super) fn speakers(&self) -> watch::Receiver<Arc<Speaker>> {
        self.speakers.clone()
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.speaker.neighbour.name
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// When what it said is no longer believed, if it is not heard.
    pub(super) fn holds_until(&self) -> Option<Instant> {
        self.hold
    }

    pub(super) fn known(&self) -> Known {
        self.known
    }

    pub(super) fn table(&mut self) -> &mut Table {
        &mut self.table
    }

    /// Follows the node until the task is aborted.
    pub(super) async fn run(mut self) {
        // Where its agent is reached is a node's address before it has said anything.
        if self.tell_changes().await.is_err() {
            return;
        }
        let mut speakers = self.speakers();
        let mut certificates = self.shared.certificates.clone();
        loop {
            // Also what has changed while it was listened to.
            speakers.mark_unchanged();
            certificates.mark_unchanged();
            if self.look_around().await.is_err() {
                return;
            }
            let next = self.next_moment();
            let arrived = tokio::select! {
                arrived = self.reach() => Some(arrived),
                Ok(()) = speakers.changed() => None,
                Ok(()) = certificates.changed() => None,
                () = sleep_until(next) => None,
            };
            let mut next = arrived;
            while let Some(arrived) = next.take() {
                let role = self.role;
                let begun = Instant::now();
                let (end, was_whole) = match Connection::new(&mut self, role, arrived) {
                    Ok(connection) => connection.run().await,
                    Err(end) => (end, false),
                };
                if was_whole {
                    if begun.elapsed() >= STEADY {
                        self.pause = self.shared.settings.timing.pauses.0;
                    }
                    self.hold = Some(Instant::now() + self.shared.settings.hold);
                    self.unheard = Some(unix_seconds());
                    self.keep_now();
                }
                match end {
                    End::Stopped => return,
                    End::Replaced(arrived) => next = Some(*arrived),
                    End::Distrusted(why) => {
                        self.refuse("tls", &why);
                        if self.give_up(&why).await.is_err() || self.forget_keys().await.is_err() {
                            return;
                        }
                        self.rest();
                    }
                    // Who hangs up at once is not dialled at once; nor is who makes this end do it.
                    End::Renew(why) | End::Lost(why) => {
                        self.unheard(&why);
                        if self.role == Role::Dials {
                            self.rest();
                        }
                    }
                    End::Refused(cause, why) => {
                        self.refuse(cause, &why);
                        self.unheard(&why);
                        self.rest();
                    }
                }
            }
        }
    }

    /// When there is something to do although nothing happens.
    fn next_moment(&self) -> Instant {
        let expiry = self.next_expiry();
        let retires = self.retires();
        [self.hold, retires]
            .into_iter()
            .flatten()
            .fold(expiry, Instant::min)
    }

    /// What has changed while it is not heard.
    async fn look_around(&mut self) -> Result<(), Stopped> {
        let speaker = Arc::clone(&self.speakers.borrow_and_update());
        self.speaks(speaker);
        self.rests_on_authorities();
        let now = Instant::now();
        if self.hold.is_some_and(|hold| now >= hold) {
            self.give_up("it was not heard for longer than `identity.peers.hold`")
                .await?;
        }
        self.look_at_the_clock();
        self.retire(now).await?;
        self.tell_changes().await?;
        // Not later on: who is dialled is not hung up upon for that.
        if self.keep_at.is_some() {
            self.keep_now();
        }
        Ok(())
    }

    /// What rests on somebody who is not believed any more is forgotten, and nothing else. Whether that was something.
    pub(super) fn rests_on_authorities(&mut self) -> bool {
        let Some(now) = authorities(&self.shared.certificates) else {
            return false;
        };
        let same = self.authorities.as_ref() == Some(&now);
        let gone = if same { 0 } else { self.table.rests_on(&now) };
        self.authorities = Some(now);
        gone > 0
    }

    /// Whether it may do that much more. It may not do more by connecting anew.
    pub(super) fn may(&mut self, much: f64) -> bool {
        self.allowance.take(much, Instant::now())
    }

    /// The pause after a refusal; who comes meanwhile is not listened to.
    fn rest(&mut self) {
        let pause = self.next_pause();
        self.not_before = Instant::now() + pause;
    }

    fn next_pause(&mut self) -> Duration {
        let longest = self.shared.settings.timing.pauses.1;
        let pause = self.pause;
        self.pause = (pause * 2).min(longest);
        // Up to as much again, so that not all nodes come back in the same moment.
        pause + pause.mul_f64(jitter())
    }

    fn unheard(&mut self, why: &str) {
        let state = if self.hold.is_some() {
            State::Stale
        } else {
            State::Unknown
        };
        if self.shared.health.stands(self.name(), state, Some(why))
            && let Some(unsaid) = self.words.may_say(Instant::now())
        {
            tracing::warn!(node = %self.name(), why, unsaid, "no connection to the agent of another node; what it said last holds for a while");
        }
    }

    /// Waits for a connection, or makes one.
    async fn reach(&mut self) -> Arrived {
        loop {
            if self.role == Role::Listens {
                return self.arrived().await;
            }
            sleep_until(self.not_before).await;
            match dial(&self.shared, &self.speaker).await {
                Ok(arrived) if self.may(CONNECTION) => return arrived,
                Ok(_) => self.refuse(
                    "flood",
                    "connections to it end more often than they have reason to",
                ),
                Err(error) => {
                    let why = error.to_string();
                    if let Some(cause) = error.cause() {
                        self.refuse(cause, &why);
                    }
                    self.unheard(&why);
                }
            }
            self.rest();
        }
    }

    /// The next connection that the other end makes.
    pub(super) async fn arrived(&mut self) -> Arrived {
        loop {
            match self.arriving.recv().await {
                // Who is refused is hung up upon.
                Some(_) if Instant::now() < self.not_before => {}
                Some(arrived) if self.may(CONNECTION) => return arrived,
                Some(_) => self.refuse("flood", "it connects more often than a node has reason to"),
                None => std::future::pending().await,
            }
        }
    }

    /// Something that it said is not believed.
    pub(super) fn refused(&mut self, refusal: Refusal, why: &str) {
        self.shared.health.disbelieved(self.name(), true);
        self.refuse(refusal.cause(), why);
    }

    fn refuse(&mut self, cause: &'static str, why: &str) {
        if self.shared.health.refused(Some(self.name()), cause, why)
            && let Some(unsaid) = self.words.may_say(Instant::now())
        {
            tracing::warn!(node = %self.name(), cause, unsaid, "refused what another node says: {why}");
        }
    }

    pub(super) async fn tell(&self, told: Told) -> Result<(), Stopped> {
        self.shared.out.send(told).await.map_err(|_| Stopped)
    }
}

/// Who is believed; `None` as long as there are no certificates.
fn authorities(certificates: &Certificates) -> Option<Arc<Authorities>> {
    let certificates = certificates.borrow();
    let mutual = certificates.as_ref().as_ref()?;
    Some(Arc::clone(mutual.authorities()))
}

/// From 0 to 1.
fn jitter() -> f64 {
    let mut bytes = [0; 4];
    // Without it all come back at once.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}
