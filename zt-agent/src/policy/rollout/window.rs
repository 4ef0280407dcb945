// SPDX-License-Identifier: Apache-2.0
//! What was refused in the last minute: which connections, and how often any of them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::TOLD_APART;
use super::guard::{Edge, Refusals};

/// The seconds that denials are counted over.
pub const WINDOW: u64 = 60;
/// Most different connections that are counted: one more than can be borne.
const MOST_EDGES: usize = TOLD_APART as usize + 1;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    edges: HashMap<Edge, Refused>,
    /// How often anything was refused, by the second.
    attempts: BTreeMap<u64, u64>,
}

/// A connection that was refused.
#[derive(Clone, Debug)]
struct Refused {
    /// IP protocol number, of the last time.
    protocol: u8,
    /// How often in which seconds, in order: never nowhere.
    seconds: Vec<(u64, u64)>,
}

impl Refused {
    fn add(&mut self, refusals: Refusals) {
        self.protocol = refusals.protocol;
        // Most of what is told is of the last second.
        let place = self
            .seconds
            .partition_point(|(second, _)| *second < refusals.last);
        match self.seconds.get_mut(place) {
            Some((second, times)) if *second == refusals.last => {
                *times = times.saturating_add(refusals.times);
            }
            _ => self.seconds.insert(place, (refusals.last, refusals.times)),
        }
    }

    fn all(&self) -> Refusals {
        let times = self.seconds.iter().map(|(_, times)| *times);
        Refusals {
            protocol: self.protocol,
            times: times.fold(0, u64::saturating_add),
            last: self.seconds.last().map_or(0, |(second, _)| *second),
        }
    }
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
        let known = self.edges.entry(edge).or_insert_with(|| Refused {
            protocol: refusals.protocol,
            seconds: Vec::new(),
        });
        known.add(refusals);
    }

    /// Forgets what is longer ago than the minute that ends with the second `now`.
    pub(super) fn pass(&mut self, now: u64) {
        self.edges.retain(|_, refused| {
            refused.seconds.retain(|(second, _)| second + WINDOW > now);
            !refused.seconds.is_empty()
        });
        self.attempts.retain(|second, _| second + WINDOW > now);
    }

    /// How many different connections were refused.
    pub(super) fn denials(&self) -> u64 {
        self.edges.len() as u64
    }

    /// How often any was.
    pub(super) fn attempts(&self) -> u64 {
        self.attempts.values().copied().fold(0, u64::saturating_add)
    }

    /// Those that were refused most often, so many at most, each with how often in the minute. Nothing stays.
    pub(super) fn drain_worst(&mut self, most: usize) -> Vec<(Edge, Refusals)> {
        self.attempts.clear();
        let all = self.edges.drain().map(|(edge, refused)| (edge, refused.all()));
        let mut worst: Vec<(Edge, Refusals)> = all.collect();
        worst.sort_unstable_by_key(|(edge, refusals)| (Reverse(refusals.times), *edge));
        worst.truncate(most);
        worst
    }
}
