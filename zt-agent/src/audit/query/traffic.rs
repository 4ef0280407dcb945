// SPDX-License-Identifier: Apache-2.0
//! Recorded connections, for those who ask another policy about them: the edges of the graph, and where an end has no name
//! of its own, one for each of its addresses.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use zt_common::verdict::Reason;

use super::graph::{Connections, Edge};
use super::{GraphFilter, TooMuch};
use crate::audit::record::Timestamp;

/// Most different connections of an answer.
pub const MAX_SEEN: usize = 1_000_000;
/// Most of an answer over the API: an agent has other things to do, and little memory.
pub const MAX_ANSWERED: usize = 20_000;

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
    /// How many of those denied, and of those that would be, were so because they did not prove who the ends are.
    pub unproven: u64,
    /// When, by what was decided.
    pub spans: Spans,
}

/// From the first to the last of some connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub first: Timestamp,
    /// The last.
    pub last: Timestamp,
}

impl Span {
    /// What holds both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }
}

/// When connections were, by what was decided; `None` where there were none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// Those that policy allowed.
    pub allowed: Option<Span>,
    /// Those that were refused.
    pub denied: Option<Span>,
    /// Those that policy denied and nothing refused.
    pub would_deny: Option<Span>,
}

impl Spans {
    fn take(&mut self, connections: &Connections) {
        let span = Span {
            first: connections.first_seen,
            last: connections.last_seen,
        };
        let of = match (connections.denied, connections.enforced) {
            (true, true) => &mut self.denied,
            _ if connections.corrects => return,
            (false, _) => &mut self.allowed,
            (true, false) => &mut self.would_deny,
        };
        *of = Some(of.map_or(span, |known| known.with(span)));
    }
}

/// Recorded connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Those that policy decided, in order.
    pub seen: Vec<Seen>,
    /// How many were decided for another reason than policy, by that reason.
    pub left_out: BTreeMap<String, u64>,
}

/// Connections that a store counted together.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Between whom, and how many.
    pub connections: Connections,
    /// Why it was decided so.
    pub reason: String,
    /// As in [`Seen`].
    pub source_address: Option<IpAddr>,
    /// As in [`Seen`].
    pub destination_address: Option<IpAddr>,
}

/// [`is_by_address`] in SQL, of a column.
macro_rules! by_address {
    ($name:literal) => {
        concat!(
            "(",
            $name,
            " IN ('world', 'unknown') OR ",
            $name,
            " LIKE 'cidr:%')"
        )
    };
}
pub(in crate::audit) use by_address;

/// Whether a party of that name is whoever has an address in some network: another policy may know it by another name.
pub fn is_by_address(name: &str) -> bool {
    matches!(name, "world" | "unknown") || name.starts_with("cidr:")
}

/// Whether a decision for that reason follows from policy, the two parties, and whether they prove who they are.
pub fn is_by_policy(reason: &str) -> bool {
    let reasons = [
        Reason::Rule,
        Reason::DenyRule,
        Reason::NoRule,
        Reason::DefaultAllow,
        Reason::UnknownSource,
        Reason::UnknownDestination,
        Reason::NoPolicy,
        Reason::ProofRequired,
    ];
    reasons.iter().any(|of| of.name() == reason)
}

type Ends = (Arc<str>, Arc<str>, u8, u16, Option<IpAddr>, Option<IpAddr>);

/// Adds connections up, in any order.
#[derive(Debug)]
pub struct AddingSeen<'f> {
    filter: &'f GraphFilter,
    most: usize,
    seen: HashMap<Ends, Sums>,
    left_out: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Sums {
    edge: Edge,
    /// The connections that correct others: they count when all others have.
    refused: u64,
    unproven: u64,
    spans: Spans,
}

impl<'f> AddingSeen<'f> {
    /// Nothing yet of what the filter asks for, which are at most so many.
    pub fn new(filter: &'f GraphFilter, most: usize) -> Self {
        Self {
            filter,
            most,
            seen: HashMap::new(),
            left_out: BTreeMap::new(),
        }
    }

    /// Counts these, as far as the filter asks for them.
    pub fn take(&mut self, counted: &Counted) -> Result<(), TooMuch> {
        let connections = &counted.connections;
        let (source, destination) = (&connections.source, &connections.destination);
        if !self.filter.takes(source, destination) {
            return Ok(());
        }
        if !is_by_policy(&counted.reason) {
            let sum = self.left_out.entry(counted.reason.clone()).or_default();
            *sum = sum.saturating_add(connections.count);
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
        let sums = self.seen.entry(ends).or_insert_with(|| Sums {
            edge: Edge::of(connections),
            refused: 0,
            unproven: 0,
            spans: Spans::default(),
        });
        let refused = sums.edge.take(connections);
        sums.refused = sums.refused.saturating_add(refused);
        sums.spans.take(connections);
        let counts = !connections.corrects || connections.enforced;
        if connections.denied && counts && counted.reason == Reason::ProofRequired.name() {
            sums.unproven = sums.unproven.saturating_add(connections.count);
        }
        if self.seen.len() > self.most {
            return Err(TooMuch::Seen(self.most));
        }
        Ok(())
    }

    /// All of them, in order.
    pub fn done(self) -> Traffic {
        let mut seen: Vec<(Ends, Sums)> = self.seen.into_iter().collect();
        seen.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let seen = seen
            .into_iter()
            .map(|((.., source_address, destination_address), mut sums)| {
                sums.edge.correct(sums.refused);
                Seen {
                    edge: sums.edge,
                    source_address,
                    destination_address,
                    unproven: sums.unproven,
                    spans: sums.spans,
                }
            })
            .collect();
        Traffic {
            seen,
            left_out: self.left_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(reason: &str, denied: bool, count: u64, times: (i64, i64)) -> Counted {
        Counted {
            connections: Connections {
                source: "spiffe://hanzo.ai/a".into(),
                destination: "spiffe://hanzo.ai/b".into(),
                protocol: 6,
                port: 80,
                corrects: false,
                denied,
                enforced: true,
                count,
                first_seen: Timestamp(times.0),
                last_seen: Timestamp(times.1),
            },
            reason: reason.to_owned(),
            source_address: None,
            destination_address: None,
        }
    }

    #[test]
    fn each_verdict_has_its_times_and_what_policy_did_not_decide_is_counted_apart() {
        let all = GraphFilter::default();
        let mut adding = AddingSeen::new(&all, MAX_SEEN);
        for one in [
            counted("rule", false, 1, (1, 1)),
            counted("no_rule", true, 500, (2, 900)),
            counted("proof_required", true, 3, (950, 950)),
            counted("tag_invalid", true, 7, (999, 999)),
        ] {
            assert_eq!(adding.take(&one), Ok(()));
        }
        let found = adding.done();
        assert_eq!(found.left_out, BTreeMap::from([("tag_invalid".to_owned(), 7)]));
        let [seen] = found.seen.as_slice() else {
            panic!("one edge: {:?}", found.seen)
        };
        assert_eq!((seen.edge.allowed, seen.edge.denied, seen.unproven), (1, 503, 3));
        let span = |first, last| {
            Some(Span {
                first: Timestamp(first),
                last: Timestamp(last),
            })
        };
        assert_eq!(
            (seen.spans.allowed, seen.spans.denied),
            (span(1, 1), span(2, 950))
        );
        assert_eq!(seen.spans.would_deny, None);
    }
}
