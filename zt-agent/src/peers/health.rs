// SPDX-License-Identifier: Apache-2.0
//! How it stands with the agents of other nodes. Everybody may look at any time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::identity::peers::Dispute;
use crate::identity::since::now;

/// Why other agents are refused, or what they say is not believed: each has a sample from the start.
pub const REFUSALS: [&str; 10] = [
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
];

/// For how long a node may be unknown before somebody else is asked; nanoseconds. Agents that are started or exchanged do
/// not have the whole cluster listed.
const UNKNOWN_FOR: i64 = 120_000_000_000;

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
    /// Addresses at which somebody is.
    pub addresses: usize,
    /// Identities that live there.
    pub identities: usize,
    /// Its workloads prove who they are in handshakes.
    pub proves: bool,
    /// The epoch of the keys in use towards it; 0 where there are none.
    pub epoch: u64,
    /// What it said and was not believed.
    pub refused: u64,
    /// The last of these.
    pub refusal: Option<Arc<str>>,
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
    /// Addresses that more than one node claims.
    pub disputes: Vec<Dispute>,
    /// The other nodes are known.
    pub listed: bool,
}

/// What is known of the other agents.
#[derive(Debug)]
pub struct Health {
    status: Mutex<Status>,
}

impl Default for Health {
    fn default() -> Self {
        let status = Status {
            refused: REFUSALS.iter().map(|cause| (*cause, 0)).collect(),
            ..Status::default()
        };
        Self {
            status: Mutex::new(status),
        }
    }
}

impl Health {
    /// How it stands now.
    pub fn status(&self) -> Status {
        self.lock().clone()
    }

    /// Whether somebody else is to be asked who is on other nodes, given whether he is: as long as not all of them are known,
    /// and again when one is not for a while. `now` is in Unix nanoseconds.
    pub fn others_wanted(&self, asked: bool, now: i64) -> bool {
        let status = self.lock();
        let mut unknown = status.nodes.values().filter(|node| node.state == State::Unknown);
        let since = |node: &NodeStatus| now.saturating_sub(node.since);
        !status.listed || unknown.any(|node| asked || since(node) >= UNKNOWN_FOR)
    }

    /// How many nodes are in each of [`State::ALL`].
    pub fn states(&self) -> [usize; State::ALL.len()] {
        let status = self.lock();
        State::ALL.map(|state| status.nodes.values().filter(|node| node.state == state).count())
    }

    /// These are all nodes; what they disagree about.
    pub(super) fn disputed(&self, disputes: &[Dispute]) {
        let mut status = self.lock();
        status.disputes = disputes.to_vec();
        status.listed = true;
    }

    /// There is such a node.
    pub(super) fn listed(&self, node: &Arc<str>, address: &Arc<str>) {
        let mut status = self.lock();
        let entry = status
            .nodes
            .entry(Arc::clone(node))
            .or_insert_with(|| NodeStatus {
                since: now(),
                ..NodeStatus::default()
            });
        entry.address = Arc::clone(address);
    }

    /// There is no such node any more.
    pub(super) fn removed(&self, node: &str) {
        self.lock().nodes.remove(node);
    }

    /// What is known of a node, and why there is no connection. Whether that is news.
    pub(super) fn stands(&self, node: &str, state: State, error: Option<&str>) -> bool {
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
        if state == State::Connected {
            status.connections += u64::from(news);
        }
        news
    }

    /// What is believed of a node.
    pub(super) fn counts(&self, node: &str, (addresses, identities): (usize, usize)) {
        if let Some(entry) = self.lock().nodes.get_mut(node) {
            (entry.addresses, entry.identities) = (addresses, identities);
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
mod tests {
    use super::*;

    #[test]
    fn others_are_asked_until_all_nodes_are_known_and_again_when_one_is_not_for_long() {
        let health = Health::default();
        let soon = now() + UNKNOWN_FOR / 2;
        assert!(health.others_wanted(true, soon) && health.others_wanted(false, soon));
        health.disputed(&[]);
        assert!(!health.others_wanted(true, soon), "there are no other nodes");
        let [one, two] = ["one", "two"].map(Arc::<str>::from);
        health.listed(&one, &one);
        health.listed(&two, &two);
        health.stands(&one, State::Connected, None);
        assert!(health.others_wanted(true, soon));
        assert!(!health.others_wanted(false, soon), "it is given time");
        assert!(health.others_wanted(false, now() + UNKNOWN_FOR + 1));
        health.stands(&two, State::Stale, None);
        assert!(!health.others_wanted(true, soon), "what it said is believed");
        health.stands(&two, State::Unknown, None);
        assert!(health.others_wanted(true, soon));
    }
}
