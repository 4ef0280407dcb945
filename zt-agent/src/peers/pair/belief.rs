// SPDX-License-Identifier: Apache-2.0
//! What is believed of a node, and what of that the node thread is told.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Pair, Stopped};
use crate::identity::peers::{Counts, Located, Speaker, Who};
use crate::peers::connection::unix_seconds;
use crate::peers::health::State;
use crate::peers::keys::Known;
use crate::peers::memory::KeptNode;
use crate::peers::{Told, recalled};

/// Seconds after which the clock may say something else.
const LOOK: i64 = 60;

impl Pair {
    /// What was said is no longer believed: nobody lives there as far as this node knows, so that no tag from there verifies. The keys
    /// stay: the kernel there goes on with its own, and refuses who does not prove, until the node is gone or is heard again.
    pub(super) async fn give_up(&mut self, why: &str) -> Result<(), Stopped> {
        self.hold = None;
        self.covered.clear();
        let lost = self.table.forget();
        if let Some(unsaid) = self.words.may_say(Instant::now()) {
            tracing::warn!(node = %self.name(), addresses = lost.len(), why, unsaid, "what another node said is no longer believed: whoever is at its addresses is unknown");
        }
        self.lost.extend(lost);
        self.shared.health.stands(self.name(), State::Unknown, Some(why));
        self.shared.health.counts(self.name(), Counts::default());
        self.tell_changes().await
    }

    /// Nothing is proven to it any more either.
    pub(super) async fn forget_keys(&mut self) -> Result<(), Stopped> {
        self.known.uses = 0;
        self.needed = None;
        self.shared.health.keys(self.name(), 0, self.proves);
        self.tell(Told::Forget { node: self.number }).await
    }

    /// It speaks for other addresses, or others claim them. Whether there are some of which it was not believed.
    pub(in crate::peers) fn speaks(&mut self, speaker: Arc<Speaker>) -> bool {
        if speaker == self.speaker {
            return false;
        }
        let before = std::mem::replace(&mut self.speaker, Arc::clone(&speaker));
        self.restless.extend(before.own_addresses());
        self.restless.extend(speaker.own_addresses());
        let gone: Vec<IpAddr> = self
            .lost
            .extract_if(|address| !speaker.speaks_for(*address))
            .collect();
        self.restless.extend(gone);
        let known = before.networks();
        let more = speaker.networks().iter().any(|net| !known.contains(net));
        self.table.speaks(speaker);
        more
    }

    /// A connection begins to say all.
    pub(in crate::peers) fn begin(&mut self) {
        self.table.begin();
        self.shared.health.disbelieved(self.name(), false);
    }

    /// Whether its workloads prove.
    pub(in crate::peers) fn proves(&mut self, proves: bool) {
        self.proves = proves;
        let uses = if proves { self.known.uses } else { 0 };
        self.shared.health.keys(self.name(), uses, proves);
    }

    pub(in crate::peers) fn knows(&mut self, known: Known) {
        self.known = known;
    }

    /// Keys of that epoch are in use.
    pub(in crate::peers) fn uses(&mut self, epoch: u64) {
        self.shared.health.keys(self.name(), epoch, self.proves);
        tracing::debug!(node = %self.name(), epoch, "new keys with another node");
    }

    /// Places of the keys by which it is verified: those of these epochs, and those that were needed until a moment ago: what was
    /// sent with them may still be on its way.
    pub(in crate::peers) fn places(&mut self, needed: [u64; 2]) -> Vec<u64> {
        let now = Instant::now();
        let until = now + self.shared.settings.timing.overlap;
        let before = self.needed.replace(needed).into_iter().flatten();
        for epoch in before.filter(|epoch| !needed.contains(epoch)) {
            self.retiring.add(epoch, until);
        }
        self.retiring.places(needed, now)
    }

    /// The key of an epoch is put in its place.
    pub(in crate::peers) fn placed_key(&mut self, epoch: u64) {
        self.retiring.replace(epoch);
    }

    /// When a key is no longer accepted.
    pub(in crate::peers) fn retires(&self) -> Option<Instant> {
        self.needed.and_then(|_| self.retiring.next())
    }

    /// Has keys forgotten whose time has come.
    pub(in crate::peers) async fn retire(&mut self, now: Instant) -> Result<(), Stopped> {
        let Some(needed) = self.needed else { return Ok(()) };
        if self.retiring.next().is_none_or(|next| now < next) {
            return Ok(());
        }
        let needed = self.places(needed);
        let node = self.number;
        self.tell(Told::Needed { node, needed }).await
    }

    /// What has ended by now is not believed any more, for as long as the clock says so.
    pub(in crate::peers) fn look_at_the_clock(&mut self) {
        self.table.look_at_the_clock(unix_seconds());
    }

    /// When something of what is believed ends, or the clock may say otherwise.
    pub(in crate::peers) fn next_expiry(&self) -> Instant {
        let left = self.table.next_expiry().map_or(LOOK, |expires| {
            expires.saturating_sub(unix_seconds()).clamp(1, LOOK)
        });
        Instant::now() + Duration::from_secs(left.unsigned_abs())
    }

    /// It has said all.
    pub(in crate::peers) fn whole(&mut self) {
        self.table.whole();
        self.restless.extend(self.lost.drain());
        self.hold = None;
        self.unheard = None;
        self.covered = self.speaker.networks();
        self.keep_now();
        let counts = self.table.counts();
        self.shared.health.counts(self.name(), counts.clone());
        if self.shared.health.stands(self.name(), State::Connected, None)
            && let Some(unsaid) = self.words.may_say(Instant::now())
        {
            let Counts {
                addresses,
                identities,
                silent,
                ..
            } = counts;
            tracing::info!(node = %self.name(), addresses, identities, silent, proves = self.proves, unsaid, "the agent of another node has said who lives there");
        }
    }

    /// When what has changed is to be told: at once, or together with what changes meanwhile where it changes again and again.
    pub(in crate::peers) fn tells_at(&self) -> Option<Instant> {
        let has_changed = self.table.has_changed() || !self.restless.is_empty();
        has_changed.then(|| self.pace.next())
    }

    /// Tells what has changed by now.
    pub(in crate::peers) async fn tell_changes(&mut self) -> Result<(), Stopped> {
        let difference = self.table.difference();
        if !difference.is_empty() || !self.restless.is_empty() {
            self.pace.told(Instant::now());
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
            self.tell(told).await?;
        }
        self.tell_networks().await
    }

    /// About which addresses its word is all there is to know. After what it says of them.
    async fn tell_networks(&mut self) -> Result<(), Stopped> {
        // What it may speak about only now it has not said yet.
        let covered = if self.proves { &self.covered[..] } else { &[] };
        let networks = self.speaker.alone_in(covered);
        if networks == self.networks {
            return Ok(());
        }
        self.networks.clone_from(&networks);
        self.keep();
        let node = self.number;
        self.tell(Told::Speaks { node, networks }).await
    }

    fn located(&self, address: IpAddr) -> Option<Located> {
        let who = if self.lost.contains(&address) {
            Some(Who::Nobody)
        } else {
            recalled::who_is_at(&self.speaker, &self.table, address)
        };
        who.map(|who| recalled::located(who, self.number, self.proves))
    }

    /// Has it kept for the next agent, soon.
    pub(super) fn keep(&mut self) {
        let at = Instant::now() + self.shared.settings.timing.save;
        self.keep_at.get_or_insert(at);
    }

    /// The same, if it is time.
    pub(in crate::peers) fn keep_if_due(&mut self, now: Instant) {
        if self.keep_at.is_some_and(|at| at <= now) {
            self.keep_now();
        }
    }

    /// When it is.
    pub(in crate::peers) fn keeps_at(&self) -> Option<Instant> {
        self.keep_at
    }

    /// The same, now.
    pub(super) fn keep_now(&mut self) {
        self.keep_at = None;
        let kept = KeptNode {
            number: self.number,
            proves: self.proves,
            residents: self.table.residents().cloned().collect(),
            shown: self.table.held().map(|(id, held)| (id.clone(), held)).collect(),
            networks: self.covered.clone(),
            unheard: self.unheard,
            lost: self.lost.iter().copied().collect(),
        };
        let mut all = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        all.set(self.name(), kept);
    }
}
