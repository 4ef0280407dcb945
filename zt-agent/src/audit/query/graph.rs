// SPDX-License-Identifier: Apache-2.0
//! Who talks to whom, from what a store has counted.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use crate::audit::record::{Protocol, Timestamp};

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

/// Connections between two parties that a store counted together.
#[derive(Clone, Debug)]
pub struct Connections {
    /// SPIFFE ID or entity.
    pub source: Arc<str>,
    /// SPIFFE ID or entity.
    pub destination: Arc<str>,
    /// IP protocol.
    pub protocol: u8,
    /// Target port.
    pub port: u16,
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

impl Edge {
    /// The edge of these connections, none of which is counted yet.
    fn of(connections: &Connections) -> Self {
        Self {
            source: Arc::clone(&connections.source),
            destination: Arc::clone(&connections.destination),
            protocol: Protocol(connections.protocol),
            port: connections.port,
            allowed: 0,
            denied: 0,
            would_deny: 0,
            first_seen: connections.first_seen,
            last_seen: connections.last_seen,
        }
    }

    /// Counts connections of this edge. Those that correct others come after all that count.
    fn take(&mut self, connections: &Connections) {
        self.first_seen = self.first_seen.min(connections.first_seen);
        self.last_seen = self.last_seen.max(connections.last_seen);
        match (connections.denied, connections.enforced) {
            (true, true) if connections.corrects => self.correct(connections.count),
            _ if connections.corrects => {}
            (false, _) => self.allowed = self.allowed.saturating_add(connections.count),
            (true, true) => self.denied = self.denied.saturating_add(connections.count),
            (true, false) => self.would_deny = self.would_deny.saturating_add(connections.count),
        }
    }

    /// Takes in `refused` connections that the source let pass and the destination refused: they were counted by
    /// what the source made of them, which for the same policy is `would_deny`.
    pub fn correct(&mut self, refused: u64) {
        let from_would_deny = refused.min(self.would_deny);
        self.would_deny -= from_would_deny;
        // What is left had been allowed by an earlier revision, or its source's record is gone.
        self.allowed = self.allowed.saturating_sub(refused - from_would_deny);
        self.denied = self.denied.saturating_add(refused);
    }
}

impl Graph {
    /// The graph of all these connections, as far as the filter asks for them.
    pub fn of(connections: &[Connections], filter: &GraphFilter) -> Self {
        type Ends<'c> = (&'c str, &'c str, u8, u16);
        let mut edges: HashMap<Ends<'_>, Edge> = HashMap::new();
        for corrects in [false, true] {
            for counted in connections.iter().filter(|counted| counted.corrects == corrects) {
                let (source, destination) = (&*counted.source, &*counted.destination);
                if filter.takes(source, destination) {
                    edges
                        .entry((source, destination, counted.protocol, counted.port))
                        .or_insert_with(|| Edge::of(counted))
                        .take(counted);
                }
            }
        }
        Self::of_edges(edges.into_values().collect())
    }

    fn of_edges(mut edges: Vec<Edge>) -> Self {
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
