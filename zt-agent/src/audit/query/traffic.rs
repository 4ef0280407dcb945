// SPDX-License-Identifier: Apache-2.0
//! Recorded connections, for those who ask another policy about them: the edges of the graph, and where an end has no name
//! of its own, one for each of its addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::graph::{Connections, Edge};
use super::{GraphFilter, TooMuch};

/// Most different connections of an answer.
pub const MAX_SEEN: usize = 1_000_000;

/// Connections from one party to another, each counted once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who, whom, and how often. What was refused for another reason than policy (a tag that does not verify, a socket
    /// that nobody may have) is in none of its counts.
    pub edge: Edge,
    /// Where the source was, if it is known by its address alone.
    pub source_address: Option<IpAddr>,
    /// Where the destination was, if it is known by its address alone.
    pub destination_address: Option<IpAddr>,
}

/// Connections that a store counted together.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Between whom, and how many.
    pub connections: Connections,
    /// Whether what was decided follows from policy and the two parties.
    pub by_policy: bool,
    /// As in [`Seen`].
    pub source_address: Option<IpAddr>,
    /// As in [`Seen`].
    pub destination_address: Option<IpAddr>,
}

/// Whether a party of that name is whoever has an address in some network: another policy may know it by another name.
pub fn is_by_address(name: &str) -> bool {
    matches!(name, "world" | "unknown") || name.starts_with("cidr:")
}

/// Whether a decision for that reason follows from policy and the two parties.
pub fn is_by_policy(reason: &str) -> bool {
    use zt_common::verdict::Reason;
    let reasons = [
        Reason::Rule,
        Reason::DenyRule,
        Reason::NoRule,
        Reason::DefaultAllow,
        Reason::UnknownSource,
        Reason::UnknownDestination,
        Reason::NoPolicy,
    ];
    reasons.iter().any(|of| of.name() == reason)
}

type Ends = (Arc<str>, Arc<str>, u8, u16, Option<IpAddr>, Option<IpAddr>);

/// Adds connections up, in any order.
#[derive(Debug)]
pub struct AddingSeen<'f> {
    filter: &'f GraphFilter,
    /// With the connections that correct others: they count when all others have.
    seen: HashMap<Ends, (Edge, u64)>,
}

impl<'f> AddingSeen<'f> {
    /// Nothing yet of what the filter asks for.
    pub fn new(filter: &'f GraphFilter) -> Self {
        Self {
            filter,
            seen: HashMap::new(),
        }
    }

    /// Counts these, as far as the filter asks for them.
    pub fn take(&mut self, counted: &Counted) -> Result<(), TooMuch> {
        let connections = &counted.connections;
        let (source, destination) = (&connections.source, &connections.destination);
        if !counted.by_policy || !self.filter.takes(source, destination) {
            return Ok(());
        }
        let ends = (
            Arc::clone(source),
            Arc::clone(destination),
            connections.protocol,
            connections.port,
            counted.source_address.filter(|_| is_by_address(source)),
            counted.destination_address.filter(|_| is_by_address(destination)),
        );
        let (edge, refused) = self
            .seen
            .entry(ends)
            .or_insert_with(|| (Edge::of(connections), 0));
        *refused = refused.saturating_add(edge.take(connections));
        if self.seen.len() > MAX_SEEN {
            return Err(TooMuch::Seen);
        }
        Ok(())
    }

    /// All of them, in order.
    pub fn done(self) -> Vec<Seen> {
        let mut seen: Vec<(Ends, (Edge, u64))> = self.seen.into_iter().collect();
        seen.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        seen.into_iter()
            .map(
                |((.., source_address, destination_address), (mut edge, refused))| {
                    edge.correct(refused);
                    Seen {
                        edge,
                        source_address,
                        destination_address,
                    }
                },
            )
            .collect()
    }
}
