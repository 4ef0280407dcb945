// SPDX-License-Identifier: Apache-2.0
//! Questions to the trail and their answers, whatever keeps it.

mod addresses;
mod begins;
mod fold;
mod graph;
mod page;
mod raw;
mod rules;
mod span;
mod traffic;

use uuid::Uuid;

pub use self::addresses::{Addresses, MAX_TOLD};
pub use self::begins::Begins;
pub(in crate::audit) use self::begins::{next_hour, policy_of};
pub use self::fold::{Classes, Fold, MAX_ADDRESSES_ANSWERED, MAX_ANSWERED, MAX_BYTES_ANSWERED, MAX_SEEN};
pub use self::graph::{Adding, Connections, Edge, Graph, GraphFilter, HOUR, MAX_EDGES, Node, NodeKind};
pub use self::page::{Page, Shown, Unreadable};
pub use self::raw::{AddingRaw, RawSeen};
pub use self::rules::{AddingHits, CountedByRule, Current, Decided, Hits, RuleHits};
pub use self::span::{Span, Spans};
pub(in crate::audit) use self::traffic::by_address;
pub use self::traffic::{AddingSeen, Counted, Seen, Traffic, is_by_address, is_by_policy};
use super::record::{Entry, Kept, Kind, Outcome, Timestamp};
use crate::spiffe_id::{Pattern, SpiffeId};

/// Records on one page when the question does not say.
pub const DEFAULT_LIMIT: u32 = 100;
/// Most records on one page.
pub const MAX_LIMIT: u32 = 1000;

/// A question that a store does not answer, for what its answer would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// Of the graph.
    #[error("the graph has more than {MAX_EDGES} edges: narrow it by time or namespace")]
    Edges,
    /// Of recorded connections.
    #[error("there are more than {0} different connections: narrow them by time or namespace")]
    Seen(usize),
    /// Of addresses that these had.
    #[error(
        "more than {0} counts of single addresses would have to be added up: narrow them by time or namespace"
    )]
    Addresses(usize),
    /// Of bytes that connections take until their addresses are read.
    #[error(
        "connections of ends that are known by their addresses alone take more than {0} bytes of memory: narrow them by time or namespace"
    )]
    Bytes(usize),
    /// Of whatever the server adds up.
    #[error(
        "adding up what is asked for takes more of the server's disk than it gives to a question: narrow it by time or namespace"
    )]
    Room,
}

/// Which records to find. Every `None` finds all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this type.
    pub kind: Option<Kind>,
    /// Not before.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    /// With this verdict.
    pub decision: Option<Outcome>,
    /// Decided at an end that enforces, or that does not.
    pub enforced: Option<bool>,
    /// From this party.
    pub source: Option<PartyFilter>,
    /// To this party.
    pub destination: Option<PartyFilter>,
    /// To this target port.
    pub port: Option<u16>,
    /// Decided by a rule of this policy, or by this rule (`<policy>/rule-<n>`).
    pub policy: Option<String>,
    /// With one end on this node.
    pub node: Option<String>,
}

impl Filter {
    /// Whether it finds this one.
    pub fn takes(&self, entry: &Entry) -> bool {
        fn asked<T>(asked: Option<&T>, holds: impl FnOnce(&T) -> bool) -> bool {
            asked.is_none_or(holds)
        }
        let time = entry.timestamp();
        let at_all = asked(self.kind.as_ref(), |kind| *kind == entry.kind())
            && asked(self.since.as_ref(), |since| time >= *since)
            && asked(self.until.as_ref(), |until| time < *until);
        let decision = match entry {
            Entry::Decision(record) => record,
            Entry::PolicyChange(change) | Entry::ModeChange(change) | Entry::IdentityChange(change) => {
                let of_a_decision = self.decision.is_some()
                    || self.enforced.is_some()
                    || self.source.is_some()
                    || self.destination.is_some()
                    || self.port.is_some()
                    || self.policy.is_some();
                return at_all && !of_a_decision && asked(self.node.as_ref(), |node| **node == *change.node);
            }
        };
        let rule = decision.policy_matched.as_deref().unwrap_or_default();
        let ends = [&decision.source.node, &decision.destination.node];
        at_all
            && asked(self.decision.as_ref(), |outcome| *outcome == decision.decision)
            && asked(self.enforced.as_ref(), |enforced| *enforced == decision.enforced)
            && asked(self.source.as_ref(), |party| party.is(decision.source.name()))
            && asked(self.destination.as_ref(), |party| {
                party.is(decision.destination.name())
            })
            && asked(self.port.as_ref(), |port| *port == decision.destination.port)
            && asked(self.policy.as_ref(), |policy| {
                let rest = rule.strip_prefix(policy.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
            && asked(self.node.as_ref(), |node| {
                ends.into_iter().flatten().any(|end| **end == **node)
            })
    }
}

impl std::str::FromStr for PartyFilter {
    type Err = String;

    /// A SPIFFE ID, a pattern of them, or an entity.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('*') {
            return Pattern::parse(text)
                .map(Self::Pattern)
                .map_err(|error| error.to_string());
        }
        if text.starts_with("spiffe:") {
            SpiffeId::parse(text).map_err(|error| error.to_string())?;
        }
        Ok(Self::Exact(text.to_owned()))
    }
}

impl PartyFilter {
    /// Whether it is the one with that name.
    fn is(&self, name: &str) -> bool {
        match self {
            Self::Exact(text) => text == name,
            Self::Pattern(pattern) => SpiffeId::parse(name).is_ok_and(|id| pattern.matches(&id)),
        }
    }
}

/// A party to look for.
#[derive(Clone, Debug)]
pub enum PartyFilter {
    /// With exactly this SPIFFE ID or entity.
    Exact(String),
    /// With a SPIFFE ID that matches.
    Pattern(Pattern),
}

/// A place in the trail: behind the record of that time and id, in the order of both from the newest on. Records that
/// come later never move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// Time of the record.
    pub time: i64,
    /// Its id.
    pub id: Uuid,
}

impl Cursor {
    /// The place of a record.
    pub fn at(kept: &Kept) -> Self {
        Self {
            time: kept.entry.timestamp().0,
            id: kept.entry.id(),
        }
    }
}

/// A text that no answer ever gave as its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: pass the `next_cursor` of an earlier answer as it is")]
pub struct CursorError;

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "t{:016x}{}", self.time, self.id.simple())
    }
}

impl std::str::FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let digits = text
            .strip_prefix('t')
            .filter(|digits| digits.len() == 48)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let (time, id) = digits
            .and_then(|digits| digits.split_at_checked(16))
            .ok_or(CursorError)?;
        Ok(Self {
            time: u64::from_str_radix(time, 16)
                .map_err(|_| CursorError)?
                .cast_signed(),
            id: Uuid::from_u128(u128::from_str_radix(id, 16).map_err(|_| CursorError)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::sample;

    fn kept(time: i64) -> Kept {
        let mut record = sample::record();
        record.timestamp = Timestamp(time);
        record.id = Uuid::from_u128(time.unsigned_abs().into());
        Kept {
            entry: Entry::Decision(record),
            link: None,
        }
    }

    /// The page of a place that holds records of these times.
    fn page(times: &[i64], cursor: Option<Cursor>, limit: u32) -> Page {
        let mut records: Vec<Kept> = times.iter().map(|time| kept(*time)).collect();
        records.sort_by_key(|kept| std::cmp::Reverse(Cursor::at(kept)));
        records.retain(|kept| cursor.is_none_or(|cursor| Cursor::at(kept) < cursor));
        let more = records.len() > limit as usize;
        records.truncate(limit as usize);
        let next = records.last().filter(|_| more).map(Cursor::at);
        Page {
            records,
            next,
            ..Page::default()
        }
    }

    proptest! {
        #[test]
        fn pages_of_two_places_are_those_of_one_that_has_all(
            one in proptest::collection::btree_set(0_i64..60, 0..40),
            other in proptest::collection::btree_set(0_i64..60, 0..40),
            limit in 1_u32..20,
        ) {
            let all: Vec<i64> = one.union(&other).copied().collect();
            let [one, other] = [one, other].map(|times| times.into_iter().collect::<Vec<_>>());
            let mut cursor = None;
            loop {
                let expected = page(&all, cursor, limit);
                let joined = page(&one, cursor, limit).joined(page(&other, cursor, limit), limit);
                prop_assert_eq!(&joined.records, &expected.records);
                prop_assert_eq!(joined.next, expected.next);
                cursor = joined.next;
                if cursor.is_none() {
                    break;
                }
            }
        }
    }

    #[test]
    fn cursors_lead_back_and_nothing_else_is_one() {
        for time in [i64::MIN, 0, 1, 255, i64::MAX] {
            let id = Uuid::from_u128(u128::MAX - 7);
            let cursor = Cursor { time, id };
            assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }
        for text in [
            "",
            "t",
            "t-1",
            "1",
            "t00000000000000010000000000000000000000000000000",
            "t+0000000000000010000000000000000000000000000000z",
            "t' OR 1=1 --000000000000000000000000000000000000",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(CursorError), "{text}");
        }
    }
}
