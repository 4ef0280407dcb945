// SPDX-License-Identifier: Apache-2.0
//! Questions to the trail and their answers, whatever keeps it.

use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use super::record::{Entry, Kept, Kind, Outcome, Protocol, Timestamp};
use crate::spiffe_id::{Pattern, SpiffeId};

/// Records on one page when the question does not say.
pub const DEFAULT_LIMIT: u32 = 100;
/// Most records on one page.
pub const MAX_LIMIT: u32 = 1000;

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
            Entry::PolicyChange(change) | Entry::ModeChange(change) => {
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

/// One page of records, newest first.
#[derive(Clone, Debug)]
pub struct Page {
    /// The records.
    pub records: Vec<Kept>,
    /// Where the next page starts; `None` on the last one.
    pub next: Option<Cursor>,
}

/// Of which connections to make the graph. Every `None` takes all.
#[derive(Clone, Debug, Default)]
pub struct GraphFilter {
    /// Not before the hour of this time.
    pub since: Option<Timestamp>,
    /// Before this time, which is rounded up to the full hour.
    pub until: Option<Timestamp>,
    /// With one end in this namespace: the second segment of the path of its SPIFFE ID.
    pub namespace: Option<String>,
}

/// Width of the graph's buckets of time, nanoseconds.
pub const HOUR: i64 = 3_600_000_000_000;

impl GraphFilter {
    /// The first and the last hour (since 1970) that are asked for.
    pub fn hours(&self) -> (i64, i64) {
        let first = self.since.map_or(i64::MIN, |since| since.0.div_euclid(HOUR));
        let last = self
            .until
            .map_or(i64::MAX, |until| (until.0.saturating_sub(1)).div_euclid(HOUR));
        (first, last)
    }

    /// Whether an edge between these two is asked for.
    pub fn takes(&self, source: &str, destination: &str) -> bool {
        let Some(namespace) = self.namespace.as_deref() else {
            return true;
        };
        [source, destination].into_iter().any(|party| {
            let path = party.strip_prefix("spiffe://");
            path.and_then(|path| path.split('/').nth(2)) == Some(namespace)
        })
    }
}

/// Who talks to whom, as far as the trail goes back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Graph {
    /// Every party of an edge, by id.
    pub nodes: Vec<Node>,
    /// Ordered by source, destination, protocol and port.
    pub edges: Vec<Edge>,
}

/// A party of the [`Graph`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// SPIFFE ID or entity.
    pub id: Arc<str>,
    /// `workload`, `entity` or `network`.
    pub kind: NodeKind,
}

/// What a [`Node`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// It has a SPIFFE ID.
    Workload,
    /// `host`, `world` …
    Entity,
    /// A CIDR of the policy.
    Network,
}

impl NodeKind {
    /// The kind of the party with this name.
    pub fn of(name: &str) -> Self {
        if name.starts_with("spiffe://") {
            Self::Workload
        } else if name.starts_with("cidr:") {
            Self::Network
        } else {
            Self::Entity
        }
    }
}

/// Connections from one party to another, each counted once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Edge {
    /// SPIFFE ID or entity.
    pub source: Arc<str>,
    /// SPIFFE ID or entity.
    pub destination: Arc<str>,
    /// IP protocol.
    pub protocol: Protocol,
    /// Target port.
    pub port: u16,
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

impl Edge {
    /// Takes in `refused` connections that the source let pass and the destination refused: they were counted by
    /// what the source made of them, which for the same policy is `would_deny`.
    pub fn correct(&mut self, refused: u64) {
        let from_would_deny = refused.min(self.would_deny);
        self.would_deny -= from_would_deny;
        // What is left had been allowed by an earlier revision, or its source's record is gone.
        self.allowed = self.allowed.saturating_sub(refused - from_would_deny);
        self.denied += refused;
    }
}

impl Graph {
    /// The graph of these edges.
    pub fn of(mut edges: Vec<Edge>) -> Self {
        edges.sort_by(|a, b| {
            (&a.source, &a.destination, a.protocol.0, a.port).cmp(&(
                &b.source,
                &b.destination,
                b.protocol.0,
                b.port,
            ))
        });
        let names: std::collections::BTreeSet<&Arc<str>> = edges
            .iter()
            .flat_map(|edge| [&edge.source, &edge.destination])
            .collect();
        let nodes = names
            .into_iter()
            .map(|id| Node {
                id: Arc::clone(id),
                kind: NodeKind::of(id),
            })
            .collect();
        Self { nodes, edges }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
