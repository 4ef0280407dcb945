// SPDX-License-Identifier: Apache-2.0
//! What is believed of one node.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Resident, Speaker, is_reachable};
use crate::spiffe_id::SpiffeId;

/// Most addresses of one node: ten times as many pods as a kubelet takes.
const MOST_ADDRESSES: usize = 4096;
/// Most identities of one node.
const MOST_IDENTITIES: usize = 2048;

/// What a node says and is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// An address that it does not speak for.
    Address,
    /// An identity that it has not shown to hold.
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
    /// Everybody who lives there now, where that has changed.
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
    /// Identities, and when what shows that they live there ends; Unix seconds.
    held: HashMap<SpiffeId, i64>,
    at: HashMap<IpAddr, Resident>,
}

/// What is believed of one node: what its last connection said, until the next one has said it all.
#[derive(Debug)]
pub struct Table {
    speaker: Arc<Speaker>,
    said: Said,
    /// Said by a connection that has not said all yet.
    coming: Option<Said>,
    /// Addresses whose difference was not taken yet.
    changed: HashSet<IpAddr>,
    identities_changed: bool,
}

impl Table {
    /// Nothing yet.
    pub fn new(speaker: Arc<Speaker>) -> Self {
        Self {
            speaker,
            said: Said::default(),
            coming: None,
            changed: HashSet::new(),
            identities_changed: false,
        }
    }

    /// Whom it is about.
    pub fn speaker(&self) -> &Arc<Speaker> {
        &self.speaker
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

    /// It has shown that an identity lives there, until `expires`.
    pub fn holds(&mut self, id: SpiffeId, expires: i64) -> Result<(), Refusal> {
        let live = self.coming.is_none();
        let said = self.coming.as_mut().unwrap_or(&mut self.said);
        if said.held.len() >= MOST_IDENTITIES && !said.held.contains_key(&id) {
            return Err(Refusal::TooMany);
        }
        self.identities_changed |= said.held.insert(id, expires).is_none() && live;
        Ok(())
    }

    /// An identity no longer lives there, nor at any address.
    pub fn lets(&mut self, id: &SpiffeId) {
        let live = self.coming.is_none();
        let said = self.coming.as_mut().unwrap_or(&mut self.said);
        if said.held.remove(id).is_none() {
            return;
        }
        self.identities_changed |= live;
        let changed = &mut self.changed;
        said.at.retain(|address, resident| {
            let stays = resident.spiffe != *id;
            if !stays && live {
                changed.insert(*address);
            }
            stays
        });
    }

    /// Somebody is at an address.
    pub fn at(&mut self, resident: Resident) -> Result<(), Refusal> {
        let address = resident.address.to_canonical();
        if !self.speaker.speaks_for(address) || !is_reachable(address) {
            return Err(Refusal::Address);
        }
        let live = self.coming.is_none();
        let said = self.coming.as_mut().unwrap_or(&mut self.said);
        if !said.held.contains_key(&resident.spiffe) {
            return Err(Refusal::Identity);
        }
        if said.at.len() >= MOST_ADDRESSES && !said.at.contains_key(&address) {
            return Err(Refusal::TooMany);
        }
        let before = said.at.get(&address);
        if live && before.is_none_or(|before| before.spiffe != resident.spiffe) {
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

    /// Takes back what has ended by `now`, Unix seconds.
    pub fn expire(&mut self, now: i64) {
        let over = |said: &Said| -> Vec<SpiffeId> {
            let held = said.held.iter().filter(|(_, expires)| **expires <= now);
            held.map(|(id, _)| id.clone()).collect()
        };
        let coming = self.coming.as_ref().map(over).unwrap_or_default();
        for id in coming {
            self.lets(&id);
        }
        // What is believed while the next connection has not said all ends as well.
        let coming = self.coming.take();
        for id in over(&self.said) {
            self.lets(&id);
        }
        self.coming = coming;
    }

    /// When the next of what is believed ends, Unix seconds.
    pub fn next_expiry(&self) -> Option<i64> {
        self.said.held.values().min().copied()
    }

    /// What has changed since this was asked last.
    pub fn difference(&mut self) -> Difference {
        let identities = std::mem::take(&mut self.identities_changed);
        Difference {
            addresses: std::mem::take(&mut self.changed).into_iter().collect(),
            identities: identities.then(|| self.said.held.keys().cloned().collect()),
        }
    }

    /// Who is believed to be at an address.
    pub fn resident(&self, address: IpAddr) -> Option<&SpiffeId> {
        self.said.at.get(&address).map(|resident| &resident.spiffe)
    }

    /// Who is believed to be where.
    pub fn residents(&self) -> impl Iterator<Item = &Resident> {
        self.said.at.values()
    }

    /// How many addresses and identities are believed.
    pub fn counts(&self) -> (usize, usize) {
        (self.said.at.len(), self.said.held.len())
    }

    /// Takes up what was believed before a restart.
    pub fn recall(
        &mut self,
        held: impl IntoIterator<Item = (SpiffeId, i64)>,
        residents: impl IntoIterator<Item = Resident>,
    ) {
        for (id, expires) in held {
            let _ = self.holds(id, expires);
        }
        for resident in residents {
            // What a changed configuration no longer lets it say is not taken up.
            let _ = self.at(resident);
        }
    }

    /// Identities that are believed to live there, and until when; Unix seconds.
    pub fn held(&self) -> impl Iterator<Item = (&SpiffeId, i64)> {
        self.said.held.iter().map(|(id, expires)| (id, *expires))
    }

    /// Nothing is believed any more. Who was where.
    pub fn forget(&mut self) -> Vec<IpAddr> {
        self.changed.clear();
        self.identities_changed = false;
        self.coming = None;
        std::mem::take(&mut self.said).at.into_keys().collect()
    }
}

#[cfg(test)]
mod tests;
