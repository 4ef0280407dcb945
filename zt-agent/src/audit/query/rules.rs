// SPDX-License-Identifier: Apache-2.0
//! How often which rule decided.

use std::collections::BTreeMap;

use super::GraphFilter;
use crate::audit::record::Timestamp;

/// Connections that one rule decided, or that none did.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// By `<policy>/rule-<n>`; by nothing, where no rule decided.
pub type RuleHits = BTreeMap<Option<String>, Hits>;

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

/// Adds up, in any order.
#[derive(Debug, Default)]
pub struct AddingHits {
    hits: BTreeMap<Option<String>, (Hits, u64)>,
}

impl AddingHits {
    /// Counts these.
    pub fn take(&mut self, counted: CountedByRule) {
        let (hits, refused) = self.hits.entry(counted.rule).or_insert_with(|| {
            let hits = Hits {
                allowed: 0,
                denied: 0,
                would_deny: 0,
                first_seen: counted.first_seen,
                last_seen: counted.last_seen,
            };
            (hits, 0)
        });
        hits.first_seen = hits.first_seen.min(counted.first_seen);
        hits.last_seen = hits.last_seen.max(counted.last_seen);
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
        let corrected = |(mut hits, refused): (Hits, u64)| {
            hits.would_deny -= refused.min(hits.would_deny);
            hits.denied = hits.denied.saturating_add(refused);
            hits
        };
        let hits = self.hits.into_iter();
        hits.map(|(rule, counted)| (rule, corrected(counted))).collect()
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

    #[test]
    fn a_connection_that_both_ends_told_of_is_one() {
        let counted = |rule: Option<&str>, corrects, denied, enforced, count, at| CountedByRule {
            rule: rule.map(str::to_owned),
            corrects,
            denied,
            enforced,
            count,
            first_seen: Timestamp(at),
            last_seen: Timestamp(at),
        };
        let mut adding = AddingHits::default();
        for one in [
            counted(Some("p/rule-1"), false, false, true, 3, 5),
            counted(None, false, true, false, 4, 6),
            counted(None, true, true, true, 3, 7),
            counted(None, true, true, false, 9, 8),
            counted(None, false, true, true, 1, 2),
        ] {
            adding.take(one);
        }
        let hits = adding.done();
        assert_eq!(hits.len(), 2);
        let by_rule = &hits[&Some("p/rule-1".to_owned())];
        assert_eq!((by_rule.allowed, by_rule.denied, by_rule.would_deny), (3, 0, 0));
        let by_none = &hits[&None];
        assert_eq!((by_none.allowed, by_none.denied, by_none.would_deny), (0, 4, 1));
        assert_eq!((by_none.first_seen.0, by_none.last_seen.0), (2, 8));
    }
}
