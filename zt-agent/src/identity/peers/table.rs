// SPDX-License-Identifier: Apache-2.0
//! What is believed of one node.
//!
//! Two things are kept apart: who it says is where, and which identities it has shown to hold. Whoever is somewhere by its word
//! and was not shown is *silent*. What was shown holds until the SVID ends, or the authority that it rests on goes, for as long as
//! the node says that the identity lives there: over a new connection, too, on which it has not shown it yet.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::standing::{Counts, Evidence, Standing};
use super::{Resident, Speaker, is_reachable};
use crate::spiffe_id::SpiffeId;
use crate::tls::{Authorities, NO_AUTHORITY};

/// Most addresses of one node: ten times as many pods as a kubelet takes.
const MOST_ADDRESSES: usize = 4096;
/// Most identities of one node.
const MOST_IDENTITIES: usize = 2048;

/// What a node says and is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// An address that it does not speak for.
    Address,
    /// An identity that it does not hold, by what it shows.
    Identity,
    /// More than a node can have.
    TooMany,
}

impl Refusal {
    /// The label in metrics.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Identity => "identity",
            Self::TooMany => "too_many",
        }
    }
}

/// What has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Where somebody else is now, or nobody.
    pub addresses: Vec<IpAddr>,
    /// Everybody who is shown to live there now, where that has changed.
    pub identities: Option<Vec<SpiffeId>>,
}

impl Difference {
    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.identities.is_none()
    }
}

/// What one connection has said.
#[derive(Debug, Default)]
struct Said {
    held: HashMap<SpiffeId, Evidence>,
    at: HashMap<IpAddr, Resident>,
}

impl Said {
    fn shows(&self, id: &SpiffeId, now: i64) -> bool {
        self.held.get(id).is_some_and(|held| held.expires > now)
    }
}

/// What is believed of one node: what its last connection said, until the next one has said it all.
#[derive(Debug)]
pub struct Table {
    speaker: Arc<Speaker>,
    said: Said,
    /// Said by a connection that has not said all yet.
    coming: Option<Said>,
    /// What time it is, Unix seconds. A clock that is wrong for a while takes nothing away for longer.
    now: i64,
    /// Addresses whose difference was not taken yet.
    changed: HashSet<IpAddr>,
    identities_changed: bool,
}

impl Table {
    /// Nothing yet.
    pub fn new(speaker: Arc<Speaker>, now: i64) -> Self {
        Self {
            speaker,
            said: Said::default(),
            coming: None,
            now,
            changed: HashSet::new(),
            identities_changed: false,
        }
    }

    /// It speaks for other addresses from now on. What it said of those that are none of its any more is forgotten.
    pub fn speaks(&mut self, speaker: Arc<Speaker>) {
        let before = std::mem::replace(&mut self.speaker, speaker);
        let (speaker, changed) = (&self.speaker, &mut self.changed);
        self.said.at.retain(|address, _| {
            let stays = speaker.speaks_for(*address);
            if !stays || speaker.is_disputed(*address) != before.is_disputed(*address) {
                changed.insert(*address);
            }
            stays
        });
        if let Some(coming) = &mut self.coming {
            coming.at.retain(|address, _| speaker.speaks_for(*address));
        }
    }

    /// A new connection begins to say all.
    pub fn begin(&mut self) {
        self.coming = Some(Said::default());
    }

    /// It has said all: what it did not say is no longer so.
    pub fn whole(&mut self) {
        let Some(coming) = self.coming.take() else {
            return;
        };
        let before = std::mem::replace(&mut self.said, coming);
        self.changed.extend(before.at.keys());
        self.changed.extend(self.said.at.keys());
        self.identities_changed = true;
    }

    /// It says that an identity lives there, and shows nothing new of it. What was shown before still holds.
    pub fn says(&mut self, id: &SpiffeId) {
        if let Some(coming) = &mut self.coming
            && let Some(held) = self.said.held.get(id)
            && may_count(&self.speaker, id, held)
            && coming.held.len() < MOST_IDENTITIES
        {
            coming.held.entry(id.clone()).or_insert(*held);
        }
    }

    /// It has shown that an identity lives there.
    pub fn holds(&mut self, id: SpiffeId, evidence: Evidence) -> Result<(), Refusal> {
        let said = self.coming.as_mut().unwrap_or(&mut self.said);
        if said.held.len() >= MOST_IDENTITIES && !said.held.contains_key(&id) {
            return Err(Refusal::TooMany);
        }
        let shown = said.shows(&id, self.now);
        if shown != (evidence.expires > self.now) {
            self.moved(&id);
        }
        let said = self.coming.as_mut().unwrap_or(&mut self.said);
        said.held.insert(id, evidence);
        Ok(())
    }

    /// An identity is not held there any more, nor is anybody at an address by it.
    pub fn lets(&mut self, id: &SpiffeId) {
        self.drop_evidence(id);
        let live = self.coming.is_none();
        let said = self.coming.as_mut().unwrap_or(&mut self.said);
        let changed = &mut self.changed;
        said.at.retain(|address, resident| {
            let stays = resident.spiffe != *id || resident.silent;
            if !stays && live {
                changed.insert(*address);
            }
            stays
        });
    }

    fn drop_evidence(&mut self, id: &SpiffeId) {
        let said = self.coming.as_mut().unwrap_or(&mut self.said);
        if said.held.remove(id).is_some() {
            self.moved(id);
        }
    }

    /// Whether an identity is shown to live there may be otherwise now.
    fn moved(&mut self, id: &SpiffeId) {
        if self.coming.is_some() {
            // All is told when it is whole.
            return;
        }
        self.identities_changed = true;
        let of = self.said.at.iter().filter(|(_, resident)| resident.spiffe == *id);
        self.changed.extend(of.map(|(address, _)| *address));
    }

    /// Somebody is at an address.
    pub fn at(&mut self, resident: Resident) -> Result<(), Refusal> {
        let address = resident.address.to_canonical();
        if !self.speaker.speaks_for(address) || !is_reachable(address) {
            return Err(Refusal::Address);
        }
        let live = self.coming.is_none();
        let said = self.coming.as_mut().unwrap_or(&mut self.said);
        if said.at.len() >= MOST_ADDRESSES && !said.at.contains_key(&address) {
            return Err(Refusal::TooMany);
        }
        let same = |before: &Resident| before.spiffe == resident.spiffe && before.silent == resident.silent;
        if live && !said.at.get(&address).is_some_and(same) {
            self.changed.insert(address);
        }
        said.at.insert(address, Resident { address, ..resident });
        Ok(())
    }

    /// Nobody is there any more.
    pub fn gone(&mut self, address: IpAddr) {
        let address = address.to_canonical();
        let live = self.coming.is_none();
        let said = self.coming.as_mut().unwrap_or(&mut self.said);
        if said.at.remove(&address).is_some() && live {
            self.changed.insert(address);
        }
    }

    /// What time it is by now, Unix seconds: what has ended is not shown any more, and what a clock that was put back says has not
    /// ended is shown again.
    pub fn look_at_the_clock(&mut self, now: i64) {
        let before = std::mem::replace(&mut self.now, now);
        let held = self.said.held.iter();
        let turned: HashSet<&SpiffeId> = held
            .filter(|(_, held)| (held.expires > before) != (held.expires > now))
            .map(|(id, _)| id)
            .collect();
        if turned.is_empty() {
            return;
        }
        self.identities_changed = true;
        let of = self.said.at.iter();
        let of = of.filter(|(_, resident)| turned.contains(&resident.spiffe));
        self.changed.extend(of.map(|(address, _)| *address));
    }

    /// Only these authorities are believed. How much of what was shown rests on others, and is to be shown anew.
    pub fn rests_on(&mut self, authorities: &Authorities) -> usize {
        let rests = |held: &Evidence| held.authority == NO_AUTHORITY || authorities.contains(&held.authority);
        if let Some(coming) = &mut self.coming {
            coming.held.retain(|_, held| rests(held));
        }
        let gone: HashSet<SpiffeId> = self
            .said
            .held
            .extract_if(|_, held| !rests(held))
            .map(|(id, _)| id)
            .collect();
        if !gone.is_empty() {
            self.identities_changed = true;
            let of = self
                .said
                .at
                .iter()
                .filter(|(_, resident)| gone.contains(&resident.spiffe));
            self.changed.extend(of.map(|(address, _)| *address));
        }
        gone.len()
    }

    /// When the next of what is believed ends, Unix seconds.
    pub fn next_expiry(&self) -> Option<i64> {
        let ends = self.said.held.values().map(|held| held.expires);
        ends.filter(|expires| *expires > self.now).min()
    }

    /// What has changed since this was asked last.
    pub fn difference(&mut self) -> Difference {
        let identities = std::mem::take(&mut self.identities_changed);
        Difference {
            addresses: std::mem::take(&mut self.changed).into_iter().collect(),
            identities: identities.then(|| self.shown().cloned().collect()),
        }
    }

    /// Whether something has.
    pub fn has_changed(&self) -> bool {
        self.identities_changed || !self.changed.is_empty()
    }

    /// Who is shown to live there.
    fn shown(&self) -> impl Iterator<Item = &SpiffeId> {
        let held = self.said.held.iter();
        held.filter(|(_, held)| held.expires > self.now).map(|(id, _)| id)
    }

    /// Who is at an address.
    pub fn resident(&self, address: IpAddr) -> Option<Standing<'_>> {
        self.said.at.get(&address).map(|resident| self.standing(resident))
    }

    fn standing<'t>(&self, resident: &'t Resident) -> Standing<'t> {
        if !resident.silent && self.said.shows(&resident.spiffe, self.now) {
            Standing::Shown(&resident.spiffe)
        } else {
            Standing::Silent(&resident.spiffe)
        }
    }

    /// Who is said to be where.
    pub fn residents(&self) -> impl Iterator<Item = &Resident> {
        self.said.at.values()
    }

    /// How many are believed.
    pub fn counts(&self) -> Counts {
        let silent = self.said.at.values();
        let silent = silent.filter(|resident| matches!(self.standing(resident), Standing::Silent(_)));
        let count = silent.clone().count();
        let named = silent.map(|resident| (resident.address, resident.spiffe.clone()));
        Counts {
            addresses: self.said.at.len() - count,
            identities: self.shown().count(),
            silent: count,
            some_silent: named.take(Counts::MOST_NAMED).collect(),
        }
    }

    /// Takes up what was believed before a restart.
    pub fn recall(
        &mut self,
        held: impl IntoIterator<Item = (SpiffeId, Evidence)>,
        residents: impl IntoIterator<Item = Resident>,
    ) {
        for (id, evidence) in held {
            if may_count(&self.speaker, &id, &evidence) {
                let _ = self.holds(id, evidence);
            }
        }
        for resident in residents {
            // What a changed configuration no longer lets it say is not taken up.
            let _ = self.at(resident);
        }
    }

    /// What it has shown.
    pub fn held(&self) -> impl Iterator<Item = (&SpiffeId, Evidence)> {
        self.said.held.iter().map(|(id, held)| (id, *held))
    }

    /// Nothing is believed any more. Who was where.
    pub fn forget(&mut self) -> Vec<IpAddr> {
        self.coming = None;
        let lost: Vec<IpAddr> = std::mem::take(&mut self.said).at.into_keys().collect();
        self.changed.extend(&lost);
        self.identities_changed = true;
        lost
    }
}

/// What the configuration says may have changed.
fn may_count(speaker: &Speaker, id: &SpiffeId, evidence: &Evidence) -> bool {
    evidence.authority != NO_AUTHORITY || speaker.may_say(id)
}

#[cfg(test)]
mod tests;
