// SPDX-License-Identifier: Apache-2.0
//! Identities that a table was not compiled for.
//!
//! A table has each pattern written out for the identities that were known when it was compiled, which are all that its
//! kernel meets. Questions over the API may be about anybody: a policy engine answers for workloads of nodes that it
//! knows nothing about. So the rules with patterns are kept a second time as they are written, each pattern under a number
//! of its own, and the verdict is found by the same function, over the table and these rules together. It is that of a
//! table which was compiled for those asked about as well.

mod strangers;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use zt_common::entry::{AllowEntry, AllowKey, Flow, Shapes};
use zt_common::identity;
use zt_common::verdict::{AllowLookup, RULE_REQUIRE_POLICY, Reason, Verdict, verdict};

use super::Settings;
use super::action::Protocol;
use super::compile::{self, CompileError};
use super::document::Rule;
use super::endpoint::Endpoint;
use super::group::{self, Group};
use super::hash::FastMap;
use super::network::Networks;
use super::set::PolicySet;
use super::table::{AllowTable, Decision, Party};
use crate::spiffe_id::{Pattern, SpiffeId};

pub(super) use self::strangers::ToStrangers;

/// The number of the first pattern. No party has a number from here to [`identity::GROUP_BIT`].
const FIRST_PATTERN: u64 = 1 << 8;

/// The numbers that stand for identities that the table was not compiled for: not their own, which others may have that
/// the table does know.
const STAND_INS: [u64; 2] = [u64::MAX, u64::MAX - 1];

/// The rules of a policy set that have patterns.
#[derive(Debug)]
struct PatternRules {
    patterns: Patterns,
    entries: FastMap<AllowKey, AllowEntry>,
    shapes: Shapes,
    /// The place of each rule, by its number.
    order: FastMap<u64, u32>,
}

impl PatternRules {
    fn new(set: &PolicySet, settings: &Settings) -> Result<Self, CompileError> {
        let rules = set.policies().iter().flat_map(|policy| &policy.rules);
        let rules: Vec<&Rule> = rules.filter(|rule| texts(rule).next().is_some()).collect();
        let mut patterns = Patterns::default();
        let mut numbers = FastMap::default();
        for text in rules.iter().flat_map(|rule| texts(rule)) {
            let next = FIRST_PATTERN + numbers.len() as u64;
            numbers.entry(text).or_insert_with(|| {
                patterns.add(text, next);
                next
            });
        }
        let networks = Networks::of(set, settings);
        let entries = compile::unexpanded(&rules, &numbers, &networks)?;
        let shapes = compile::shapes(entries.iter().map(|(key, entry)| (*key, *entry)));
        let order = (0..).zip(&rules).map(|(place, rule)| (rule.number, place));
        Ok(Self {
            patterns,
            entries,
            shapes,
            order: order.collect(),
        })
    }
}

/// The patterns of a rule, `*` alone left out.
fn texts(rule: &Rule) -> impl Iterator<Item = &str> {
    let targets = rule.to.iter().map(|target| &target.endpoint);
    std::iter::once(&rule.from)
        .chain(targets)
        .filter_map(|endpoint| match endpoint {
            Endpoint::Spiffe(Pattern::Segments(pattern)) => Some(pattern.as_str()),
            _ => None,
        })
}

/// Patterns by their segments, so that finding those that match does not take looking at all.
#[derive(Debug)]
struct Patterns(Vec<Segment>);

#[derive(Debug, Default)]
struct Segment {
    next: HashMap<Box<str>, usize>,
    any: Option<usize>,
    /// The pattern that ends here.
    number: Option<u64>,
}

impl Default for Patterns {
    fn default() -> Self {
        Self(vec![Segment::default()])
    }
}

impl Patterns {
    fn add(&mut self, text: &str, number: u64) {
        let mut at = 0;
        for part in text.split('/') {
            let end = self.0.len();
            let Some(segment) = self.0.get_mut(at) else { return };
            at = match part {
                "*" => *segment.any.get_or_insert(end),
                part => *segment.next.entry(Box::from(part)).or_insert(end),
            };
            if at == end {
                self.0.push(Segment::default());
            }
        }
        if let Some(segment) = self.0.get_mut(at) {
            segment.number = Some(number);
        }
    }

    /// The numbers of those that match.
    fn matching(&self, id: &SpiffeId) -> Vec<u64> {
        let mut here = vec![0];
        for part in id.as_str().split('/') {
            let segments = here.iter().filter_map(|at| self.0.get(*at));
            here = segments
                .flat_map(|segment| [segment.next.get(part).copied(), segment.any])
                .flatten()
                .collect();
        }
        let ends = here.iter().filter_map(|at| self.0.get(*at));
        ends.filter_map(|segment| segment.number).collect()
    }
}

/// What a policy set keeps of [`PatternRules`]: made when they are first asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept(Arc<Mutex<Option<Made>>>);

#[derive(Debug)]
struct Made {
    cluster_cidrs: Vec<IpNet>,
    rules: Result<Arc<PatternRules>, CompileError>,
}

impl Kept {
    fn get(&self, set: &PolicySet, settings: &Settings) -> Result<Arc<PatternRules>, CompileError> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let made = match kept.take() {
            Some(made) if made.cluster_cidrs == settings.cluster_cidrs => made,
            _ => Made {
                cluster_cidrs: settings.cluster_cidrs.clone(),
                rules: PatternRules::new(set, settings).map(Arc::new),
            },
        };
        kept.insert(made).rules.clone()
    }
}

impl PolicySet {
    /// Prepares the answers of [`Self::evaluate`], whose first one takes as long as compiling does otherwise.
    ///
    /// # Errors
    ///
    /// The rules with patterns are too many, even if there is but one identity to each.
    pub fn prepare(&self, settings: &Settings) -> Result<(), CompileError> {
        self.kept().get(self, settings).map(drop)
    }

    /// What these policies say about a flow between anybody, by `table`, which they were compiled to. It is what the table
    /// would say that was compiled for both ends as well, except for the reason of a refusal that no rule makes: an identity
    /// is unknown that the table was not compiled for and that no pattern but `*` matches.
    ///
    /// [`AllowTable::evaluate`] says the same of those that it was compiled for, and is much faster.
    ///
    /// # Errors
    ///
    /// As [`Self::prepare`].
    pub fn evaluate(
        &self,
        table: &AllowTable,
        settings: &Settings,
        (source, destination): (Party<'_>, Party<'_>),
        port: u16,
        protocol: Protocol,
    ) -> Result<Decision, CompileError> {
        let rules = self.kept().get(self, settings)?;
        let source = End::of(source, table, &rules.patterns);
        let mut destination = End::of(destination, table, &rules.patterns);
        if destination.outside.is_some() && destination.outside != source.outside {
            destination.number = STAND_INS[1];
        }
        let mut asked = Asked {
            table,
            rules: &rules,
            source,
            destination,
            group: None,
        };
        asked.group = asked.about_group();
        let mut verdict = verdict(&asked, &asked.flow(port, protocol.number()));
        if self.requires_policy(settings) {
            asked.require_policy(&mut verdict);
        }
        let reason = match verdict.reason {
            Reason::NoRule if asked.source.is_unknown() => Reason::UnknownSource,
            Reason::NoRule if asked.destination.is_unknown() => Reason::UnknownDestination,
            reason => reason,
        };
        Ok(table.decision(Verdict { reason, ..verdict }))
    }
}

/// One end of what is asked about.
struct End<'a> {
    /// The number that stands for it in this question.
    number: u64,
    /// The numbers under which rules with patterns speak about it.
    numbers: Vec<u64>,
    /// Who it is, if the table was not compiled for it.
    outside: Option<&'a SpiffeId>,
}

impl<'a> End<'a> {
    fn of(party: Party<'a>, table: &AllowTable, patterns: &Patterns) -> Self {
        let number = table.number(party);
        match party {
            // A name that is taken for nobody is not outside: that is what the table knows of it.
            Party::Spiffe(id) if !table.knows(id) && !table.alike().contains_key(id) => Self {
                number: STAND_INS[0],
                numbers: patterns.matching(id),
                outside: Some(id),
            },
            Party::Spiffe(id) if identity::is_workload(number) => {
                let mut numbers = patterns.matching(id);
                numbers.push(number);
                Self {
                    number,
                    numbers,
                    outside: None,
                }
            }
            _ => Self {
                number,
                numbers: vec![number],
                outside: None,
            },
        }
    }

    /// Whether nobody has said anything about it.
    fn is_unknown(&self) -> bool {
        self.outside.is_some() && self.numbers.is_empty()
    }
}

/// The table, as it would be for the two ends of a question.
struct Asked<'a> {
    table: &'a AllowTable,
    rules: &'a PatternRules,
    source: End<'a>,
    destination: End<'a>,
    /// What it would say to the source about the group that it wants to reach.
    group: Option<(AllowKey, AllowEntry)>,
}

impl Asked<'_> {
    fn flow(&self, port: u16, protocol: u8) -> Flow {
        Flow {
            source: self.source.number,
            destination: self.destination.number,
            port,
            protocol,
        }
    }

    /// A table has what it says about a group written out for each source that it was compiled for.
    fn about_group(&self) -> Option<(AllowKey, AllowEntry)> {
        let source = self.source.outside?;
        let group = self.table.groups().get(self.destination.number)?;
        // Members are all in the table, and nobody outside is one: the same rules say the same to everybody.
        let asked = (self.destination.number, self.source.numbers.as_slice().into());
        let entry = self
            .table
            .to_strangers
            .get(asked, || self.said_by_members(source, group))?;
        let flow = self.flow(group.port, group.protocol);
        Some((AllowKey::for_shape(&flow, 0), entry))
    }

    /// Whom no rule names is refused. A table has entries for that, which come before those with `*` as the source.
    fn require_policy(&self, verdict: &mut Verdict) {
        let source = self.source.is_unknown();
        let destination = self.destination.is_unknown() && self.source.number != identity::HOST;
        if source || destination && verdict.reason != Reason::DenyRule {
            *verdict = Verdict {
                rule: RULE_REQUIRE_POLICY,
                ..Verdict::refusal(Reason::DenyRule, verdict.revision)
            };
        }
    }

    fn said_by_members(&self, source: &SpiffeId, group: &Group) -> Option<AllowEntry> {
        let verdicts = group.members.iter().map(|(member, port)| {
            let member = match member {
                group::Member::Workload(id) => Party::Spiffe(id),
                group::Member::Entity(number) => Party::Number(*number),
                group::Member::Address(address) => Party::Address(*address),
            };
            let asked = Asked {
                table: self.table,
                rules: self.rules,
                source: End::of(Party::Spiffe(source), self.table, &self.rules.patterns),
                destination: End::of(member, self.table, &self.rules.patterns),
                group: None,
            };
            verdict(&asked, &asked.flow(*port, group.protocol))
        });
        group::joined(verdicts)
    }
}

impl AllowLookup for Asked<'_> {
    fn get(&self, key: &AllowKey) -> Option<AllowEntry> {
        if *key == AllowKey::HEADER {
            let header = self.table.get(key)?;
            let group = compile::shapes(self.group.into_iter());
            let bits = header.bits | self.rules.shapes.0 | group.0;
            return Some(AllowEntry { bits, ..header });
        }
        if let Some((_, entry)) = self.group.filter(|(about, _)| about == key) {
            return Some(entry);
        }
        let of_source = key.source != identity::ANY;
        let of_destination = key.destination != identity::ANY;
        let outside = (of_source && self.source.outside.is_some())
            || (of_destination && self.destination.outside.is_some());
        if !outside {
            return self.table.get(key);
        }
        let any = [identity::ANY];
        let sources = if of_source { &self.source.numbers } else { &any[..] };
        let destinations = if of_destination {
            &self.destination.numbers
        } else {
            &any[..]
        };
        // Which rule has a key when a table is compiled: the first of the strictest ones.
        let mut first: Option<((Reverse<u8>, u32), AllowEntry)> = None;
        for source in sources {
            for destination in destinations {
                let key = AllowKey {
                    source: *source,
                    destination: *destination,
                    ..*key
                };
                let Some(entry) = self.rules.entries.get(&key) else {
                    continue;
                };
                let place = self.rules.order.get(&entry.number).copied().unwrap_or(u32::MAX);
                let rank = (Reverse(compile::strictness(entry.bits)), place);
                if first.is_none_or(|(best, _)| rank < best) {
                    first = Some((rank, *entry));
                }
            }
        }
        first.map(|(_, entry)| entry)
    }
}
