// SPDX-License-Identifier: Apache-2.0
//! Who talks to whom, from what a store has counted.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::Serialize;
use utoipa::ToSchema;

use super::TooMuch;
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

/// Most edges of an answer.
pub const MAX_EDGES: usize = 100_000;

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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Graph {
    /// Every party of an edge, by id.
    pub nodes: Vec<Node>,
    /// Ordered by source, destination, protocol and port.
    pub edges: Vec<Edge>,
}

/// A party of the [`Graph`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = GraphNode)]
pub struct Node {
    /// SPIFFE ID or entity.
    #[schema(value_type = String)]
    pub id: Arc<str>,
    /// `workload`, `entity` or `network`.
    pub kind: NodeKind,
}

/// What a [`Node`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = GraphNodeKind)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = GraphEdge)]
pub struct Edge {
    /// SPIFFE ID or entity.
    #[schema(value_type = String)]
    pub source: Arc<str>,
    /// SPIFFE ID or entity.
    #[schema(value_type = String)]
    pub destination: Arc<str>,
    /// IP protocol.
    #[schema(value_type = String)]
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
    #[schema(value_type = String)]
    pub first_seen: Timestamp,
    /// The latest.
    #[schema(value_type = String)]
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
    pub(super) fn of(connections: &Connections) -> Self {
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

    /// Counts connections of this edge. Returns how many of them correct others, and are not counted yet.
    pub(super) fn take(&mut self, connections: &Connections) -> u64 {
        self.first_seen = self.first_seen.min(connections.first_seen);
        self.last_seen = self.last_seen.max(connections.last_seen);
        match (connections.denied, connections.enforced) {
            (true, true) if connections.corrects => return connections.count,
            _ if connections.corrects => {}
            (false, _) => self.allowed = self.allowed.saturating_add(connections.count),
            (true, true) => self.denied = self.denied.saturating_add(connections.count),
            (true, false) => self.would_deny = self.would_deny.saturating_add(connections.count),
        }
        0
    }

    /// Takes in others between the same two.
    pub(super) fn join(&mut self, other: &Self) {
        self.allowed = self.allowed.saturating_add(other.allowed);
        self.denied = self.denied.saturating_add(other.denied);
        self.would_deny = self.would_deny.saturating_add(other.would_deny);
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
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

/// Adds connections up to a graph, in any order; holds no more edges than an answer may have.
#[derive(Debug)]
pub struct Adding<'f> {
    filter: &'f GraphFilter,
    /// With the connections that correct others: they count when all others have.
    edges: HashMap<Ends, (Edge, u64), RandomState>,
}

type Ends = (Arc<str>, Arc<str>, u8, u16);

impl<'f> Adding<'f> {
    /// Nothing yet of what the filter asks for.
    pub fn new(filter: &'f GraphFilter) -> Self {
        Self {
            filter,
            edges: HashMap::default(),
        }
    }

    /// Counts these, as far as the filter asks for them.
    pub fn take(&mut self, counted: &Connections) -> Result<(), TooMuch> {
        let (source, destination) = (&counted.source, &counted.destination);
        if !self.filter.takes(source, destination) {
            return Ok(());
        }
        let ends = (
            Arc::clone(source),
            Arc::clone(destination),
            counted.protocol,
            counted.port,
        );
        let (edge, refused) = self.edges.entry(ends).or_insert_with(|| (Edge::of(counted), 0));
        *refused = refused.saturating_add(edge.take(counted));
        if self.edges.len() > MAX_EDGES {
            return Err(TooMuch::Edges);
        }
        Ok(())
    }

    /// The graph.
    pub fn done(self) -> Graph {
        let corrected = |(mut edge, refused): (Edge, u64)| {
            edge.correct(refused);
            edge
        };
        Graph::of_edges(self.edges.into_values().map(corrected).collect())
    }
}

impl Graph {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(port: usize) -> Connections {
        Connections {
            source: format!("spiffe://hanzo.ai/k8s/ns{}/a", port / 65_536).into(),
            destination: "world".into(),
            protocol: 6,
            port: (port % 65_536) as u16,
            corrects: false,
            denied: false,
            enforced: true,
            count: 1,
            first_seen: Timestamp(1),
            last_seen: Timestamp(2),
        }
    }

    #[test]
    fn an_answer_has_so_many_edges_and_no_more() {
        let all = GraphFilter::default();
        let mut adding = Adding::new(&all);
        for _ in 0..2 {
            for port in 0..MAX_EDGES {
                assert_eq!(adding.take(&connections(port)), Ok(()));
            }
        }
        assert_eq!(adding.take(&connections(MAX_EDGES)), Err(TooMuch::Edges));
        let one = GraphFilter {
            namespace: Some("ns1".to_owned()),
            ..GraphFilter::default()
        };
        let mut adding = Adding::new(&one);
        for port in 0..=MAX_EDGES {
            assert_eq!(
                adding.take(&connections(port)),
                Ok(()),
                "what is not asked for is not held"
            );
        }
        assert_eq!(adding.done().edges.len(), MAX_EDGES + 1 - 65_536);
    }
}
