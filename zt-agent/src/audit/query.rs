// SPDX-License-Identifier: Apache-2.0
//! Questions to the trail and their answers, whatever keeps it.

use std::sync::Arc;

use serde::Serialize;

use super::record::{AuditRecord, Outcome, Protocol, Timestamp};
use crate::spiffe_id::Pattern;

/// Records on one page when the question does not say.
pub const DEFAULT_LIMIT: u32 = 100;
/// Most records on one page.
pub const MAX_LIMIT: u32 = 1000;

/// Which records to find. Every `None` finds all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
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

/// A party to look for.
#[derive(Clone, Debug)]
pub enum PartyFilter {
    /// With exactly this SPIFFE ID or entity.
    Exact(String),
    /// With a SPIFFE ID that matches.
    Pattern(Pattern),
}

/// A place in the trail, between two records. Records that come later never move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(pub i64);

/// A text that no answer ever gave as its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: pass the `next_cursor` of an earlier answer as it is")]
pub struct CursorError;

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "r{:x}", self.0)
    }
}

impl std::str::FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let digits = text
            .strip_prefix('r')
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        digits
            .and_then(|digits| i64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or(CursorError)
    }
}

/// One page of records, newest first.
#[derive(Clone, Debug)]
pub struct Page {
    /// The records.
    pub records: Vec<AuditRecord>,
    /// Where the next page starts; `None` on the last one.
    pub next: Option<Cursor>,
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
        for row in [0, 1, 255, i64::MAX] {
            assert_eq!(Cursor(row).to_string().parse(), Ok(Cursor(row)));
        }
        for text in [
            "",
            "r",
            "r-1",
            "r+1",
            "1",
            "rxyz",
            "r1' OR 1=1",
            "rffffffffffffffffff",
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(CursorError), "{text}");
        }
    }
}
