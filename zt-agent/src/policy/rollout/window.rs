// SPDX-License-Identifier: Apache-2.0
//! What was refused in the last minute: which connections, and how often any of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::guard::{Edge, Refusals};

/// The seconds that denials are counted over.
pub const WINDOW: u64 = 60;
/// Most different connections that are counted. A higher limit is this one.
const MOST_EDGES: usize = 65_536;
/// The highest number of different connections that can be borne.
pub(super) const MOST_BORNE: usize = MOST_EDGES - 1;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    edges: HashMap<Edge, Refusals>,
    /// How often anything was refused, by the second.
    attempts: BTreeMap<u64, u64>,
}

impl Window {
    pub(super) fn clear(&mut self) {
        self.edges.clear();
        self.attempts.clear();
    }

    /// Takes up that a connection was refused, each time in the second of `refusals.last`.
    pub(super) fn take(&mut self, edge: Edge, refusals: Refusals) {
        let attempts = self.attempts.entry(refusals.last).or_default();
        *attempts = attempts.saturating_add(refusals.times);
        if self.edges.len() >= MOST_EDGES && !self.edges.contains_key(&edge) {
            return;
        }
        let known = self
            .edges
            .entry(edge)
            .or_insert(Refusals { times: 0, ..refusals });
        known.times = known.times.saturating_add(refusals.times);
        known.last = known.last.max(refusals.last);
        known.protocol = refusals.protocol;
    }

    /// Forgets what is longer ago than the minute that ends with the second `now`.
    pub(super) fn pass(&mut self, now: u64) {
        self.edges.retain(|_, refusals| refusals.last + WINDOW > now);
        self.attempts.retain(|second, _| second + WINDOW > now);
    }

    /// How many different connections were refused.
    pub(super) fn denials(&self) -> usize {
        self.edges.len()
    }

    /// How often any was.
    pub(super) fn attempts(&self) -> u64 {
        self.attempts.values().copied().fold(0, u64::saturating_add)
    }

    /// Those that were refused most often, so many at most. Nothing stays.
    pub(super) fn drain_worst(&mut self, most: usize) -> Vec<(Edge, Refusals)> {
        self.attempts.clear();
        let mut worst: Vec<(Edge, Refusals)> = self.edges.drain().collect();
        worst.sort_unstable_by_key(|(edge, refusals)| (Reverse(refusals.times), *edge));
        worst.truncate(most);
        worst
    }
}
