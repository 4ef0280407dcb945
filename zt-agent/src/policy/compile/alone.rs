// SPDX-License-Identifier: Apache-2.0
//! Rules judged one by one, by the function that judges them all.

use std::collections::BTreeSet;

use zt_common::entry::{AllowEntry, AllowKey, Flow};
use zt_common::identity;
use zt_common::verdict::{AllowLookup, Verdict, verdict};

use super::{Compiler, shapes};
use crate::policy::action::Action;
use crate::policy::document::Rule;
use crate::policy::endpoint::Endpoint;
use crate::policy::hash::FastMap;
use crate::policy::network::Networks;
use crate::spiffe_id::SpiffeId;

/// Rules judged each by itself, as if there were no other and nothing built in.
pub(in crate::policy) struct Alone<'a>(Compiler<'a>);

impl<'a> Alone<'a> {
    /// Patterns stand for those of `universe`, which is sorted.
    pub(in crate::policy) fn new(universe: &'a [SpiffeId], networks: &'a Networks) -> Self {
        Self(Compiler::new(universe, networks, 0))
    }

    /// What the rule says about a flow. One that is too large for any table says nothing.
    pub(in crate::policy) fn judge(&mut self, rule: &'a Rule, flow: &Flow) -> Verdict {
        self.put(rule);
        verdict(&Entries(&self.0.entries), flow)
    }

    /// Whether the rule is about any of these flows.
    pub(in crate::policy) fn is_used(&mut self, rule: &'a Rule, flows: &[Flow]) -> bool {
        self.put(rule);
        let entries = Entries(&self.0.entries);
        flows
            .iter()
            .any(|flow| verdict(&entries, flow).rule == rule.number)
    }

    /// The ports of those of these flows that the rule is about.
    pub(in crate::policy) fn ports(&mut self, rule: &'a Rule, flows: &[Flow]) -> BTreeSet<u16> {
        self.put(rule);
        let entries = Entries(&self.0.entries);
        let about = flows
            .iter()
            .filter(|flow| verdict(&entries, flow).rule == rule.number);
        about.map(|flow| flow.port).collect()
    }

    /// Which of these flows the rule allows, as places in the list.
    pub(in crate::policy) fn allowed(&mut self, rule: &'a Rule, flows: &[Flow]) -> Vec<usize> {
        self.put(rule);
        let entries = Entries(&self.0.entries);
        let allowed = |(place, flow)| verdict(&entries, flow).allowed.then_some(place);
        flows.iter().enumerate().filter_map(allowed).collect()
    }

    /// Makes a table of the rule.
    fn put(&mut self, rule: &'a Rule) {
        let entries = &mut self.0.entries;
        // To empty and to walk a map takes as long as it has room: a large rule does not make all that come after it slow.
        if entries.capacity() > 4 * entries.len().max(1024) {
            *entries = FastMap::default();
        } else {
            entries.clear();
        }
        self.0.needed = 1;
        self.0.add(rule);
        let header = shapes(self.0.entries.iter().map(|(key, entry)| (*key, *entry)));
        self.0.entries.insert(
            AllowKey::HEADER,
            AllowEntry {
                number: 0,
                bits: header.0,
            },
        );
    }

    /// Whether an endpoint of a rule with that action is about the party with that number.
    pub(in crate::policy) fn is_about(
        &mut self,
        endpoint: &'a Endpoint,
        action: Action,
        number: u64,
    ) -> bool {
        let numbers = self.0.numbers(endpoint, action);
        let about =
            |known: &u64| *known == number || (*known == identity::ANY && identity::is_workload(number));
        numbers.as_slice().iter().any(about)
    }
}

/// A table that is nothing but its entries.
struct Entries<'e>(&'e FastMap<AllowKey, AllowEntry>);

impl AllowLookup for Entries<'_> {
    fn get(&self, key: &AllowKey) -> Option<AllowEntry> {
        self.0.get(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Settings;
    use crate::policy::ports::PortRange;
    use crate::policy::sample::of_ports;

    /// Fails where each rule after a large one takes as long as that.
    #[test]
    fn the_room_that_a_large_rule_took_is_given_back() {
        let set = of_ports(&[("a", 1)]);
        let small = set.policies()[0].rules[0].clone();
        let mut large = small.clone();
        // No two of them are one block.
        large.to[0].ports = (1..=8000)
            .map(|half| PortRange {
                first: 2 * half,
                last: 2 * half,
            })
            .collect();
        let networks = Networks::of(&set, &Settings::default());
        let mut alone = Alone::new(&[], &networks);
        alone.put(&large);
        let room = alone.0.entries.capacity();
        assert!(room > 8000, "{room}");
        alone.put(&small);
        alone.put(&small);
        assert_eq!(alone.0.entries.len(), 2, "with the header");
        assert!(
            alone.0.entries.capacity() <= 4096,
            "{}",
            alone.0.entries.capacity()
        );
    }
}
