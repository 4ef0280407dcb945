// SPDX-License-Identifier: Apache-2.0
//! Who is denied whom most often. All decisions count, those that are not shown too.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt::Write as _;

use super::filter::{Filter, Filtered};
use super::parsed::{Parsed, Verdict};

/// Most edges that are told apart; what is denied on others is counted together.
pub(super) const MAX_EDGES: usize = 10_000;

/// The edges with denials since the view began, or was cleared.
#[derive(Debug, Default)]
pub(super) struct Edges {
    /// By source, destination, port and protocol, with a zero byte between them.
    known: HashMap<String, Edge>,
    /// Reused for each look.
    key: String,
    /// Denials of edges that there was no room for.
    pub(super) others: u64,
    /// Records that did not come: nobody knows what of them was denied.
    pub(super) missed: u64,
}

/// One edge. Its names are as they came.
#[derive(Clone, Debug)]
pub(super) struct Edge {
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) port: u16,
    pub(super) protocol: String,
    /// Refused.
    pub(super) denied: u64,
    /// Only observed.
    pub(super) observed: u64,
    /// Time of day of the last.
    pub(super) last: String,
    /// Of the first.
    rule: Option<String>,
    reason: String,
}

impl Edge {
    pub(super) const fn total(&self) -> u64 {
        self.denied.saturating_add(self.observed)
    }
}

impl Edges {
    /// Counts a record, if it is a denial.
    pub(super) fn take(&mut self, record: &Parsed<'_>) {
        if !matches!(record.verdict(), Verdict::Denied | Verdict::Observed) {
            return;
        }
        self.key.clear();
        // Writing to a String cannot fail.
        let _ = write!(
            self.key,
            "{}\0{}\0{}/{}",
            record.source(),
            record.destination(),
            record.port(),
            record.protocol()
        );
        if let Some(edge) = self.known.get_mut(self.key.as_str()) {
            edge.count(record);
        } else if self.known.len() >= MAX_EDGES {
            self.others = self.others.saturating_add(record.weight());
        } else {
            let mut edge = Edge::of(record);
            edge.count(record);
            self.known.insert(self.key.clone(), edge);
        }
    }

    /// Those that the filter takes, the most often denied first, at most `most`; and how many there are.
    pub(super) fn top(&self, filter: &Filter, most: usize) -> (Vec<&Edge>, usize) {
        let mut taken: Vec<&Edge> = self.known.values().filter(|edge| filter.fits(*edge)).collect();
        let all = taken.len();
        if all > most && most > 0 {
            taken.select_nth_unstable_by(most - 1, |one, other| one.order(other));
        }
        taken.truncate(most);
        taken.sort_unstable_by(|one, other| one.order(other));
        (taken, all)
    }

    /// Whether nothing has been denied.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.known.clear();
        (self.others, self.missed) = (0, 0);
    }
}

impl Edge {
    fn of(record: &Parsed<'_>) -> Self {
        Self {
            source: record.source().to_owned(),
            destination: record.destination().to_owned(),
            port: record.port(),
            protocol: record.protocol().to_owned(),
            denied: 0,
            observed: 0,
            last: String::new(),
            rule: record.rule().map(str::to_owned),
            reason: record.reason().to_owned(),
        }
    }

    /// Counts a denial.
    fn count(&mut self, record: &Parsed<'_>) {
        let count = if record.verdict() == Verdict::Denied {
            &mut self.denied
        } else {
            &mut self.observed
        };
        *count = count.saturating_add(record.weight());
        record.time().clone_into(&mut self.last);
    }

    /// The most often denied first; of those that are so equally often, by name.
    fn order(&self, other: &Self) -> Ordering {
        let by_count = other.total().cmp(&self.total());
        by_count.then_with(|| self.name().cmp(&other.name()))
    }

    fn name(&self) -> (&str, &str, u16, &str) {
        (&self.source, &self.destination, self.port, &self.protocol)
    }

    /// What one types to see its decisions alone.
    pub(super) fn as_filter(&self) -> String {
        format!(
            "from:={} to:={} port:{}/{}",
            self.source, self.destination, self.port, self.protocol
        )
    }
}

impl Filtered for Edge {
    fn source(&self) -> &str {
        &self.source
    }

    fn destination(&self) -> &str {
        &self.destination
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn protocol(&self) -> &str {
        &self.protocol
    }

    fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn verdict_name(&self) -> &str {
        if self.denied > 0 {
            Verdict::Denied.name()
        } else {
            Verdict::Observed.name()
        }
    }

    /// An edge is at many places, and does not know them.
    fn is_at(&self, _text: &str) -> bool {
        false
    }
}
