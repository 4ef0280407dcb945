// SPDX-License-Identifier: Apache-2.0
//! The names of rules by their numbers. There may be a hundred thousand of them, and few are ever asked for: what is kept
//! is where a rule stands, and its name is put together when somebody wants to read it.

use std::fmt;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use super::hash::FastMap;

/// Number and name of every rule of a set of policies, without those that zt itself has.
#[derive(Clone, Debug, Default)]
pub struct RuleNames {
    policies: Vec<Arc<str>>,
    places: FastMap<u64, Place>,
}

/// Where a rule stands: its policy, and its number within, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    policy: u32,
    rule: u32,
}

/// The name of a rule: `<policy>/rule-<n>`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RuleName<'a> {
    policy: &'a str,
    rule: u32,
}

impl fmt::Display for RuleName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/rule-{}", self.policy, self.rule)
    }
}

impl<'a> RuleName<'a> {
    /// That of the rule at an index of the policy's rules.
    pub(super) fn at(policy: &'a str, index: usize) -> Self {
        let rule = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
        Self { policy, rule }
    }
}

impl RuleNames {
    pub(super) fn with_capacity(rules: usize) -> Self {
        Self {
            policies: Vec::new(),
            places: FastMap::with_capacity_and_hasher(rules, BuildHasherDefault::default()),
        }
    }

    /// Adds the rules of a policy, by their numbers in its order; each two rules with one number, as the index of the new
    /// one and the name of the other.
    pub(super) fn add(&mut self, policy: &str, numbers: impl Iterator<Item = u64>) -> Vec<(usize, String)> {
        let of = u32::try_from(self.policies.len()).unwrap_or(u32::MAX);
        self.policies.push(Arc::from(policy));
        let mut alike = Vec::new();
        for (index, number) in numbers.enumerate() {
            let rule = RuleName::at(policy, index).rule;
            let other = self.places.insert(number, Place { policy: of, rule });
            if let Some(other) = other.and_then(|place| self.at(place)) {
                alike.push((index, other.to_string()));
            }
        }
        alike
    }

    /// The name of the rule with that number.
    pub fn get(&self, number: u64) -> Option<RuleName<'_>> {
        self.at(*self.places.get(&number)?)
    }

    /// Number and name of each, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, RuleName<'_>)> {
        let names = self.places.iter();
        names.filter_map(|(number, place)| Some((*number, self.at(*place)?)))
    }

    fn at(&self, place: Place) -> Option<RuleName<'_>> {
        let policy = self.policies.get(place.policy as usize)?;
        Some(RuleName {
            policy,
            rule: place.rule,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_has_the_name_of_its_place() {
        let mut names = RuleNames::with_capacity(3);
        assert_eq!(names.add("one", [10, 11].into_iter()), []);
        assert_eq!(names.add("two", [20].into_iter()), []);
        let name = |number| names.get(number).map(|name| name.to_string());
        assert_eq!(name(10).as_deref(), Some("one/rule-1"));
        assert_eq!(name(11).as_deref(), Some("one/rule-2"));
        assert_eq!(name(20).as_deref(), Some("two/rule-1"));
        assert_eq!(name(12), None);
        let mut all: Vec<String> = names
            .iter()
            .map(|(number, name)| format!("{number} {name}"))
            .collect();
        all.sort();
        assert_eq!(all, ["10 one/rule-1", "11 one/rule-2", "20 two/rule-1"]);
    }

    #[test]
    fn two_rules_with_one_number_are_told() {
        let mut names = RuleNames::default();
        names.add("one", [10].into_iter());
        assert_eq!(
            names.add("two", [20, 10].into_iter()),
            [(1, "one/rule-1".to_owned())]
        );
    }
}
