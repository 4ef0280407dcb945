// SPDX-License-Identifier: Apache-2.0
//! Groups: several parties behind one virtual address, of which the caller cannot know the one that it will reach.
//!
//! A group has a number of its own, which the kernel looks up like any other. What policy says to it is written into the
//! allow table when that is compiled: a source may reach the group if it may reach every member, each at its own port,
//! and a DENY of one member is a DENY of the group. So a decision about a group costs what any other costs. Wildcards,
//! `builtin/self` and `builtin/host` are not for groups: they are about members, and are in what was written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use zt_common::entry::{
    ACTION_ALLOW, ACTION_DENY, AllowEntry, AllowKey, Flow, PROTOCOL_RAW, REQUIRES_PROOF, Shapes,
};
use zt_common::identity;
use zt_common::verdict::{AllowLookup, Reason, Verdict, verdict};

use super::alike::Alike;
use super::entity::entity_name;
use super::hash::FastMap;
use super::network::Networks;
use crate::spiffe_id::{SpiffeId, number_of};

/// One of those behind a virtual address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// A workload.
    Workload(SpiffeId),
    /// An entity, by its number.
    Entity(u64),
    /// An address that no workload has: the networks of the policy in force say who it is.
    Address(IpAddr),
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(id) => f.write_str(id.as_str()),
            Self::Entity(number) => f.write_str(entity_name(*number).unwrap_or("unknown")),
            Self::Address(address) => write!(f, "address:{address}"),
        }
    }
}

/// Several parties behind one virtual address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name in records, such as `service:hanzo/web`. Groups of one name come one after the other, when what stands
    /// behind the address changes.
    pub name: Arc<str>,
    /// IP protocol number.
    pub protocol: u8,
    /// The port that is asked about and recorded: the lowest of the members'.
    pub port: u16,
    /// Who is behind it, and at which port each.
    pub members: BTreeSet<(Member, u16)>,
}

impl Group {
    /// Whom a rule would have to name: workloads, for the patterns of a policy to be expanded for them.
    pub fn workloads(&self) -> impl Iterator<Item = &SpiffeId> {
        self.members.iter().filter_map(|(member, _)| match member {
            Member::Workload(id) => Some(id),
            Member::Entity(_) | Member::Address(_) => None,
        })
    }

    /// The namespace of its Service; of another name all of it.
    fn namespace(&self) -> &str {
        let name = self.name.strip_prefix("service:").unwrap_or(&self.name);
        name.split_once('/').map_or(name, |(namespace, _)| namespace)
    }

    /// What its number is made from. `salt` tells apart two groups that would have the same.
    fn number(&self, salt: u32) -> u64 {
        let members = self
            .members
            .iter()
            .map(|(member, port)| format!("{member}:{port}"));
        let mut parts = vec![format!("{}|{}|{}", self.name, self.protocol, self.port)];
        parts.extend(members);
        parts.extend((salt > 0).then(|| salt.to_string()));
        let text = parts.join("|");
        identity::GROUP_BIT | (number_of(&text) & (identity::GROUP_BIT - 1))
    }
}

/// Groups by their numbers. A number stands for the same members as long as it is here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups(BTreeMap<u64, Arc<Group>>);

impl Groups {
    /// Adds a group, unless it is here already; its number.
    pub fn add(&mut self, group: Group) -> u64 {
        let mut salt = 0;
        loop {
            let number = group.number(salt);
            match self.0.get(&number) {
                Some(known) if **known == group => return number,
                // Thirty bits are few enough to meet by chance: the later one takes the next number.
                Some(_) => salt += 1,
                None => {
                    self.0.insert(number, Arc::new(group));
                    return number;
                }
            }
        }
    }

    /// The group with that number.
    pub fn get(&self, number: u64) -> Option<&Arc<Group>> {
        self.0.get(&number)
    }

    /// All, by number.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, &Arc<Group>)> {
        self.0.iter().map(|(number, group)| (*number, group))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps those that are `wanted`.
    pub fn retain(&mut self, wanted: impl Fn(u64) -> bool) {
        self.0.retain(|number, _| wanted(*number));
    }

    /// The workloads that are members of any.
    pub fn workloads(&self) -> impl Iterator<Item = &SpiffeId> {
        self.0.values().flat_map(|group| group.workloads())
    }
}

/// What a table says of groups.
#[derive(Debug, Default)]
pub(super) struct OfGroups {
    /// The entries by which it answers.
    pub(super) entries: Vec<(AllowKey, AllowEntry)>,
    /// Groups that it had no room for.
    pub(super) undecided: BTreeSet<u64>,
}

/// The entries by which a table that is whole but for its groups answers about them: `room` at most. Where there are more,
/// the largest group goes first of the namespace that has the most, so that one that asks for a lot, in few groups or in
/// many, costs the others nothing.
pub(super) fn entries(
    groups: &Groups,
    entries: &FastMap<AllowKey, AllowEntry>,
    parties: &Parties<'_>,
    room: usize,
) -> OfGroups {
    if groups.is_empty() {
        return OfGroups::default();
    }
    let table = Table(entries);
    let sources = Sources::of(groups, entries, parties);
    let mut made: BTreeMap<u64, Vec<(AllowKey, AllowEntry)>> = BTreeMap::new();
    let mut shares = Shares::default();
    let mut undecided = BTreeSet::new();
    for (number, group) in groups.iter() {
        let of_group = about(number, group, &table, &sources, parties);
        shares.add(group.namespace(), of_group.len(), number);
        made.insert(number, of_group);
        while shares.total > room {
            let Some(largest) = shares.take_largest() else {
                break;
            };
            made.remove(&largest);
            undecided.insert(largest);
        }
    }
    OfGroups {
        entries: made.into_values().flatten().collect(),
        undecided,
    }
}

/// How many entries groups have, by their namespaces.
#[derive(Debug, Default)]
struct Shares<'g> {
    total: usize,
    namespaces: HashMap<&'g str, Share>,
    by_share: BTreeSet<(usize, &'g str)>,
}

/// What one namespace has.
#[derive(Debug, Default)]
struct Share {
    entries: usize,
    /// Its groups, by size.
    groups: BTreeSet<(usize, u64)>,
}

impl<'g> Shares<'g> {
    fn add(&mut self, namespace: &'g str, size: usize, number: u64) {
        let share = self.namespaces.entry(namespace).or_default();
        self.by_share.remove(&(share.entries, namespace));
        share.entries += size;
        share.groups.insert((size, number));
        self.by_share.insert((share.entries, namespace));
        self.total += size;
    }

    /// The largest group of the namespace that has the most, which has none any more.
    fn take_largest(&mut self) -> Option<u64> {
        let (_, namespace) = self.by_share.pop_last()?;
        let share = self.namespaces.get_mut(namespace)?;
        let (size, number) = share.groups.pop_last()?;
        share.entries -= size;
        self.total -= size;
        if !share.groups.is_empty() {
            self.by_share.insert((share.entries, namespace));
        }
        Some(number)
    }
}

/// The entries about one group.
fn about(
    number: u64,
    group: &Group,
    table: &Table<'_>,
    sources: &Sources,
    parties: &Parties<'_>,
) -> Vec<(AllowKey, AllowEntry)> {
    let switches = Shapes(table.get(&AllowKey::HEADER).map_or(0, |header| header.bits));
    let members: Vec<(u64, u16)> = group
        .members
        .iter()
        .map(|(member, port)| (parties.number(member), *port))
        .collect();
    let mut asking: BTreeSet<u64> = BTreeSet::new();
    for destination in members.iter().map(|(number, _)| *number).chain([identity::ANY]) {
        asking.extend(sources.by_destination.get(&destination).into_iter().flatten());
    }
    if switches.has(Shapes::SELF) {
        asking.extend(
            members
                .iter()
                .map(|(number, _)| *number)
                .filter(|n| identity::is_workload(*n)),
        );
    }
    if switches.has(Shapes::HOST) {
        asking.insert(identity::HOST);
    }
    asking.remove(&identity::ANY);
    // Any workload that no rule names is as good as any other: one answer for all of them.
    let everyone = std::iter::once((identity::ANY, sources.stranger));
    let all = everyone.chain(asking.iter().map(|source| (*source, *source)));
    all.filter_map(|(key, source)| {
        let entry = said_to(table, source, &members, group.protocol)?;
        let key = AllowKey {
            source: key,
            destination: number,
            port: group.port,
            protocol: group.protocol,
            port_bits: 16,
            reserved: 0,
        };
        Some((key, entry))
    })
    .collect()
}

/// What policy says to one source about all members together; `None` where the default decides.
fn said_to(table: &Table<'_>, source: u64, members: &[(u64, u16)], protocol: u8) -> Option<AllowEntry> {
    joined(members.iter().map(|&(destination, port)| {
        let flow = Flow {
            source,
            destination,
            port,
            protocol,
        };
        verdict(table, &flow)
    }))
}

/// What the verdicts on all members are together.
pub(super) fn joined(verdicts: impl Iterator<Item = Verdict>) -> Option<AllowEntry> {
    let mut allowing = None;
    // What one of them asks for is asked of whoever may reach that one.
    let mut requiring = None;
    let mut all = true;
    for verdict in verdicts {
        if verdict.reason == Reason::DenyRule {
            return Some(AllowEntry {
                number: verdict.rule,
                bits: ACTION_DENY,
            });
        }
        all &= verdict.allowed || verdict.proof;
        if verdict.proof {
            requiring.get_or_insert(verdict.rule);
        } else if verdict.reason == Reason::Rule {
            allowing.get_or_insert(verdict.rule);
        }
    }
    let proof = if requiring.is_some() { REQUIRES_PROOF } else { 0 };
    Some(AllowEntry {
        number: requiring.or(allowing).filter(|_| all)?,
        bits: ACTION_ALLOW | proof,
    })
}

/// The sources that rules name, by whom they are about.
struct Sources {
    by_destination: FastMap<u64, BTreeSet<u64>>,
    /// A workload that no rule names.
    stranger: u64,
}

impl Sources {
    fn of(groups: &Groups, entries: &FastMap<AllowKey, AllowEntry>, parties: &Parties<'_>) -> Self {
        let mut by_destination: FastMap<u64, BTreeSet<u64>> = FastMap::default();
        by_destination.insert(identity::ANY, BTreeSet::new());
        for (member, _) in groups.0.values().flat_map(|group| &group.members) {
            by_destination.entry(parties.number(member)).or_default();
        }
        let mut named: BTreeSet<u64> = by_destination.keys().copied().collect();
        for key in entries.keys().filter(|key| key.protocol != PROTOCOL_RAW) {
            if let Some(sources) = by_destination.get_mut(&key.destination) {
                sources.insert(key.source);
                named.insert(key.source);
            }
        }
        let mut free = (identity::FIRST_WORKLOAD..).filter(|number| !named.contains(number));
        Self {
            by_destination,
            stranger: free.next().unwrap_or(u64::MAX),
        }
    }
}

/// By which numbers members are known.
pub(super) struct Parties<'a> {
    pub(super) networks: &'a Networks,
    pub(super) alike: &'a Alike,
}

impl Parties<'_> {
    fn number(&self, member: &Member) -> u64 {
        match member {
            Member::Workload(id) if self.alike.contains_key(id) => identity::UNKNOWN,
            Member::Workload(id) => id.number(),
            Member::Entity(number) => *number,
            Member::Address(address) => self.networks.number_at(*address),
        }
    }
}

struct Table<'e>(&'e FastMap<AllowKey, AllowEntry>);

impl AllowLookup for Table<'_> {
    fn get(&self, key: &AllowKey) -> Option<AllowEntry> {
        self.0.get(key).copied()
    }
}

#[cfg(test)]
mod tests;
