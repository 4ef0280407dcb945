// SPDX-License-Identifier: Apache-2.0
//! From policies and identities to the allow table.

mod alone;
mod undeclared;

use std::collections::BTreeSet;
use std::hash::BuildHasherDefault;
use std::rc::Rc;
use std::sync::Arc;

use ipnet::IpNet;
use zt_common::entry::{ACTION_DENY, AllowEntry, AllowKey, PROTOCOL_RAW, REQUIRES_PROOF, Shapes};
use zt_common::identity;
use zt_common::names::MAX_ALLOW_ENTRIES;

use super::Settings;
use super::action::Action;
use super::alike::told_apart;
use super::document::{Rule, Target};
use super::endpoint::Endpoint;
use super::group::{self, Groups, Parties};
use super::hash::FastMap;
use super::network::Networks;
use super::ports::{self, Block};
use super::set::PolicySet;
use super::table::AllowTable;
use crate::spiffe_id::{Pattern, SpiffeId};

pub(super) use alone::Alone;

/// Why policies and identities, each valid by itself, give no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// More entries than the kernel's map holds.
    #[error(
        "the policy needs {needed} entries in the allow table and {limit} fit: narrow its patterns, or join ports into ranges"
    )]
    TooLarge {
        /// Entries needed with the header, each rule's counted by itself.
        needed: u64,
        /// Entries that fit: [`MAX_ALLOW_ENTRIES`].
        limit: u32,
    },
}

/// How often more entries than fit may be tried before it is clear that it is not for many of them being equal.
const MAX_ATTEMPTS: u64 = 16 * MAX_ALLOW_ENTRIES as u64;

/// Compiles `set` for the workloads that exist now, under the number `revision`.
///
/// Patterns stand for those of `identities`, and of the identities that the policies name outright, that they match.
pub fn compile(
    set: &PolicySet,
    identities: &BTreeSet<SpiffeId>,
    settings: &Settings,
    revision: u64,
) -> Result<AllowTable, CompileError> {
    compile_with(set, identities, &Groups::default(), settings, revision)
}

/// [`compile`], with entries for groups: who may reach every member may reach the group. The largest groups that the
/// table has no room for are left out of it.
pub fn compile_with(
    set: &PolicySet,
    identities: &BTreeSet<SpiffeId>,
    groups: &Groups,
    settings: &Settings,
    revision: u64,
) -> Result<AllowTable, CompileError> {
    let members: BTreeSet<SpiffeId> = groups.workloads().cloned().collect();
    let (universe, alike) = told_apart(set.identities(), [identities, &members]);
    let networks = Networks::of(set, settings);
    let rules = set
        .policies()
        .iter()
        .map(|policy| policy.rules.len())
        .sum::<usize>();
    let mut compiler = Compiler::new(&universe, &networks, rules);
    for rule in set.policies().iter().flat_map(|policy| &policy.rules) {
        compiler.add(rule);
    }
    if set.requires_policy(settings) {
        compiler.refuse_undeclared(set.identities());
    }
    let mut entries = compiler.finish()?;
    let header = shapes(entries.iter().map(|(key, entry)| (*key, *entry)));
    let switches = [
        (set.default_action() == Action::Allow, Shapes::DEFAULT_ALLOW),
        (settings.allow_self, Shapes::SELF),
        (settings.allow_host, Shapes::HOST),
    ];
    let bits = switches
        .iter()
        .filter(|(on, _)| *on)
        .fold(header.0, |bits, (_, switch)| bits | switch);
    entries.insert(
        AllowKey::HEADER,
        AllowEntry {
            number: revision,
            bits,
        },
    );
    let parties = Parties {
        networks: &networks,
        alike: &alike,
    };
    let room = (MAX_ALLOW_ENTRIES as usize).saturating_sub(entries.len());
    let of_groups = group::entries(groups, &entries, &parties, room);
    let bits = bits | shapes(of_groups.entries.iter().copied()).0;
    entries.insert(
        AllowKey::HEADER,
        AllowEntry {
            number: revision,
            bits,
        },
    );
    entries.extend(of_groups.entries);
    Ok(AllowTable {
        entries,
        rule_names: Arc::clone(set.names_by_number()),
        networks,
        places: AllowTable::places(&universe),
        identities: universe,
        alike,
        groups: groups.clone(),
        undecided: of_groups.undecided,
        to_strangers: super::outside::ToStrangers::default(),
    })
}

/// The entries of `rules` with every pattern under its number in `patterns`, instead of those that it stands for.
pub(super) fn unexpanded<'a>(
    rules: &[&'a Rule],
    patterns: &FastMap<&'a str, u64>,
    networks: &Networks,
) -> Result<FastMap<AllowKey, AllowEntry>, CompileError> {
    let mut compiler = Compiler::new(&[], networks, rules.len());
    let numbered = patterns.iter().map(|(text, number)| (*text, Rc::from([*number])));
    compiler.patterns.extend(numbered);
    for rule in rules {
        compiler.add(rule);
    }
    compiler.finish()
}

/// The shapes that occur among entries.
pub(super) fn shapes(entries: impl Iterator<Item = (AllowKey, AllowEntry)>) -> Shapes {
    entries.fold(Shapes::default(), |shapes, (key, entry)| {
        // The right to raw sockets is looked up by itself, never by shape.
        match key.shape().filter(|_| key.protocol != PROTOCOL_RAW) {
            Some(shape) => shapes.with(shape, entry.bits),
            None => shapes,
        }
    })
}

/// Of two rules about the same, the stricter one holds: one that denies, then one that requires proof.
pub(super) const fn strictness(bits: u64) -> u8 {
    if bits & ACTION_DENY != 0 {
        2
    } else if bits & REQUIRES_PROOF != 0 {
        1
    } else {
        0
    }
}

struct Compiler<'a> {
    universe: &'a [SpiffeId],
    networks: &'a Networks,
    /// What each pattern stands for.
    patterns: FastMap<&'a str, Rc<[u64]>>,
    /// What a rule about each network reaches.
    reached: FastMap<(IpNet, bool), Rc<[u64]>>,
    /// `world`, with the named networks in it.
    world: Rc<[u64]>,
    entries: FastMap<AllowKey, AllowEntry>,
    /// Entries asked for so far, equal ones not merged, and the header.
    needed: u64,
}

/// The numbers that an endpoint stands for.
enum Numbers {
    One([u64; 1]),
    Many(Rc<[u64]>),
}

impl Numbers {
    fn as_slice(&self) -> &[u64] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

impl<'a> Compiler<'a> {
    fn new(universe: &'a [SpiffeId], networks: &'a Networks, rules: usize) -> Self {
        Self {
            universe,
            networks,
            patterns: FastMap::default(),
            reached: FastMap::default(),
            world: [identity::WORLD]
                .into_iter()
                .chain(networks.in_the_world())
                .collect(),
            entries: FastMap::with_capacity_and_hasher(
                rules.min(MAX_ALLOW_ENTRIES as usize) + 1,
                BuildHasherDefault::default(),
            ),
            needed: 1,
        }
    }

    fn finish(self) -> Result<FastMap<AllowKey, AllowEntry>, CompileError> {
        if self.is_full() {
            return Err(CompileError::TooLarge {
                needed: self.needed,
                limit: MAX_ALLOW_ENTRIES,
            });
        }
        Ok(self.entries)
    }

    fn add(&mut self, rule: &'a Rule) {
        let sources = self.numbers(&rule.from, rule.action);
        if rule.raw_sockets {
            let holders = match &rule.from {
                // Nobody looks for a wildcard there: a right this strong is filed under each holder's number.
                Endpoint::Spiffe(Pattern::Any) => self.everyone(),
                _ => Rc::from(sources.as_slice()),
            };
            self.insert_all(
                rule.number,
                &holders,
                &[identity::RAW_SOCKETS],
                &[ports::EVERY_PORT],
                PROTOCOL_RAW,
                rule.action.bits(),
            );
        }
        for target in &rule.to {
            self.add_target(rule, sources.as_slice(), target);
        }
    }

    fn everyone(&self) -> Rc<[u64]> {
        self.universe.iter().map(SpiffeId::number).collect()
    }

    fn add_target(&mut self, rule: &'a Rule, sources: &[u64], target: &'a Target) {
        let destinations = self.numbers(&target.endpoint, rule.action);
        let several;
        let single;
        let blocks: &[Block] = match target.ports.as_slice() {
            [] => &[ports::EVERY_PORT],
            [port] if port.first == port.last => {
                single = [Block {
                    first: port.first,
                    bits: 16,
                }];
                &single
            }
            ranges => {
                several = ports::blocks(ranges);
                &several
            }
        };
        self.insert_all(
            rule.number,
            sources,
            destinations.as_slice(),
            blocks,
            target.protocol.number(),
            rule.action.bits() | if target.require_proof { REQUIRES_PROOF } else { 0 },
        );
    }

    fn insert_all(
        &mut self,
        number: u64,
        sources: &[u64],
        destinations: &[u64],
        blocks: &[Block],
        protocol: u8,
        bits: u64,
    ) {
        let counts = [sources.len(), destinations.len(), blocks.len()];
        let wanted = counts
            .iter()
            .fold(1_u64, |product, count| product.saturating_mul(*count as u64));
        self.needed = self.needed.saturating_add(wanted);
        if self.is_full() {
            return;
        }
        let entry = AllowEntry { number, bits };
        for &source in sources {
            for &destination in destinations {
                for block in blocks {
                    let key = AllowKey {
                        source,
                        destination,
                        port: block.first,
                        protocol,
                        port_bits: block.bits,
                        reserved: 0,
                    };
                    self.insert(key, entry);
                }
                if self.is_full() {
                    return;
                }
            }
        }
    }

    /// The first rule keeps a key, except that a stricter one takes it.
    fn insert(&mut self, key: AllowKey, entry: AllowEntry) {
        let present = self.entries.entry(key).or_insert(entry);
        if strictness(entry.bits) > strictness(present.bits) {
            *present = entry;
        }
    }

    /// Whether the table, with its header, is larger than the kernel's map.
    fn is_full(&self) -> bool {
        self.entries.len() >= MAX_ALLOW_ENTRIES as usize || self.needed > MAX_ATTEMPTS
    }

    fn numbers(&mut self, endpoint: &'a Endpoint, action: Action) -> Numbers {
        match endpoint {
            Endpoint::Spiffe(Pattern::Any) => Numbers::One([identity::ANY]),
            Endpoint::Spiffe(Pattern::Exact(id)) => Numbers::One([id.number()]),
            Endpoint::Spiffe(Pattern::Segments(pattern)) => {
                let universe = self.universe;
                let numbers = self.patterns.entry(pattern.as_str()).or_insert_with(|| {
                    let prefix = pattern.literal_prefix();
                    let start = universe.partition_point(|id| id.as_str() < prefix);
                    let near = universe
                        .iter()
                        .skip(start)
                        .take_while(|id| id.as_str().starts_with(prefix));
                    near.filter(|id| pattern.matches(id))
                        .map(SpiffeId::number)
                        .collect()
                });
                Numbers::Many(Rc::clone(numbers))
            }
            Endpoint::Entity(identity::WORLD) => Numbers::Many(Rc::clone(&self.world)),
            Endpoint::Entity(number) => Numbers::One([*number]),
            Endpoint::Cidr(network) => {
                let networks = self.networks;
                let reached = self
                    .reached
                    .entry((*network, action == Action::Deny))
                    .or_insert_with(|| networks.reached_by(network, action).into());
                Numbers::Many(Rc::clone(reached))
            }
        }
    }
}
