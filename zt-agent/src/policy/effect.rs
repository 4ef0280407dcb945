// SPDX-License-Identifier: Apache-2.0
//! What a change of policy means for flows: the two compiled tables are asked about the same flows, by the one verdict
//! function, and what they say differently is the effect.
//!
//! Nobody asks about every pair of parties. A pair can only be judged differently if the entries about it differ, and a
//! workload that no rule names is judged as every other such workload: one *stranger* stands for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zt_common::entry::{AllowKey, Shapes};
use zt_common::identity;
use zt_common::verdict::AllowLookup as _;

use super::action::Protocol;
use super::cut::{self, Cut, Outcome};
use super::entity::ENTITIES;
use super::exemplar::Exemplars;
use super::hash::FastMap;
use super::network;
use super::ports::PortRange;
use super::table::{AllowTable, Party};
use crate::spiffe_id::SpiffeId;

/// Stand for any workload that no rule names, as source and as destination. They are two, for nobody is a stranger to itself.
const STRANGERS: [u64; 2] = [u64::MAX, u64::MAX - 1];
/// Most pairs of parties that are looked at, and most effects that are told.
const MAX_PAIRS: usize = 4_000_000;
const MAX_EFFECTS: usize = 200_000;
/// What a stranger is called.
pub const ANY_OTHER: &str = "*";

/// What changes between two parties.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// A SPIFFE ID, a pattern, an entity, `cidr:` and a network, or `*`: any workload that no rule about the other party names.
    pub source: String,
    /// As `source`.
    pub destination: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Ports and ranges of ports; empty for all.
    pub ports: Vec<String>,
    /// What was said before.
    pub before: Outcome,
    /// What is said after.
    pub after: Outcome,
    /// The rule that decided before.
    pub rule_before: Option<String>,
    /// The rule that decides after.
    pub rule_after: Option<String>,
}

/// A workload whose right to raw sockets changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawEffect {
    /// The workload, or the pattern.
    pub source: String,
    /// Before.
    pub before: Outcome,
    /// After.
    pub after: Outcome,
}

/// All that changes for flows and raw sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effects {
    /// Between parties, ordered by them.
    pub flows: Vec<Effect>,
    /// Raw sockets.
    pub raw_sockets: Vec<RawEffect>,
    /// Pairs of parties that were not looked at, for there are too many.
    #[serde(default)]
    pub beyond: usize,
}

impl Effects {
    /// Whether nothing changes, as far as is known.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.raw_sockets.is_empty() && self.beyond == 0
    }
}

/// A party, by the number under which each of the two tables knows it.
#[derive(Clone, Debug)]
struct Someone {
    name: String,
    numbers: [u64; 2],
}

/// What changes for flows when `after` takes the place of `before`. Both must have been compiled for the same identities; those
/// of `exemplars` stand for patterns.
pub fn effects(before: &AllowTable, after: &AllowTable, exemplars: &Exemplars) -> Effects {
    let tables = [before, after];
    let parties = parties(tables, exemplars);
    let cuts = tables.map(Cut::new);
    let mut flows = Vec::new();
    let Pairs {
        set: pairs,
        mut beyond,
    } = pairs(&cuts, &parties);
    for (source, destination) in pairs {
        if flows.len() < MAX_EFFECTS {
            compare(&cuts, &parties[source], &parties[destination], &mut flows);
        } else {
            beyond += 1;
        }
    }
    flows.sort_by(|a, b| {
        (&a.source, &a.destination, &a.protocol, &a.ports).cmp(&(
            &b.source,
            &b.destination,
            &b.protocol,
            &b.ports,
        ))
    });
    let raw = |party: &Someone| {
        let of = |table: &AllowTable| Outcome::from(&table.decide_raw_socket(party.numbers[0]));
        let (was, is) = (of(before), of(after));
        (was != is).then(|| RawEffect {
            source: party.name.clone(),
            before: was,
            after: is,
        })
    };
    let workloads = parties
        .iter()
        .filter(|party| identity::is_workload(party.numbers[0]));
    Effects {
        flows,
        raw_sockets: workloads.filter_map(raw).collect(),
        beyond,
    }
}

/// The strangers first, then whoever a table tells apart.
fn parties(tables: [&AllowTable; 2], exemplars: &Exemplars) -> Vec<Someone> {
    let stranger = |number| Someone {
        name: ANY_OTHER.to_owned(),
        numbers: [number, number],
    };
    let mut parties: Vec<Someone> = STRANGERS.map(stranger).into();
    parties.extend(ENTITIES.iter().map(|(name, number)| Someone {
        name: (*name).to_owned(),
        numbers: [*number, *number],
    }));
    let identities: BTreeSet<&SpiffeId> = tables.iter().flat_map(|table| table.identities()).collect();
    parties.extend(identities.into_iter().map(|id| Someone {
        name: exemplars.get(id).cloned().unwrap_or_else(|| id.to_string()),
        numbers: tables.map(|table| table.number(Party::Spiffe(id))),
    }));
    let networks: BTreeSet<IpNet> = tables
        .iter()
        .flat_map(|table| table.networks().entries().map(|(network, _)| network))
        .collect();
    let named: BTreeSet<String> = tables
        .iter()
        .flat_map(|table| table.network_names().map(|(_, name)| name))
        .collect();
    for network in &networks {
        let name = network::name(network);
        let Some(address) = representative(network, &networks).filter(|_| named.contains(&name)) else {
            continue;
        };
        parties.push(Someone {
            name,
            numbers: tables.map(|table| table.number(Party::Address(address))),
        });
    }
    parties
}

/// An address of a network that is in none of the narrower ones; `None` where they fill it.
fn representative(network: &IpNet, all: &BTreeSet<IpNet>) -> Option<IpAddr> {
    let narrower: Vec<&IpNet> = all
        .iter()
        .filter(|other| *other != network && network.contains(*other))
        .collect();
    let mut address = network.network();
    while let Some(around) = narrower
        .iter()
        .filter(|other| other.contains(&address))
        .min_by_key(|other| other.prefix_len())
    {
        address = next(around.broadcast())?;
        if !network.contains(&address) {
            return None;
        }
    }
    Some(address)
}

fn next(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().checked_add(1)?.into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().checked_add(1)?.into()),
    })
}

/// Pairs of parties, as places in the list.
#[derive(Default)]
struct Pairs {
    set: BTreeSet<(usize, usize)>,
    /// How many found no room.
    beyond: usize,
}

impl Pairs {
    fn add(&mut self, source: usize, destination: usize) {
        if self.set.len() < MAX_PAIRS {
            self.set.insert((source, destination));
        } else if !self.set.contains(&(source, destination)) {
            self.beyond += 1;
        }
    }
}

/// Which pairs of parties may be judged differently.
fn pairs(cuts: &[Cut<'_>; 2], parties: &[Someone]) -> Pairs {
    let mut pairs = Pairs::default();
    let switches = cuts.each_ref().map(|cut| {
        let bits = cut.table().get(&AllowKey::HEADER).map_or(0, |header| header.bits);
        bits & (Shapes::DEFAULT_ALLOW | Shapes::SELF | Shapes::HOST)
    });
    // Without a policy there is no header, and nobody may anything.
    let same_switches =
        switches[0] == switches[1] && cuts[0].table().is_empty() == cuts[1].table().is_empty();
    let mut places: [FastMap<u64, Vec<usize>>; 2] = [FastMap::default(), FastMap::default()];
    for (place, party) in parties.iter().enumerate() {
        for (places, number) in places.iter_mut().zip(party.numbers) {
            places.entry(number).or_default().push(place);
        }
    }
    // Those with entries of their own about any workload.
    let (mut to_any, mut from_any) = (BTreeSet::new(), BTreeSet::new());
    for (cut, places) in cuts.iter().zip(&places) {
        let of = |number: u64| places.get(&number).map_or(&[][..], Vec::as_slice);
        for (source, destination) in cut.pairs() {
            match (source, destination) {
                (identity::ANY, identity::ANY) => {}
                (identity::ANY, destination) => from_any.extend(of(destination)),
                (source, identity::ANY) => to_any.extend(of(source)),
                (source, destination) => {
                    for source in of(source) {
                        for destination in of(destination) {
                            pairs.add(*source, *destination);
                        }
                    }
                }
            }
        }
    }
    to_any.insert(0);
    from_any.insert(1);
    if !same_switches {
        // A switch is about everybody. For workloads without entries of their own the stranger stands; for who is none, nobody does.
        for (place, party) in parties.iter().enumerate() {
            if !party.numbers.into_iter().all(identity::is_workload) {
                to_any.insert(place);
                from_any.insert(place);
            }
        }
    }
    // To itself nobody is a stranger: what is said to any workload may be about one and itself.
    for place in 0..parties.len() {
        pairs.add(place, place);
    }
    for source in &to_any {
        for destination in &from_any {
            pairs.add(*source, *destination);
        }
    }
    pairs.set.retain(|(source, destination)| {
        let numbers = |table: usize| {
            (
                parties[*source].numbers[table],
                parties[*destination].numbers[table],
            )
        };
        let (was, is) = (numbers(0), numbers(1));
        !stranger_to_itself(*source, *destination)
            && (!same_switches || cuts[0].about(was.0, was.1) != cuts[1].about(is.0, is.1))
    });
    pairs
}

/// The first two parties are one: as source the first, as destination the second.
const fn stranger_to_itself(source: usize, destination: usize) -> bool {
    source == 1 || destination == 0
}

/// What a table says, and by which rule.
type Said = (Outcome, u64);

fn compare(cuts: &[Cut<'_>; 2], source: &Someone, destination: &Someone, effects: &mut Vec<Effect>) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let about =
            (0..2).flat_map(|table| cuts[table].about(source.numbers[table], destination.numbers[table]));
        let mut changed: BTreeMap<[Said; 2], Vec<PortRange>> = BTreeMap::new();
        for range in cut::ranges(about, protocol) {
            let said = [0, 1].map(|table| {
                let (from, to) = (source.numbers[table], destination.numbers[table]);
                let verdict = cuts[table].verdict(from, to, range.first, protocol);
                (Outcome::from(&verdict), verdict.rule)
            });
            if said[0].0 != said[1].0 {
                cut::extend(changed.entry(said).or_default(), range);
            }
        }
        let rule = |table: usize, number| cuts[table].table().rule_name(number).map(|name| name.to_string());
        effects.extend(changed.into_iter().map(|([was, is], ranges)| Effect {
            source: source.name.clone(),
            destination: destination.name.clone(),
            protocol: protocol.name().to_owned(),
            ports: cut::texts(&ranges),
            before: was.0,
            after: is.0,
            rule_before: rule(0, was.1),
            rule_after: rule(1, is.1),
        }));
    }
}
