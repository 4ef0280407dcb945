// SPDX-License-Identifier: Apache-2.0
//! How often which rule decided.

use std::collections::BTreeMap;

use super::GraphFilter;
use super::begins::{Age, Begins, next_hour};
use crate::audit::record::{AuditRecord, Outcome, Part, Timestamp};

/// Connections that one rule decided, or that none did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hits {
    /// That policy allowed.
    pub allowed: u64,
    /// That were refused.
    pub denied: u64,
    /// That policy denied and nothing refused.
    pub would_deny: u64,
    /// The first of them.
    pub first_seen: Timestamp,
    /// The latest.
    pub last_seen: Timestamp,
}

impl Hits {
    fn with(self, other: Self) -> Self {
        Self {
            allowed: self.allowed.saturating_add(other.allowed),
            denied: self.denied.saturating_add(other.denied),
            would_deny: self.would_deny.saturating_add(other.would_deny),
            first_seen: self.first_seen.min(other.first_seen),
            last_seen: self.last_seen.max(other.last_seen),
        }
    }
}

/// By `<policy>/rule-<n>`; by nothing, where no rule decided.
pub type RuleHits = BTreeMap<Option<String>, Decided>;

/// What rules of one name decided: the one that has it now, and others that had it before their policy was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    now: Option<Hits>,
    young: Option<Hits>,
    mixed: Option<Hits>,
    before: Option<Hits>,
    /// What of `young` and `mixed` is of the rule that has the name now, where that was found out.
    apart: Option<Apart>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Apart(Option<Hits>);

/// What the rule that has the name now decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Current {
    /// How often; nothing where it is not known to have decided.
    pub hits: Option<Hits>,
    /// Since when that is counted; `None` for all that was asked for. Where an hour has connections of both, and they were not
    /// told apart, it is the hour after.
    pub since: Option<Timestamp>,
    /// When it decided last, counted or not.
    pub last_seen: Option<Timestamp>,
}

impl From<Option<Hits>> for Current {
    /// All of a name, whichever rule had it.
    fn from(hits: Option<Hits>) -> Self {
        Self {
            since: None,
            last_seen: hits.as_ref().map(|hits| hits.last_seen),
            hits,
        }
    }
}

impl Decided {
    /// Whatever rule had the name.
    pub fn all(&self) -> Option<Hits> {
        sum([&self.now, &self.young, &self.mixed, &self.before])
    }

    /// What the rule that has the name now decided, whose policy began then, if it was changed.
    pub fn current(&self, begin: Option<Timestamp>) -> Current {
        let (hits, since) = match (&self.apart, &self.mixed) {
            (Some(Apart(hour)), _) => (sum([&self.now, hour]), begin),
            (None, None) => (sum([&self.now, &self.young]), begin),
            (None, Some(_)) => (self.now, begin.map(next_hour)),
        };
        // The last one of an hour that has both is of this rule.
        let last = sum([&self.now, &self.young, &self.mixed]).map(|hits| hits.last_seen);
        Current {
            hits,
            since,
            last_seen: last,
        }
    }

    /// Whether connections of two rules are counted together.
    pub(in crate::audit) const fn is_mixed(&self) -> bool {
        self.mixed.is_some() && self.apart.is_none()
    }

    /// Says what of the hour in which the policy began is of the rule that has the name now.
    pub(in crate::audit) fn tell_apart(&mut self, of_hour: Option<Hits>) {
        self.apart = Some(Apart(of_hour));
    }

    const fn part(&mut self, age: Age) -> &mut Option<Hits> {
        match age {
            Age::Now => &mut self.now,
            Age::Young => &mut self.young,
            Age::Mixed => &mut self.mixed,
            Age::Before => &mut self.before,
        }
    }
}

fn sum<const N: usize>(parts: [&Option<Hits>; N]) -> Option<Hits> {
    parts.into_iter().flatten().copied().reduce(Hits::with)
}

/// Connections that a store counted together.
#[derive(Clone, Debug)]
pub struct CountedByRule {
    /// The rule; `None` where none decided.
    pub rule: Option<String>,
    /// Whether they are another end's second record.
    pub corrects: bool,
    /// Whether policy denied them.
    pub denied: bool,
    /// Whether the end that decided enforces.
    pub enforced: bool,
    /// How many.
    pub count: u64,
    /// The first of them.
    pub first_seen: Timestamp,
    /// The latest.
    pub last_seen: Timestamp,
}

impl CountedByRule {
    /// What a record stands for; `None` where that is no connection.
    pub fn of(record: &AuditRecord) -> Option<Self> {
        let part = record.part();
        (part != Part::Aside).then(|| Self {
            rule: record.policy_matched.as_deref().map(str::to_owned),
            corrects: part == Part::Corrects,
            denied: record.decision == Outcome::Deny,
            enforced: record.enforced,
            count: record.count,
            first_seen: record.timestamp,
            last_seen: record.timestamp,
        })
    }
}

/// Adds up, in any order.
#[derive(Debug, Default)]
pub struct AddingHits {
    begins: Begins,
    hits: BTreeMap<(Option<String>, Age), (Hits, u64)>,
}

impl AddingHits {
    /// Tells apart what was before and after these policies began.
    pub fn new(begins: &Begins) -> Self {
        Self {
            begins: begins.clone(),
            hits: BTreeMap::new(),
        }
    }

    /// Counts these.
    pub fn take(&mut self, counted: CountedByRule) {
        let (first_seen, last_seen) = (counted.first_seen, counted.last_seen);
        let age = self.begins.age(counted.rule.as_deref(), first_seen, last_seen);
        let (hits, refused) = self.hits.entry((counted.rule, age)).or_insert_with(|| {
            let hits = Hits {
                allowed: 0,
                denied: 0,
                would_deny: 0,
                first_seen,
                last_seen,
            };
            (hits, 0)
        });
        hits.first_seen = hits.first_seen.min(first_seen);
        hits.last_seen = hits.last_seen.max(last_seen);
        let of = match (counted.denied, counted.enforced) {
            (true, true) if counted.corrects => refused,
            _ if counted.corrects => return,
            (false, _) => &mut hits.allowed,
            (true, true) => &mut hits.denied,
            (true, false) => &mut hits.would_deny,
        };
        *of = of.saturating_add(counted.count);
    }

    /// All of them. What the destination refused after the source had let it pass is one connection, and was refused.
    pub fn done(self) -> RuleHits {
        let mut all = RuleHits::new();
        for ((rule, age), (mut hits, refused)) in self.hits {
            hits.would_deny -= refused.min(hits.would_deny);
            hits.denied = hits.denied.saturating_add(refused);
            *all.entry(rule).or_default().part(age) = Some(hits);
        }
        all
    }
}

impl GraphFilter {
    /// All of a range of hours.
    pub fn since(since: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        Self {
            since,
            until,
            namespace: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::query::HOUR;

    fn counted(
        rule: Option<&str>,
        (corrects, denied, enforced): (bool, bool, bool),
        count: u64,
        (first, last): (i64, i64),
    ) -> CountedByRule {
        CountedByRule {
            rule: rule.map(str::to_owned),
            corrects,
            denied,
            enforced,
            count,
            first_seen: Timestamp(first),
            last_seen: Timestamp(last),
        }
    }

    #[test]
    fn a_connection_that_both_ends_told_of_is_one() {
        let mut adding = AddingHits::default();
        for one in [
            counted(Some("p/rule-1"), (false, false, true), 3, (5, 5)),
            counted(None, (false, true, false), 4, (6, 6)),
            counted(None, (true, true, true), 3, (7, 7)),
            counted(None, (true, true, false), 9, (8, 8)),
            counted(None, (false, true, true), 1, (2, 2)),
        ] {
            adding.take(one);
        }
        let hits = adding.done();
        assert_eq!(hits.len(), 2);
        let of = |rule: Option<&str>| hits[&rule.map(str::to_owned)].all().expect("hits");
        let by_rule = of(Some("p/rule-1"));
        assert_eq!((by_rule.allowed, by_rule.denied, by_rule.would_deny), (3, 0, 0));
        let by_none = of(None);
        assert_eq!((by_none.allowed, by_none.denied, by_none.would_deny), (0, 4, 1));
        assert_eq!((by_none.first_seen.0, by_none.last_seen.0), (2, 8));
    }

    #[test]
    fn a_rule_has_nothing_of_what_another_of_its_name_decided() {
        let begin = Timestamp(5 * HOUR + 100);
        let begins = Begins::new([("p".to_owned(), begin)]);
        let allowed = (false, false, true);
        let mut adding = AddingHits::new(&begins);
        let within = |from: i64, to: i64| (5 * HOUR + from, 5 * HOUR + to);
        for one in [
            counted(Some("p/rule-1"), allowed, 7, (HOUR, 2 * HOUR)),
            counted(Some("p/rule-1"), allowed, 3, within(100, 300)),
            counted(Some("p/rule-1"), allowed, 1, (6 * HOUR, 8 * HOUR)),
            counted(Some("p/rule-2"), allowed, 50, within(0, 200)),
            counted(Some("p/rule-2"), allowed, 20, (6 * HOUR, 6 * HOUR)),
            counted(Some("p/rule-3"), allowed, 9, within(0, 99)),
            counted(Some("q/rule-1"), allowed, 4, within(0, 200)),
        ] {
            adding.take(one);
        }
        let mut hits = adding.done();
        let current = |hits: &RuleHits, rule: &str| {
            let rule = Some(rule.to_owned());
            let current = hits[&rule].current(begins.of(rule.as_deref()));
            let count = current.hits.map(|hits| hits.allowed);
            (count, current.since, current.last_seen.map(|last| last.0))
        };
        assert_eq!(current(&hits, "p/rule-1"), (Some(4), Some(begin), Some(8 * HOUR)));
        assert_eq!(
            hits[&Some("p/rule-1".to_owned())].all().expect("hits").allowed,
            11
        );
        // Of this hour some may be of either rule.
        let next = Some(Timestamp(6 * HOUR));
        assert_eq!(current(&hits, "p/rule-2"), (Some(20), next, Some(6 * HOUR)));
        assert_eq!(current(&hits, "p/rule-3"), (None, Some(begin), None));
        assert_eq!(current(&hits, "q/rule-1"), (Some(4), None, Some(5 * HOUR + 200)));

        let mut looked_at = AddingHits::default();
        looked_at.take(counted(Some("p/rule-2"), allowed, 2, within(150, 200)));
        let rule = Some("p/rule-2".to_owned());
        let of_hour = looked_at.done()[&rule].all();
        let decided = hits.get_mut(&rule).expect("hits");
        assert!(decided.is_mixed());
        decided.tell_apart(of_hour);
        assert!(!decided.is_mixed());
        assert_eq!(
            decided.all().expect("hits").allowed,
            70,
            "whatever was told apart"
        );
        assert_eq!(
            current(&hits, "p/rule-2"),
            (Some(22), Some(begin), Some(6 * HOUR))
        );
    }

    #[test]
    fn a_rule_that_decided_in_an_hour_with_another_is_used_before_it_is_counted() {
        let begin = Timestamp(HOUR / 2);
        let begins = Begins::new([("p".to_owned(), begin)]);
        let mut adding = AddingHits::new(&begins);
        adding.take(counted(
            Some("p/rule-1"),
            (false, true, true),
            5,
            (0, HOUR / 2 + 7),
        ));
        let hits = adding.done();
        let current = hits[&Some("p/rule-1".to_owned())].current(Some(begin));
        assert_eq!(
            current,
            Current {
                hits: None,
                since: Some(Timestamp(HOUR)),
                last_seen: Some(Timestamp(HOUR / 2 + 7)),
            }
        );
    }
}
