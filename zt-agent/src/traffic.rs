// SPDX-License-Identifier: Apache-2.0
//! Recorded connections, and what policies make of them: for the commands and for the API alike. No database, no files.

mod advice;
mod enforcing;
mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use self::advice::{Advice, advise};
pub use self::enforcing::{WouldDeny, would_deny};
pub use self::replay::{Change, Replayed, Row, Times};
use crate::audit::query::{GraphFilter, Seen, Span, Spans, Traffic};
use crate::policy::{SeenFlow, Undecided};
use crate::spiffe_id::SpiffeId;

/// A connection that was seen, and how often.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Between whom; or why no policy can be asked about it.
    pub flow: Result<SeenFlow, Undecided>,
    /// Its source, as the record calls it.
    pub source: String,
    /// Its destination, as the record calls it.
    pub destination: String,
    /// Where the end was that is known by its address alone.
    pub address: Option<IpAddr>,
    /// Its protocol.
    pub protocol: String,
    /// Its target port.
    pub port: u16,
    /// How often policy allowed it.
    pub allowed: u64,
    /// How often it was refused.
    pub denied: u64,
    /// How often policy denied it and nothing refused it.
    pub would_deny: u64,
    /// How many of those denied, and of those that would be, were so for want of proof.
    pub unproven: u64,
    /// When, by what was decided.
    pub spans: Spans,
    /// When, all together.
    pub span: Span,
}

/// Connections of a range.
#[derive(Debug)]
pub struct Range {
    /// Each different one.
    pub recorded: Vec<Recorded>,
    /// How many were decided for another reason than policy, by that reason.
    pub left_out: BTreeMap<String, u64>,
}

impl Recorded {
    /// How many connections it stands for.
    pub const fn count(&self) -> u64 {
        self.allowed
            .saturating_add(self.denied)
            .saturating_add(self.would_deny)
    }

    /// When those were that policy denied, refused or not.
    pub fn refused_span(&self) -> Span {
        self.span_of([self.spans.denied, self.spans.would_deny])
    }

    /// When those were that went through.
    pub fn passed_span(&self) -> Span {
        self.span_of([self.spans.allowed, self.spans.would_deny])
    }

    /// When those were that policy allowed.
    pub fn allowed_span(&self) -> Span {
        self.span_of([self.spans.allowed, None])
    }

    fn span_of(&self, spans: [Option<Span>; 2]) -> Span {
        let known = spans.into_iter().flatten().reduce(Span::with);
        known.unwrap_or(self.span)
    }
}

impl From<Seen> for Recorded {
    fn from(seen: Seen) -> Self {
        let Seen {
            edge,
            source_address,
            destination_address,
            unproven,
            spans,
        } = seen;
        Self {
            flow: SeenFlow::new(
                (&edge.source, source_address),
                (&edge.destination, destination_address),
                edge.port,
                edge.protocol.0,
            ),
            source: edge.source.to_string(),
            destination: edge.destination.to_string(),
            address: destination_address.or(source_address),
            protocol: edge.protocol.to_string(),
            port: edge.port,
            allowed: edge.allowed,
            denied: edge.denied,
            would_deny: edge.would_deny,
            unproven,
            spans,
            span: Span {
                first: edge.first_seen,
                last: edge.last_seen,
            },
        }
    }
}

impl From<Traffic> for Range {
    fn from(traffic: Traffic) -> Self {
        Self {
            recorded: traffic.seen.into_iter().map(Recorded::from).collect(),
            left_out: traffic.left_out,
        }
    }
}

impl Range {
    /// Whether policy decided about none of it.
    pub fn is_empty(&self) -> bool {
        self.recorded.iter().all(|recorded| recorded.count() == 0)
    }

    /// Why nothing can be judged or recommended by what a question found, if that is so.
    pub fn nothing(&self, asked: &GraphFilter) -> Option<String> {
        if !self.is_empty() {
            return None;
        }
        let namespace = asked.namespace.as_ref();
        let namespace = namespace.map(|name| format!(" of namespace {name}"));
        let since = asked.since.map(|time| format!(" from {time}"));
        let until = asked.until.map(|time| format!(" until {time}"));
        let what: String = [namespace, since, until].into_iter().flatten().collect();
        let left: u64 = self.left_out.values().sum();
        let more = if left == 0 {
            String::new()
        } else {
            format!(", but for {left} that policy did not decide")
        };
        Some(format!(
            "no connections{what} are recorded{more}: there is nothing to judge by"
        ))
    }

    /// Those whom patterns must stand for in a table that judges them.
    pub fn workloads(&self) -> BTreeSet<SpiffeId> {
        let flows = self
            .recorded
            .iter()
            .filter_map(|recorded| recorded.flow.as_ref().ok());
        flows.flat_map(SeenFlow::workloads).cloned().collect()
    }
}
