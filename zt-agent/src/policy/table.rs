// SPDX-License-Identifier: Apache-2.0
//! The compiled allow table: what the kernel is given, and what user space decides by.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::hash::Hasher as _;
use std::net::IpAddr;
use std::sync::Arc;

use zt_common::entry::{AllowEntry, AllowKey, Flow, Shapes};
use zt_common::identity;
use zt_common::verdict::{AllowLookup, Reason, Verdict, raw_socket_verdict, verdict};

use super::action::Protocol;
use super::alike::Alike;
use super::compile::strictness;
use super::entity::ENTITIES;
use super::group::Groups;
use super::hash::{FastMap, FoldHasher};
use super::network::Networks;
use super::outside::ToStrangers;
use super::rule_names::RuleNames;
use super::set::BUILTIN;
use crate::spiffe_id::SpiffeId;

/// An allow table, immutable. The default has no header: no policy has ever been loaded, and it allows nothing.
#[derive(Clone, Debug, Default)]
pub struct AllowTable {
    pub(super) entries: FastMap<AllowKey, AllowEntry>,
    pub(super) rule_names: Arc<RuleNames>,
    pub(super) networks: Networks,
    /// Sorted by text.
    pub(super) identities: Vec<SpiffeId>,
    /// Where each is in that list, by a hash of its text.
    pub(super) places: FastMap<u64, u32>,
    /// Names that it takes for nobody.
    pub(super) alike: Alike,
    pub(super) groups: Groups,
    /// Groups that it had no room for.
    pub(super) undecided: BTreeSet<u64>,
    /// What was found out about groups for those that it was not compiled for.
    pub(super) to_strangers: ToStrangers,
}

/// One end of a flow that is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party<'a> {
    /// A workload.
    Spiffe(&'a SpiffeId),
    /// An address that no workload has; the policy's networks say who it is.
    Address(IpAddr),
    /// Anyone, by the number that stands for them in the kernel.
    Number(u64),
}

/// What policy says about one flow, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether policy allows it.
    pub allowed: bool,
    /// Why.
    pub reason: Reason,
    /// The rule that decided, as in `policy_matched`.
    pub rule: Option<Arc<str>>,
    /// Revision of the policy that decided; 0 where there is none.
    pub revision: u64,
    /// Whether the rule asks for proof: it is allowed only where the handshake gives it.
    pub proof_required: bool,
}

impl AllowLookup for AllowTable {
    #[inline]
    fn get(&self, key: &AllowKey) -> Option<AllowEntry> {
        self.entries.get(key).copied()
    }
}

/// Short, and not the one by which the kernel knows an identity.
fn text_hash(text: &str) -> u64 {
    let mut hasher = FoldHasher::default();
    hasher.write(text.as_bytes());
    hasher.finish()
}

impl AllowTable {
    /// Where each of these is in the list, by a hash of its text.
    pub(super) fn places(identities: &[SpiffeId]) -> FastMap<u64, u32> {
        let places = (0..).zip(identities);
        places
            .map(|(place, id)| (text_hash(id.as_str()), place))
            .collect()
    }

    /// Every entry, the header's with them, in no order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (AllowKey, AllowEntry)> + '_ {
        self.entries.iter().map(|(key, entry)| (*key, *entry))
    }

    /// How many entries there are, with the header.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is not even a header: no policy has ever been loaded.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The revision under which it was compiled; 0 for the table that nothing was compiled into.
    pub fn revision(&self) -> u64 {
        self.entries
            .get(&AllowKey::HEADER)
            .map_or(0, |header| header.number)
    }

    /// The networks that name addresses.
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// The identity that is written so, if the table was compiled for it: one look where [`SpiffeId::parse`] hashes the text.
    /// Of two whose hashes are the same here, it knows one.
    pub fn identity(&self, text: &str) -> Option<&SpiffeId> {
        let place = self.places.get(&text_hash(text))?;
        let found = self.identities.get(*place as usize);
        found.filter(|id| id.as_str() == text)
    }

    /// The identities that it was compiled for, sorted: a pattern stands for nobody else.
    pub fn identities(&self) -> &[SpiffeId] {
        &self.identities
    }

    /// Names that are nobody, because the kernel could not tell them from another one.
    pub fn alike(&self) -> &Alike {
        &self.alike
    }

    /// The groups that it was compiled for.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Those of them that it had no room for: it says nothing about them.
    pub fn undecided(&self) -> &BTreeSet<u64> {
        &self.undecided
    }

    /// Whether it answers about a group.
    pub fn answers_about(&self, group: u64) -> bool {
        self.groups.get(group).is_some() && !self.undecided.contains(&group)
    }

    /// Whether it was compiled for `id`. Patterns do not reach others, `*` alone does: see [`PolicySet::evaluate`](super::PolicySet::evaluate).
    pub fn knows(&self, id: &SpiffeId) -> bool {
        self.identities.binary_search(id).is_ok()
    }

    /// The verdict on `flow`: what the kernel says. Allocates nothing.
    #[inline]
    pub fn decide(&self, flow: &Flow) -> Verdict {
        verdict(self, flow)
    }

    /// Whether `source` may open raw sockets.
    pub fn decide_raw_socket(&self, source: u64) -> Verdict {
        raw_socket_verdict(self, source)
    }

    /// What policy says about a flow from `source` to `destination`, at its target port.
    pub fn evaluate(
        &self,
        source: Party<'_>,
        destination: Party<'_>,
        port: u16,
        protocol: Protocol,
    ) -> Decision {
        let flow = Flow {
            source: self.number(source),
            destination: self.number(destination),
            port,
            protocol: protocol.number(),
        };
        self.decision(self.decide(&flow))
    }

    /// What policy says about a raw socket of a workload.
    pub fn evaluate_raw_socket(&self, holder: &SpiffeId) -> Decision {
        self.decision(self.decide_raw_socket(self.number(Party::Spiffe(holder))))
    }

    /// A verdict for people.
    pub(super) fn decision(&self, verdict: Verdict) -> Decision {
        Decision {
            allowed: verdict.allowed,
            reason: verdict.reason,
            rule: self.rule_name(verdict.rule),
            revision: verdict.revision,
            proof_required: verdict.proof,
        }
    }

    /// The number under which the table knows a party.
    pub fn number(&self, party: Party<'_>) -> u64 {
        match party {
            Party::Spiffe(id) if self.alike.contains_key(id) => identity::UNKNOWN,
            Party::Spiffe(id) => id.number(),
            Party::Address(address) => self.networks.number_at(address),
            Party::Number(number) => number,
        }
    }

    /// The name of a rule: `<policy>/rule-<n>`, `builtin/self` or `builtin/host`.
    pub fn rule_name(&self, number: u64) -> Option<Arc<str>> {
        let builtin = BUILTIN.iter().find(|(of, _)| *of == number);
        match builtin {
            Some((_, name)) => Some(Arc::from(*name)),
            None => self
                .rule_names
                .get(number)
                .map(|name| Arc::from(name.to_string())),
        }
    }

    /// Number and name of every rule, without those of zt itself.
    ///
    /// Numbers of rules and of parties are different spaces: 2 is `builtin/host` here and the entity `host` there.
    pub fn rule_names(&self) -> &Arc<RuleNames> {
        &self.rule_names
    }

    /// The networks that its rules name, as `cidr:NETWORK`, with their numbers.
    pub fn network_names(&self) -> impl Iterator<Item = (u64, String)> {
        self.networks.names()
    }

    /// Number and name of every party that it speaks about: entities, networks, identities, groups, and `*` for any identity.
    pub fn party_names(&self) -> impl Iterator<Item = (u64, String)> {
        let entities = ENTITIES
            .iter()
            .map(|(name, number)| (*number, (*name).to_owned()));
        let any = std::iter::once((identity::ANY, "*".to_owned()));
        let identities = self.identities.iter().map(|id| (id.number(), id.to_string()));
        let groups = self
            .groups
            .iter()
            .map(|(number, group)| (number, group.name.to_string()));
        let networks = self.network_names();
        entities
            .chain(any)
            .chain(networks)
            .chain(identities)
            .chain(groups)
    }

    /// [`Self::party_names`], sharing the texts of identities.
    pub fn party_texts(&self) -> impl Iterator<Item = (u64, Arc<str>)> {
        let entities = ENTITIES.iter().map(|(name, number)| (*number, Arc::from(*name)));
        let any = std::iter::once((identity::ANY, Arc::from("*")));
        let networks = self
            .networks
            .names()
            .map(|(number, name)| (number, Arc::from(name)));
        let identities = self.identities.iter().map(|id| (id.number(), id.text()));
        let groups = self
            .groups
            .iter()
            .map(|(number, group)| (number, Arc::clone(&group.name)));
        entities
            .chain(any)
            .chain(networks)
            .chain(identities)
            .chain(groups)
    }

    /// What to write over `other`, which is in force, to have this table in force; `None` where writing entries one
    /// by one will not do and the table must be swapped.
    ///
    /// The order is that in which to write: a shape becomes known before entries of it, and a stricter rule before what it
    /// restricts is allowed, so that nothing is ever briefly open.
    pub fn additions_over(&self, other: &Self) -> Option<Vec<(AllowKey, AllowEntry)>> {
        let new_header = self.entries.get(&AllowKey::HEADER)?;
        let old_header = other.entries.get(&AllowKey::HEADER)?;
        let (new, old) = (Shapes(new_header.bits), Shapes(old_header.bits));
        let switches = [Shapes::DEFAULT_ALLOW, Shapes::SELF, Shapes::HOST];
        let same_switches = switches.iter().all(|switch| new.has(*switch) == old.has(*switch));
        let superset = new.0 & old.0 == old.0;
        let same_policy = new_header.number == old_header.number && self.networks == other.networks;
        if !same_policy || !same_switches || !superset || self.len() < other.len() {
            return None;
        }
        let kept = |(key, entry): (&AllowKey, &AllowEntry)| {
            *key == AllowKey::HEADER || self.entries.get(key) == Some(entry)
        };
        if !other.entries.iter().all(kept) {
            return None;
        }
        let mut additions: Vec<_> = self
            .entries()
            .filter(|(key, _)| !other.entries.contains_key(key))
            .collect();
        additions.sort_unstable_by_key(|(key, entry)| (Reverse(strictness(entry.bits)), *key));
        if new_header != old_header {
            additions.insert(0, (AllowKey::HEADER, *new_header));
        }
        Some(additions)
    }
}
