// SPDX-License-Identifier: Apache-2.0
//! How it stands with the agents of other nodes. Everybody may look at any time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::identity::peers::{Counts, Dispute, Roster, Speaker};
use crate::identity::since::now;

/// Why other agents are refused, or what they say is not believed: each has a sample from the start.
pub const REFUSALS: [&str; 11] = [
    "address",
    "crowded",
    "direction",
    "flood",
    "identity",
    "not_a_node",
    "protocol",
    "silent",
    "tls",
    "too_many",
    "unkept",
];

/// For how long not all that there is to know may be heard before somebody else is asked. Agents that are started or exchanged do
/// not have the whole cluster listed.
const MISSING_FOR: Duration = Duration::from_secs(30);
/// For how long all must be heard before he is not asked any more.
const WHOLE_FOR: Duration = Duration::from_secs(60);
/// Disputes that are told of.
pub(super) const MOST_DISPUTES: usize = 256;

/// What is known of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It is heard, and has said all.
    Connected,
    /// It is not heard; what it said last is still believed.
    Stale,
    /// It has not been heard for so long, or ever: whoever is there is unknown.
    #[default]
    Unknown,
}

impl State {
    /// Every state, in order.
    pub const ALL: [Self; 3] = [Self::Connected, Self::Stale, Self::Unknown];

    /// The label in metrics, and the word in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
        }
    }
}

/// How it stands with one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Where its agent is looked for.
    pub address: Arc<str>,
    /// What is known.
    pub state: State,
    /// Since when, Unix nanoseconds.
    pub since: i64,
    /// Why there is no connection; `None` while there is one.
    pub error: Option<Arc<str>>,
    /// How many are there.
    pub counts: Counts,
    /// Something of what it said over this connection was not believed.
    pub disbelieved: bool,
    /// It was heard before, by this agent or the one before.
    was_heard: bool,
    /// Since when not all that there is to know of it is heard; `None` while it is.
    missing: Option<Instant>,
    /// Its workloads prove who they are in handshakes.
    pub proves: bool,
    /// The epoch of the keys in use towards it; 0 where there are none.
    pub epoch: u64,
    /// What it said and was not believed.
    pub refused: u64,
    /// The last of these.
    pub refusal: Option<Arc<str>>,
}

impl NodeStatus {
    /// Why somebody else is to be asked about it.
    fn missing(&self) -> Option<String> {
        match self.state {
            State::Connected if self.disbelieved => {
                Some("not all that its agent says is believed".to_owned())
            }
            State::Connected if self.counts.silent > 0 => Some(format!(
                "its agent shows nothing of {} who live there",
                self.counts.silent
            )),
            State::Connected => None,
            State::Stale | State::Unknown => Some("its agent is not heard".to_owned()),
        }
    }

    fn changed(&mut self) {
        self.missing = self.missing().and(self.missing.or_else(|| Some(Instant::now())));
    }
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The other nodes, by name.
    pub nodes: BTreeMap<Arc<str>, NodeStatus>,
    /// What was refused, by cause.
    pub refused: BTreeMap<&'static str, u64>,
    /// Connections that were made.
    pub connections: u64,
    /// Changes of keys.
    pub rotations: u64,
    /// Addresses that more than one node claims, some of them.
    pub disputes: Vec<Dispute>,
    /// How many there are.
    pub disputed: usize,
    /// Nodes of the cluster that no agent can tell of whole, and why.
    pub left_out: BTreeMap<Arc<str>, String>,
    /// Why the Kubernetes API is asked about pods of other nodes as well; `None`: it is not.
    pub asked: Option<Arc<str>>,
    /// The other nodes are known.
    listed: bool,
    /// Since when all is heard that there is to know.
    whole: Option<Instant>,
}

impl Status {
    /// Why somebody else is to be asked, if he is.
    fn others_wanted(&mut self, asked: bool, now: Instant) -> Option<String> {
        if !self.listed {
            return Some("which other nodes there are is not known yet".to_owned());
        }
        if let Some((node, why)) = self.left_out.first_key_value() {
            return Some(format!("{node}: {why}"));
        }
        let mut missing = self
            .nodes
            .iter()
            .filter_map(|(name, node)| Some((name, node, node.missing()?)));
        let Some((name, first, why)) = missing.next() else {
            let whole = *self.whole.get_or_insert(now);
            let waits = asked && now.saturating_duration_since(whole) < WHOLE_FOR;
            return waits.then(|| "until all have been heard for a minute".to_owned());
        };
        let why = Some(format!("{name}: {why}"));
        let is_urgent = |node: &NodeStatus| {
            let since = node.missing.unwrap_or(now);
            !node.was_heard || now.saturating_duration_since(since) >= MISSING_FOR
        };
        let wanted = asked || is_urgent(first) || missing.any(|(_, node, _)| is_urgent(node));
        self.whole = None;
        why.filter(|_| wanted)
    }
}

/// What is known of the other agents.
#[derive(Debug)]
pub struct Health {
    status: Mutex<Status>,
    /// Whose which addresses are.
    speakers: Mutex<Vec<(Arc<str>, Arc<Speaker>)>>,
}

impl Default for Health {
    fn default() -> Self {
        let status = Status {
            refused: REFUSALS.iter().map(|cause| (*cause, 0)).collect(),
            ..Status::default()
        };
        Self {
            status: Mutex::new(status),
            speakers: Mutex::default(),
        }
    }
}

impl Health {
    /// How it stands now.
    pub fn status(&self) -> Status {
        self.lock().clone()
    }

    /// Whether somebody else is to be asked who is on other nodes, given whether he is: unless all of them are known and heard, and
    /// all that they say is believed. One that was never heard has him asked at once, any other one after a while.
    pub fn others_wanted(&self, asked: bool, now: Instant) -> bool {
        let mut status = self.lock();
        let why = status.others_wanted(asked, now);
        status.asked = why.as_deref().map(Arc::from);
        why.is_some()
    }

    /// Somebody else is asked in any case.
    pub fn others_are_asked(&self, why: &str) {
        self.lock().asked = Some(Arc::from(why));
    }

    /// Addresses that more than one node claims.
    pub(super) fn disputes(&self) -> Vec<Dispute> {
        self.lock().disputes.clone()
    }

    /// The node that has an address, if it is another one, and no second one claims it as well.
    pub fn node_at(&self, address: IpAddr) -> Option<Arc<str>> {
        let speakers = self.speakers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of = speakers.iter().filter(|(_, speaker)| speaker.speaks_for(address));
        let (name, _) = of.find(|(_, speaker)| !speaker.is_disputed(address))?;
        Some(Arc::clone(name))
    }

    /// How many nodes are in each of [`State::ALL`].
    pub fn states(&self) -> [usize; State::ALL.len()] {
        let status = self.lock();
        State::ALL.map(|state| status.nodes.values().filter(|node| node.state == state).count())
    }

    /// These are all nodes that there are, and what they disagree about.
    pub fn knows(&self, roster: &Roster) {
        let speakers = roster
            .iter()
            .map(|(name, speaker)| (Arc::clone(name), Arc::clone(speaker)));
        *self.speakers.lock().unwrap_or_else(PoisonError::into_inner) = speakers.collect();
        let mut status = self.lock();
        status.nodes.retain(|name, _| roster.get(name).is_some());
        for (name, speaker) in roster.iter() {
            let entry = status
                .nodes
                .entry(Arc::clone(name))
                .or_insert_with(|| NodeStatus {
                    since: now(),
                    missing: Some(Instant::now()),
                    ..NodeStatus::default()
                });
            entry.address = Arc::clone(&speaker.neighbour.address);
        }
        let disputes = roster.disputes();
        status.disputed = disputes.len();
        status.disputes = disputes.iter().take(MOST_DISPUTES).cloned().collect();
        status.left_out.clone_from(roster.left_out());
        status.listed = true;
    }

    /// What is known of a node, and why there is no connection. Whether that is news.
    pub fn stands(&self, node: &str, state: State, error: Option<&str>) -> bool {
        let mut status = self.lock();
        let Some(entry) = status.nodes.get_mut(node) else {
            return false;
        };
        let news = entry.state != state || entry.error.as_deref() != error;
        if entry.state != state {
            entry.state = state;
            entry.since = now();
        }
        entry.error = error.map(Arc::from);
        entry.was_heard |= state != State::Unknown;
        entry.changed();
        if state == State::Connected {
            status.connections += u64::from(news);
        }
        news
    }

    /// What is believed of a node.
    pub(super) fn counts(&self, node: &str, counts: Counts) {
        if let Some(entry) = self.lock().nodes.get_mut(node) {
            entry.counts = counts;
            entry.changed();
        }
    }

    /// Something that a node says is not believed, or it begins to say everything anew.
    pub(super) fn disbelieved(&self, node: &str, disbelieved: bool) {
        if let Some(entry) = self.lock().nodes.get_mut(node) {
            entry.disbelieved = disbelieved;
            entry.changed();
        }
    }

    /// Which keys are in use.
    pub(super) fn keys(&self, node: &str, epoch: u64, proves: bool) {
        let mut status = self.lock();
        if let Some(entry) = status.nodes.get_mut(node) {
            let rotated = epoch != 0 && entry.epoch != epoch;
            (entry.epoch, entry.proves) = (epoch, proves);
            status.rotations += u64::from(rotated);
        }
    }

    /// Something was refused, by one of [`REFUSALS`]. Whether it is another one than the last.
    pub(super) fn refused(&self, node: Option<&str>, cause: &'static str, why: &str) -> bool {
        debug_assert!(REFUSALS.contains(&cause), "{cause} is in no list");
        let mut status = self.lock();
        *status.refused.entry(cause).or_default() += 1;
        let Some(entry) = node.and_then(|node| status.nodes.get_mut(node)) else {
            return true;
        };
        entry.refused += 1;
        let news = entry.refusal.as_deref() != Some(why);
        if news {
            entry.refusal = Some(Arc::from(why));
        }
        news
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
