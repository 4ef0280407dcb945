// SPDX-License-Identifier: Apache-2.0
//! Since when the rules of a policy are what they are. Records and counts name a rule by its number in its policy: before the
//! policy was changed, another may have had that name.

use std::collections::{BTreeMap, BTreeSet};

use super::HOUR;
use crate::audit::record::Timestamp;

/// Most hours within which policies begin: a range of time is added up in pieces between them.
const MOST_HOURS: usize = 12;

/// When each policy that was changed came to be what it is. Of all others rules are what they always were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begins(BTreeMap<String, Timestamp>);

/// Whether what was counted is of the rule that has the name now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Age {
    /// It is, and was after the hour in which its policy began.
    Now,
    /// It is, and was in that hour.
    Young,
    /// Some of that hour is, and some is of another rule.
    Mixed,
    /// It is of another rule.
    Before,
}

/// A part of a range of hours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::audit) struct Piece {
    /// The first and the last.
    pub(in crate::audit) hours: (i64, i64),
    /// It is one hour, and a policy begins within: what is added up there is told apart by its shape.
    pub(in crate::audit) begins: bool,
}

impl Begins {
    /// These policies, by their names. Where they begin in too many different hours, some begin later here: what is counted
    /// then is less, and of the right rule.
    pub fn new(policies: impl IntoIterator<Item = (String, Timestamp)>) -> Self {
        let mut policies: BTreeMap<String, Timestamp> = policies.into_iter().collect();
        let hours: BTreeSet<i64> = policies.values().map(|begin| hour(*begin)).collect();
        let hours: Vec<i64> = hours.into_iter().collect();
        let together = hours.len().div_ceil(MOST_HOURS).max(1);
        let last: BTreeMap<i64, i64> = hours
            .chunks(together)
            .flat_map(|chunk| {
                let last = chunk.last().copied();
                chunk.iter().filter_map(move |hour| Some((*hour, last?)))
            })
            .collect();
        for begin in policies.values_mut() {
            let own = hour(*begin);
            if let Some(later) = last.get(&own).filter(|later| **later > own) {
                *begin = Timestamp(later.saturating_mul(HOUR));
            }
        }
        Self(policies)
    }

    /// When the policy of a rule began, if it was changed.
    pub fn of(&self, rule: Option<&str>) -> Option<Timestamp> {
        self.of_policy(policy_of(rule?)?)
    }

    /// When a policy began, if it was changed.
    pub fn of_policy(&self, name: &str) -> Option<Timestamp> {
        self.0.get(name).copied()
    }

    /// Whose what a rule of that name decided between these two times is. Of several hours none is that in which its policy
    /// began.
    pub(super) fn age(&self, rule: Option<&str>, first_seen: Timestamp, last_seen: Timestamp) -> Age {
        match self.of(rule) {
            Some(begin) if last_seen < begin => Age::Before,
            Some(begin) if first_seen < begin => Age::Mixed,
            Some(begin) if hour(first_seen) == hour(begin) => Age::Young,
            _ => Age::Now,
        }
    }

    /// A range of hours in pieces, in order: each hour in which a policy begins by itself, and what is between them.
    pub(in crate::audit) fn pieces(&self, (first, last): (i64, i64)) -> Vec<Piece> {
        let begins = self.0.values().map(|begin| hour(*begin));
        let begins: BTreeSet<i64> = begins.filter(|hour| (first..=last).contains(hour)).collect();
        let mut pieces = Vec::with_capacity(2 * begins.len() + 1);
        let mut from = first;
        for hour in begins {
            if from < hour {
                pieces.push(Piece {
                    hours: (from, hour - 1),
                    begins: false,
                });
            }
            pieces.push(Piece {
                hours: (hour, hour),
                begins: true,
            });
            from = hour + 1;
        }
        if from <= last {
            pieces.push(Piece {
                hours: (from, last),
                begins: false,
            });
        }
        pieces
    }
}

/// The policy that a rule's name names.
pub(in crate::audit) fn policy_of(rule: &str) -> Option<&str> {
    rule.split_once('/').map(|(policy, _)| policy)
}

/// The beginning of the hour after a time.
pub(in crate::audit) fn next_hour(time: Timestamp) -> Timestamp {
    Timestamp(hour(time).saturating_add(1).saturating_mul(HOUR))
}

const fn hour(time: Timestamp) -> i64 {
    time.0.div_euclid(HOUR)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn begins(times: &[i64]) -> Begins {
        let named = times.iter().enumerate();
        Begins::new(named.map(|(number, time)| (format!("p{number}"), Timestamp(*time))))
    }

    proptest! {
        #[test]
        fn pieces_are_the_whole_range_and_no_longer_one_has_a_beginning_in_it(
            times in proptest::collection::vec(-50 * HOUR..50 * HOUR, 0..40),
            first in -60_i64..60,
            length in 0_i64..60,
        ) {
            let begins = begins(&times);
            let pieces = begins.pieces((first, first + length));
            let mut next = first;
            for Piece { hours, begins: is_split } in &pieces {
                prop_assert!(hours.0 == next && hours.1 >= hours.0);
                prop_assert!(!is_split || hours.0 == hours.1);
                let within = begins.0.values().any(|begin| (hours.0..=hours.1).contains(&hour(*begin)));
                prop_assert_eq!(within, *is_split);
                next = hours.1 + 1;
            }
            prop_assert_eq!(next, first + length + 1);
            prop_assert!(pieces.len() <= 2 * MOST_HOURS + 1);
        }

        #[test]
        fn no_policy_begins_before_it_did(times in proptest::collection::vec(-90 * HOUR..90 * HOUR, 1..60)) {
            let begins = begins(&times);
            let mut later = 0;
            for (number, time) in times.iter().enumerate() {
                let begin = begins.of_policy(&format!("p{number}")).expect("it is one of them");
                prop_assert!(begin.0 >= *time);
                later += usize::from(begin.0 > *time);
            }
            let hours: BTreeSet<i64> = times.iter().map(|time| time.div_euclid(HOUR)).collect();
            prop_assert!(later == 0 || hours.len() > MOST_HOURS);
        }
    }

    #[test]
    fn all_time_is_a_range_as_any_other() {
        let all = (i64::MIN, i64::MAX);
        let whole = Piece {
            hours: all,
            begins: false,
        };
        assert_eq!(Begins::default().pieces(all), [whole]);
        let hours: Vec<(i64, i64)> = begins(&[HOUR + 7, HOUR + 9])
            .pieces(all)
            .iter()
            .map(|piece| piece.hours)
            .collect();
        assert_eq!(hours, [(i64::MIN, 0), (1, 1), (2, i64::MAX)]);
    }

    #[test]
    fn what_is_counted_is_of_the_rule_that_has_the_name_or_of_another() {
        let begins = Begins::new([("core".to_owned(), Timestamp(5 * HOUR + 100))]);
        let age = |rule, first, last| begins.age(rule, Timestamp(first), Timestamp(last));
        let rule = Some("core/rule-1");
        for (first, last, wanted) in [
            (HOUR, 4 * HOUR, Age::Before),
            (5 * HOUR, 5 * HOUR + 99, Age::Before),
            (5 * HOUR + 99, 5 * HOUR + 100, Age::Mixed),
            (5 * HOUR + 100, 5 * HOUR + 100, Age::Young),
            (6 * HOUR, 9 * HOUR, Age::Now),
        ] {
            assert_eq!(age(rule, first, last), wanted, "{first} to {last}");
        }
        for rule in [None, Some("core"), Some("core-2/rule-1"), Some("builtin/self")] {
            assert_eq!(age(rule, 0, 9 * HOUR), Age::Now, "{rule:?}");
            assert_eq!(begins.of(rule), None);
        }
        assert_eq!(next_hour(Timestamp(5 * HOUR)), Timestamp(6 * HOUR));
        assert_eq!(next_hour(Timestamp(-1)), Timestamp(0));
    }
}
