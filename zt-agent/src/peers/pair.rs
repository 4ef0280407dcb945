// SPDX-License-Identifier: Apache-2.0
//! One other node: its agent is dialled or waited for, listened to, and believed for a while when it is no longer heard.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::connection::{Connection, End, unix_seconds};
use super::health::{Health, State};
use super::keys::{Known, Role};
use super::memory::Kept;
use super::reach::{Arrived, dial};
use super::{Settings, Told};
use crate::identity::peers::{Local, Located, Refusal, Resident, Speaker, Table, Who};
use crate::tls::Certificates;

/// What all pairs have in common.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) health: Arc<Health>,
    pub(super) certificates: Certificates,
    pub(super) local: watch::Receiver<Arc<Local>>,
    pub(super) out: mpsc::Sender<Told>,
    pub(super) kept: Mutex<Kept>,
}

/// Nobody listens any more.
pub(super) struct Stopped;

/// One other node.
pub(super) struct Pair {
    shared: Arc<Shared>,
    speaker: Arc<Speaker>,
    number: u32,
    role: Role,
    table: Table,
    known: Known,
    proves: bool,
    /// Addresses of which nothing is believed since it was silent for too long.
    lost: HashSet<IpAddr>,
    /// Addresses that are to be told of beside those that the table says.
    restless: HashSet<IpAddr>,
    /// When what it said is no longer believed; `None` while it is heard, and when it is so already.
    hold: Option<Instant>,
    pause: Duration,
    arriving: mpsc::Receiver<Arrived>,
    /// Who was refused is not listened to before.
    not_before: Instant,
}

impl Pair {
    /// A pair that goes on with what the last agent `recalled`, for as long as it is held.
    pub(super) fn new(
        shared: Arc<Shared>,
        speaker: Arc<Speaker>,
        number: u32,
        uses: u64,
        recalled: Option<(bool, Vec<Resident>)>,
        arriving: mpsc::Receiver<Arrived>,
    ) -> Self {
        let own = &shared.settings.node;
        let role = if **own < *speaker.neighbour.name {
            Role::Dials
        } else {
            Role::Listens
        };
        let mut table = Table::new(Arc::clone(&speaker));
        let own = own_addresses(&speaker).collect();
        let now = Instant::now();
        let (proves, residents) = recalled.unwrap_or_default();
        let believed = uses != 0 || !residents.is_empty();
        table.recall(residents);
        let state = if believed { State::Stale } else { State::Unknown };
        shared.health.stands(&speaker.neighbour.name, state, None);
        shared.health.counts(&speaker.neighbour.name, table.counts());
        Self {
            hold: believed.then(|| now + shared.settings.hold),
            pause: shared.settings.timing.pauses.0,
            known: Known { highest: uses, uses },
            shared,
            speaker,
            number,
            role,
            table,
            proves,
            lost: HashSet::new(),
            restless: own,
            arriving,
            not_before: now,
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn speaker(&self) -> &Speaker {
        &self.speaker
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
        loop {
            let hold = self.hold;
            let arrived = tokio::select! {
                arrived = self.reach() => arrived,
                () = due(hold) => {
                    if self.give_up().await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let mut next = Some(arrived);
            while let Some(arrived) = next.take() {
                let role = self.role;
                let (end, was_whole) = match Connection::new(&mut self, role, arrived) {
                    Ok(connection) => connection.run().await,
                    Err(end) => (end, false),
                };
                if was_whole {
                    self.pause = self.shared.settings.timing.pauses.0;
                    self.hold = Some(Instant::now() + self.shared.settings.hold);
                }
                match end {
                    End::Stopped => return,
                    End::Replaced(arrived) => next = Some(*arrived),
                    End::Renew => self.unheard("certificates are newer: a new connection is made"),
                    End::Lost(why) => {
                        self.unheard(&why);
                        // Who hangs up at once is not dialled at once.
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

    fn unheard(&self, why: &str) {
        let state = if self.hold.is_some() {
            State::Stale
        } else {
            State::Unknown
        };
        if self.shared.health.stands(self.name(), state, Some(why)) {
            tracing::warn!(node = %self.name(), why, "no connection to the agent of another node; what it said last holds for a while");
        }
    }

    /// Waits for a connection, or makes one.
    async fn reach(&mut self) -> Arrived {
        loop {
            if self.role == Role::Listens {
                return self.arrived().await;
            }
            sleep_until(self.not_before).await;
            let why = match dial(&self.shared, &self.speaker).await {
                Ok(arrived) => return arrived,
                Err(error) => error,
            };
            if let Some(cause) = why.cause() {
                self.refuse(cause, &why.to_string());
            }
            self.unheard(&why.to_string());
            let pause = self.next_pause();
            self.not_before = Instant::now() + pause;
        }
    }

    /// The next connection that the other end makes.
    pub(super) async fn arrived(&mut self) -> Arrived {
        loop {
            match self.arriving.recv().await {
                Some(arrived) if Instant::now() >= self.not_before => return arrived,
                // Hung up upon.
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// What was said is no longer believed.
    async fn give_up(&mut self) -> Result<(), Stopped> {
        self.hold = None;
        self.known.uses = 0;
        let lost = self.table.forget();
        tracing::warn!(node = %self.name(), addresses = lost.len(), "another node was not heard for too long: whoever is at its addresses is unknown");
        self.restless.extend(lost.iter().copied());
        self.lost.extend(lost);
        self.shared.health.stands(
            self.name(),
            State::Unknown,
            Some("it was not heard for longer than `identity.peers.hold`"),
        );
        self.shared.health.counts(self.name(), (0, 0));
        self.shared.health.keys(self.name(), 0, self.proves);
        self.tell(Told::Forget { node: self.number }).await?;
        self.tell_changes().await
    }

    /// A connection begins to say all.
    pub(super) fn begin(&mut self) {
        self.table.begin();
    }

    /// Whether its workloads prove.
    pub(super) fn proves(&mut self, proves: bool) {
        self.proves = proves;
        let uses = if proves { self.known.uses } else { 0 };
        self.shared.health.keys(self.name(), uses, proves);
    }

    pub(super) fn knows(&mut self, known: Known) {
        self.known = known;
    }

    /// Keys of that epoch are in use.
    pub(super) fn uses(&mut self, epoch: u64) {
        self.shared.health.keys(self.name(), epoch, self.proves);
        tracing::debug!(node = %self.name(), epoch, "new keys with another node");
    }

    fn stands(&mut self, state: State, error: Option<&str>) {
        if state == State::Connected {
            self.hold = None;
            self.pause = self.shared.settings.timing.pauses.0;
        }
        if self.shared.health.stands(self.name(), state, error) {
            let (addresses, identities) = self.table.counts();
            tracing::info!(node = %self.name(), addresses, identities, proves = self.proves, "the agent of another node has said who lives there");
        }
    }

    /// Something that it said is not believed.
    pub(super) fn refused(&self, refusal: Refusal, why: &str) {
        self.refuse(refusal.cause(), why);
    }

    fn refuse(&self, cause: &'static str, why: &str) {
        if self.shared.health.refused(Some(self.name()), cause, why) {
            tracing::warn!(node = %self.name(), cause, "refused what another node says: {why}");
        }
    }

    pub(super) fn expire(&mut self, now: i64) {
        self.table.expire(now);
    }

    /// When something of what is believed ends.
    pub(super) fn next_expiry(&self) -> Instant {
        // A day is far enough.
        let left = self.table.next_expiry().map_or(86_400, |expires| {
            expires.saturating_sub(unix_seconds()).clamp(1, 86_400)
        });
        Instant::now() + Duration::from_secs(left.unsigned_abs())
    }

    pub(super) async fn tell(&self, told: Told) -> Result<(), Stopped> {
        self.shared.out.send(told).await.map_err(|_| Stopped)
    }

    /// It has said all.
    pub(super) fn whole(&mut self) {
        self.table.whole();
        self.restless.extend(self.lost.drain());
        self.stands(State::Connected, None);
    }

    /// Tells what has changed.
    pub(super) async fn tell_changes(&mut self) -> Result<(), Stopped> {
        let difference = self.table.difference();
        if difference.is_empty() && self.restless.is_empty() {
            return Ok(());
        }
        let mut changed = std::mem::take(&mut self.restless);
        changed.extend(difference.addresses);
        self.shared.health.counts(self.name(), self.table.counts());
        self.keep();
        let addresses = changed.into_iter();
        let told = Told::Changed {
            node: self.number,
            addresses: addresses
                .map(|address| (address, self.located(address)))
                .collect(),
            identities: difference.identities,
        };
        self.tell(told).await
    }

    fn located(&self, address: IpAddr) -> Option<Located> {
        let who = match self.table.resident(address) {
            _ if self.lost.contains(&address) => Who::Nobody,
            Some(id) => Who::Workload(id.clone()),
            None if own_addresses(&self.speaker).any(|own| own == address) => Who::Node,
            None => return None,
        };
        Some(Located {
            proves: self.proves && matches!(who, Who::Workload(_)),
            who,
            node: self.number,
        })
    }

    /// Has it kept for the next agent.
    fn keep(&self) {
        let residents = self.table.residents().cloned().collect();
        let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.set(self.name(), self.number, self.proves, residents);
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// From 0 to 1.
fn jitter() -> f64 {
    let mut bytes = [0; 4];
    // Without it all come back at once.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

/// The addresses of the node itself, among those that it speaks for.
pub(super) fn own_addresses(speaker: &Speaker) -> impl Iterator<Item = IpAddr> {
    let nets = speaker.neighbour.speaks_for.iter();
    nets.filter(|net| net.prefix_len() == net.max_prefix_len())
        .map(|net| net.addr().to_canonical())
}
