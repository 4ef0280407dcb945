// SPDX-License-Identifier: Apache-2.0
//! What is counted of connections between the same two.

use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::net::IpAddr;

use super::Seen;
use crate::audit::query::{Addresses, Connections, Edge, Spans};

/// Connections that are one, added up.
#[derive(Debug)]
pub(super) struct Sums {
    /// No other ones have it, or ever had.
    number: u64,
    edge: Edge,
    /// The connections that correct others: they count when all others have.
    refused: u64,
    unproven: u64,
    spans: Spans,
    /// Where both ends were; most have names.
    places: [Addresses; 2],
}

/// All sums, each at a place that has a number. Half of a map is room for more, so that what is large lies here instead; a place whose
/// sums are taken is the next ones'.
#[derive(Debug, Default)]
pub(super) struct Kept {
    places: Vec<Option<Sums>>,
    free: Vec<u32>,
}

impl Kept {
    /// Keeps sums, and says where.
    pub(super) fn put(&mut self, sums: Sums) -> u32 {
        let free = self.free.pop();
        // There are never more than counts that were taken in.
        let number = free.unwrap_or_else(|| u32::try_from(self.places.len()).unwrap_or(u32::MAX));
        match self.places.get_mut(number as usize) {
            Some(place) => *place = Some(sums),
            None => self.places.push(Some(sums)),
        }
        number
    }

    /// The sums at a place.
    pub(super) fn at(&mut self, number: u32) -> Option<&mut Sums> {
        self.places.get_mut(number as usize)?.as_mut()
    }

    /// Gives up the sums at a place.
    pub(super) fn take(&mut self, number: u32) -> Option<Sums> {
        let sums = self.places.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(sums)
    }
}

impl Sums {
    /// Nothing yet, of that edge.
    pub(super) fn of(number: u64, edge: Edge) -> Self {
        Self {
            number,
            edge,
            refused: 0,
            unproven: 0,
            spans: Spans::default(),
            places: <[Addresses; 2]>::default(),
        }
    }

    /// Counts these; `unproven`, if they were denied for want of proof.
    pub(super) fn take(&mut self, connections: &Connections, unproven: bool) {
        let refused = self.edge.take(connections);
        self.refused = self.refused.saturating_add(refused);
        self.spans.take(connections);
        let counts = !connections.corrects || connections.enforced;
        if unproven && connections.denied && counts {
            self.unproven = self.unproven.saturating_add(connections.count);
        }
    }

    /// Counts where they were. An address that is not told is counted once: `counted` has those that were.
    pub(super) fn was_at(&mut self, ends: [Option<IpAddr>; 2], counted: &mut HashSet<u64>) {
        for (end, (place, address)) in self.places.iter_mut().zip(ends).enumerate() {
            let Some(untold) = address.and_then(|address| place.take(address)) else {
                continue;
            };
            let hash = counted.hasher().hash_one((self.number, end, untold));
            if counted.insert(hash) {
                place.count_more(1);
            }
        }
    }

    /// Takes in others between the same two.
    pub(super) fn join(&mut self, other: Self, counted: &mut HashSet<u64>) {
        self.edge.join(&other.edge);
        self.refused = self.refused.saturating_add(other.refused);
        self.unproven = self.unproven.saturating_add(other.unproven);
        self.spans.join(other.spans);
        let [sources, destinations] = other.places;
        for source in sources.told() {
            self.was_at([Some(*source), None], counted);
        }
        for destination in destinations.told() {
            self.was_at([None, Some(*destination)], counted);
        }
        for (place, untold) in self
            .places
            .iter_mut()
            .zip([sources.untold(), destinations.untold()])
        {
            place.count_more(untold);
        }
    }

    /// What was seen, when all are counted.
    pub(super) fn seen(self) -> Seen {
        let Self {
            mut edge,
            refused,
            unproven,
            spans,
            places: [source_addresses, destination_addresses],
            ..
        } = self;
        edge.correct(refused);
        Seen {
            edge,
            source_addresses,
            destination_addresses,
            unproven,
            spans,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::{Protocol, Timestamp};

    fn sums(number: u64) -> Sums {
        let edge = Edge {
            source: "a".into(),
            destination: "b".into(),
            protocol: Protocol(6),
            port: 80,
            allowed: 0,
            denied: 0,
            would_deny: 0,
            first_seen: Timestamp(1),
            last_seen: Timestamp(1),
        };
        Sums::of(number, edge)
    }

    #[test]
    fn a_place_whose_sums_are_taken_is_the_next_ones() {
        let mut kept = Kept::default();
        assert_eq!([1, 2, 3].map(|number| kept.put(sums(number))), [0, 1, 2]);
        assert_eq!(kept.take(1).map(|sums| sums.number), Some(2));
        assert!(kept.at(1).is_none() && kept.take(1).is_none());
        assert_eq!(kept.put(sums(4)), 1);
        assert_eq!(kept.at(1).map(|sums| sums.number), Some(4));
        assert_eq!((kept.put(sums(5)), kept.places.len()), (3, 4));
    }
}
