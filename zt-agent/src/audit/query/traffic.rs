// SPDX-License-Identifier: Apache-2.0
//! Recorded connections, for those who ask another policy about them: the edges of the graph, and where an end has no name
//! of its own, one for each class of addresses that whoever asks tells apart.

mod numbered;
mod sums;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use zt_common::verdict::Reason;

use self::numbered::Numbered;
use self::sums::{Kept, Sums};
use super::addresses::Addresses;
use super::fold::{At, Fold};
use super::graph::{Connections, Edge};
use super::raw::RawSeen;
use super::span::Spans;
use super::{GraphFilter, TooMuch};

/// Connections from one party to another, each counted once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who, whom, and how often. What was refused for another reason than policy (a tag that does not verify, a socket
    /// that nobody may have) is in none of its counts.
    pub edge: Edge,
    /// Where the source was, if it is known by its address alone.
    pub source_addresses: Addresses,
    /// Where the destination was, if it is known by its address alone.
    pub destination_addresses: Addresses,
    /// How many of those denied, and of those that would be, were so because they did not prove who the ends are.
    pub unproven: u64,
    /// When, by what was decided.
    pub spans: Spans,
}

/// Recorded connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Those that policy decided, in order.
    pub seen: Vec<Seen>,
    /// Sockets that take the right to raw sockets, in order.
    pub raw: Vec<RawSeen>,
    /// How many were decided for another reason than policy, by that reason.
    pub left_out: BTreeMap<String, u64>,
}

/// Connections that a store counted together.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Between whom, and how many.
    pub connections: Connections,
    /// Why it was decided so.
    pub reason: String,
    /// Where the source was, if it is known by its address alone.
    pub source_address: Option<IpAddr>,
    /// Where the destination was, if it is known by its address alone.
    pub destination_address: Option<IpAddr>,
}

/// [`is_by_address`] in SQL, of a column.
macro_rules! by_address {
    ($name:literal) => {
        concat!(
            "(",
            $name,
            " IN ('world', 'unknown') OR ",
            $name,
            " LIKE 'cidr:%')"
        )
    };
}
pub(in crate::audit) use by_address;

/// Whether a party of that name is whoever has an address in some network: another policy may know it by another name.
pub fn is_by_address(name: &str) -> bool {
    matches!(name, "world" | "unknown") || name.starts_with("cidr:")
}

/// Whether a decision for that reason follows from policy, the two parties, and whether they prove who they are.
pub fn is_by_policy(reason: &str) -> bool {
    let reasons = [
        Reason::Rule,
        Reason::DenyRule,
        Reason::NoRule,
        Reason::DefaultAllow,
        Reason::UnknownSource,
        Reason::UnknownDestination,
        Reason::NoPolicy,
        Reason::ProofRequired,
    ];
    reasons.iter().any(|of| of.name() == reason)
}

/// Most reasons that are told apart: who may write records may write any word.
const MAX_REASONS: usize = 64;
/// What all further ones are together.
const OTHER: &str = "other";

/// Who is at both ends and where, by their numbers in [`AddingSeen::parties`] and [`AddingSeen::places`].
type Ends = (u32, u32, u8, u16, u32, u32);

/// Adds connections up, in any order. Only who has a name is corrected, so that addresses that are one change no sum.
#[derive(Debug)]
pub struct AddingSeen<'f> {
    filter: &'f GraphFilter,
    fold: &'f Fold,
    parties: Numbered<Arc<str>>,
    places: Numbered<At>,
    /// Where the sums of each are.
    seen: HashMap<Ends, u32, RandomState>,
    sums: Kept,
    /// Whether some are told apart that are one by now, because their source reached many.
    has_many: bool,
    /// How many of them there ever were.
    numbers: u64,
    /// How many counts had an address.
    addresses: usize,
    /// Hashes of addresses that are counted and not told.
    counted: HashSet<u64>,
    /// The addresses of the world that each source reached, as far as these may be few: one more tells that they are not.
    far: HashMap<u32, HashSet<IpAddr>>,
    left_out: BTreeMap<String, u64>,
}

impl<'f> AddingSeen<'f> {
    /// Nothing yet of what the filter asks for.
    pub fn new(filter: &'f GraphFilter, fold: &'f Fold) -> Self {
        Self {
            filter,
            fold,
            parties: Numbered::default(),
            places: Numbered::default(),
            seen: HashMap::default(),
            sums: Kept::default(),
            has_many: false,
            numbers: 0,
            addresses: 0,
            counted: HashSet::new(),
            far: HashMap::new(),
            left_out: BTreeMap::new(),
        }
    }

    /// Counts these, as far as the filter asks for them.
    pub fn take(&mut self, counted: &Counted) -> Result<(), TooMuch> {
        let addresses = [counted.source_address, counted.destination_address];
        self.add(&counted.connections, &counted.reason, addresses)
    }

    /// The same, of what was decided for that reason, and where source and destination were, as far as they are known by that.
    pub fn add(
        &mut self,
        connections: &Connections,
        reason: &str,
        [from, to]: [Option<IpAddr>; 2],
    ) -> Result<(), TooMuch> {
        let (source, destination) = (&connections.source, &connections.destination);
        if !self.filter.takes(source, destination) {
            return Ok(());
        }
        if !is_by_policy(reason) {
            let known = self.left_out.len() < MAX_REASONS || self.left_out.contains_key(reason);
            let reason = if known { reason } else { OTHER };
            let sum = self.left_out.entry(reason.to_owned()).or_default();
            *sum = sum.saturating_add(connections.count);
            return Ok(());
        }
        let from = from.filter(|_| is_by_address(source));
        let to = to.filter(|_| is_by_address(destination));
        if from.or(to).is_some() {
            self.addresses += 1;
            if self.addresses > self.fold.most_addresses() {
                return Err(TooMuch::Addresses(self.fold.most_addresses()));
            }
        }
        let (source, destination) = (self.parties.number(source), self.parties.number(destination));
        let places = [self.fold.at(from), self.destination(source, connections, to)];
        let [from_place, to_place] = places.map(|place| self.places.number(&place));
        let (protocol, port) = (connections.protocol, connections.port);
        let ends = (source, destination, protocol, port, from_place, to_place);
        let place = *self.seen.entry(ends).or_insert_with(|| {
            // Each name is kept once, however often it was read.
            let name = |number, read| Arc::clone(self.parties.value(number).unwrap_or(read));
            let edge = Edge {
                source: name(source, &connections.source),
                destination: name(destination, &connections.destination),
                ..Edge::of(connections)
            };
            self.numbers += 1;
            self.sums.put(Sums::of(self.numbers, edge))
        });
        if let Some(sums) = self.sums.at(place) {
            sums.take(connections, reason == Reason::ProofRequired.name());
            sums.was_at([from, to], &mut self.counted);
        }
        if self.seen.len() > self.fold.most() && self.has_many {
            self.fold_many();
        }
        if self.seen.len() > self.fold.most() {
            return Err(TooMuch::Seen(self.fold.most()));
        }
        Ok(())
    }

    /// Where their destination is: by itself, as long as it is one of few.
    fn destination(&mut self, source: u32, connections: &Connections, address: Option<IpAddr>) -> At {
        let Some(address) = address.filter(|_| self.fold.looks_for_few(connections)) else {
            return self.fold.at(address);
        };
        let known = self.far.entry(source).or_default();
        let few = self.fold.few();
        if known.len() <= few {
            // The first one too many.
            self.has_many |= known.insert(address) && known.len() > few;
        }
        if known.len() <= few {
            At::One(address)
        } else {
            self.fold.at(Some(address))
        }
    }

    /// Puts together what was told apart because it seemed to be of few.
    fn fold_many(&mut self) {
        self.has_many = false;
        let few = self.fold.few();
        let one_of_many = |ends: &Ends| match self.places.value(ends.5) {
            Some(At::One(address)) if self.far.get(&ends.0)?.len() > few => Some((*ends, *address)),
            _ => None,
        };
        let apart: Vec<(Ends, IpAddr)> = self.seen.keys().filter_map(one_of_many).collect();
        for (mut ends, address) in apart {
            let Some(one) = self.seen.remove(&ends) else {
                continue;
            };
            ends.5 = self.places.number(&self.fold.at(Some(address)));
            match self.seen.entry(ends) {
                Entry::Vacant(nobody) => {
                    nobody.insert(one);
                }
                Entry::Occupied(all) => {
                    let one = self.sums.take(one);
                    if let (Some(one), Some(all)) = (one, self.sums.at(*all.get())) {
                        all.join(one, &mut self.counted);
                    }
                }
            }
        }
    }

    /// All of them, in order; of raw sockets none, which are counted by themselves.
    pub fn done(mut self) -> Traffic {
        self.fold_many();
        let (parties, places) = (self.parties.places(), self.places.places());
        let of = |places: &[u32], number: u32| places.get(number as usize).copied().unwrap_or(number);
        let in_order = |(source, destination, protocol, port, from, to): Ends| -> Ends {
            let (source, destination) = (of(&parties, source), of(&parties, destination));
            (
                source,
                destination,
                protocol,
                port,
                of(&places, from),
                of(&places, to),
            )
        };
        let seen = self.seen.into_iter();
        let mut order: Vec<(Ends, u32)> = seen.map(|(ends, place)| (in_order(ends), place)).collect();
        order.sort_unstable();
        let mut seen = Vec::with_capacity(order.len());
        let sums = order.into_iter().filter_map(|(_, place)| self.sums.take(place));
        seen.extend(sums.map(Sums::seen));
        Traffic {
            seen,
            raw: Vec::new(),
            left_out: self.left_out,
        }
    }
}

#[cfg(test)]
mod tests;
