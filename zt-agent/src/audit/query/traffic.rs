// SPDX-License-Identifier: Apache-2.0
//! Recorded connections, for those who ask another policy about them: the edges of the graph, and where an end has no name
//! of its own, one for each class of addresses that whoever asks tells apart.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::Arc;

use zt_common::verdict::Reason;

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

/// Who is at both ends, by their numbers in [`Parties`], and where.
type Ends = (u32, u32, u8, u16, At, At);

/// The names of ends, each numbered: there are few of them beside the connections, whose keys and their order are numbers then.
#[derive(Debug, Default)]
struct Parties {
    numbers: HashMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
}

impl Parties {
    fn number(&mut self, name: &Arc<str>) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        // There are never more than counts that were taken in.
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.numbers.insert(Arc::clone(name), number);
        self.names.push(Arc::clone(name));
        number
    }

    /// The place of each number in the order of the names.
    fn places(&self) -> Vec<u32> {
        let mut numbers: Vec<(&Arc<str>, u32)> = self.names.iter().zip(0..).collect();
        numbers.sort_unstable();
        let mut places = vec![0; numbers.len()];
        for ((_, number), place) in numbers.into_iter().zip(0..) {
            if let Some(of) = places.get_mut(number as usize) {
                *of = place;
            }
        }
        places
    }
}

/// Adds connections up, in any order. Only who has a name is corrected, so that addresses that are one change no sum.
#[derive(Debug)]
pub struct AddingSeen<'f> {
    filter: &'f GraphFilter,
    fold: &'f Fold,
    parties: Parties,
    seen: HashMap<Ends, Sums>,
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

#[derive(Debug)]
struct Sums {
    number: u64,
    edge: Edge,
    /// The connections that correct others: they count when all others have.
    refused: u64,
    unproven: u64,
    spans: Spans,
    /// Where both ends were; most have names.
    places: Option<Box<[Addresses; 2]>>,
}

impl Sums {
    fn of(connections: &Connections, numbers: &mut u64) -> Self {
        *numbers += 1;
        Self {
            number: *numbers,
            edge: Edge::of(connections),
            refused: 0,
            unproven: 0,
            spans: Spans::default(),
            places: None,
        }
    }

    /// Counts where they were. An address that is not told is counted once: `counted` has those that were.
    fn was_at(&mut self, ends: [Option<IpAddr>; 2], counted: &mut HashSet<u64>) {
        if ends == [None, None] {
            return;
        }
        let places = self.places.get_or_insert_default();
        for (end, (place, address)) in places.iter_mut().zip(ends).enumerate() {
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
    fn join(&mut self, other: Self, counted: &mut HashSet<u64>) {
        self.edge.join(&other.edge);
        self.refused = self.refused.saturating_add(other.refused);
        self.unproven = self.unproven.saturating_add(other.unproven);
        self.spans.join(other.spans);
        let Some(others) = other.places else {
            return;
        };
        let [sources, destinations] = *others;
        for source in sources.told() {
            self.was_at([Some(*source), None], counted);
        }
        for destination in destinations.told() {
            self.was_at([None, Some(*destination)], counted);
        }
        let places = self.places.get_or_insert_default();
        for (place, untold) in places.iter_mut().zip([sources.untold(), destinations.untold()]) {
            place.count_more(untold);
        }
    }
}

impl<'f> AddingSeen<'f> {
    /// Nothing yet of what the filter asks for.
    pub fn new(filter: &'f GraphFilter, fold: &'f Fold) -> Self {
        Self {
            filter,
            fold,
            parties: Parties::default(),
            seen: HashMap::new(),
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
        let connections = &counted.connections;
        let (source, destination) = (&connections.source, &connections.destination);
        if !self.filter.takes(source, destination) {
            return Ok(());
        }
        if !is_by_policy(&counted.reason) {
            let known = self.left_out.len() < MAX_REASONS || self.left_out.contains_key(&counted.reason);
            let reason = if known { &counted.reason } else { OTHER };
            let sum = self.left_out.entry(reason.to_owned()).or_default();
            *sum = sum.saturating_add(connections.count);
            return Ok(());
        }
        let addresses = [
            counted.source_address.filter(|_| is_by_address(source)),
            counted.destination_address.filter(|_| is_by_address(destination)),
        ];
        let [from, to] = addresses;
        if from.or(to).is_some() {
            self.addresses += 1;
            if self.addresses > self.fold.most_addresses() {
                return Err(TooMuch::Addresses(self.fold.most_addresses()));
            }
        }
        let (source, destination) = (self.parties.number(source), self.parties.number(destination));
        let ends = (
            source,
            destination,
            connections.protocol,
            connections.port,
            self.fold.at(from),
            self.destination(source, connections, to),
        );
        let sums = self
            .seen
            .entry(ends)
            .or_insert_with(|| Sums::of(connections, &mut self.numbers));
        let refused = sums.edge.take(connections);
        sums.refused = sums.refused.saturating_add(refused);
        sums.spans.take(connections);
        sums.was_at(addresses, &mut self.counted);
        let counts = !connections.corrects || connections.enforced;
        if connections.denied && counts && counted.reason == Reason::ProofRequired.name() {
            sums.unproven = sums.unproven.saturating_add(connections.count);
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
        let is_many = |ends: &Ends| {
            let far = self.far.get(&ends.0);
            matches!(ends.5, At::One(_)) && far.is_some_and(|far| far.len() > few)
        };
        let apart: Vec<Ends> = self.seen.keys().filter(|ends| is_many(ends)).copied().collect();
        for mut ends in apart {
            let (Some(one), At::One(address)) = (self.seen.remove(&ends), ends.5) else {
                continue;
            };
            ends.5 = self.fold.at(Some(address));
            match self.seen.entry(ends) {
                Entry::Vacant(nobody) => {
                    nobody.insert(one);
                }
                Entry::Occupied(mut all) => all.get_mut().join(one, &mut self.counted),
            }
        }
    }

    /// All of them, in order; of raw sockets none, which are counted by themselves.
    pub fn done(mut self) -> Traffic {
        self.fold_many();
        let places = self.parties.places();
        let place = |party: u32| places.get(party as usize);
        let mut seen: Vec<(Ends, Sums)> = self.seen.into_iter().collect();
        seen.sort_unstable_by_key(|((source, destination, protocol, port, from, to), _)| {
            (place(*source), place(*destination), *protocol, *port, *from, *to)
        });
        let seen = seen
            .into_iter()
            .map(|(_, mut sums)| {
                sums.edge.correct(sums.refused);
                let places = sums.places.map(|places| *places);
                let [source_addresses, destination_addresses] = places.unwrap_or_default();
                Seen {
                    edge: sums.edge,
                    source_addresses,
                    destination_addresses,
                    unproven: sums.unproven,
                    spans: sums.spans,
                }
            })
            .collect();
        Traffic {
            seen,
            raw: Vec::new(),
            left_out: self.left_out,
        }
    }
}

#[cfg(test)]
mod tests;
