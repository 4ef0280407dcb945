// SPDX-License-Identifier: Apache-2.0
//! What a policy would make of recorded connections, compared with what policy said then.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Range, Recorded};
use crate::audit::query::{Addresses, Span};
use crate::audit::record::Timestamp;
use crate::policy::{AllowTable, Outcome};

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// What was allowed is denied.
    NewlyDenied,
    /// What was allowed must prove who it is.
    NeedsProof,
    /// What was denied is allowed.
    NewlyAllowed,
    /// It cannot be said from what is recorded.
    Undecided,
}

/// What rows are one line for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Row {
    /// What becomes of it.
    pub change: Change,
    /// Who.
    pub source: String,
    /// Whom.
    pub destination: String,
    /// At which port.
    pub port: u16,
    /// By which protocol.
    pub protocol: String,
    /// The candidate's rule.
    pub rule: Option<String>,
    /// Why.
    pub reason: String,
}

/// How often, when, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// How many connections.
    pub connections: u64,
    /// The first.
    pub first_seen: Timestamp,
    /// The last.
    pub last_seen: Timestamp,
    /// Of ends without a name of their own.
    pub addresses: Addresses,
}

/// What a replay finds.
#[derive(Debug, Default)]
pub struct Replayed {
    /// What changes, each once.
    pub rows: BTreeMap<Row, Times>,
    /// Connections that were looked at.
    pub connections: u64,
    /// How many different: addresses that the table knows by one name are one.
    pub flows: u64,
}

impl Replayed {
    /// Judges all of a range.
    pub fn of(range: &Range, table: &AllowTable) -> Self {
        let mut replayed = Self::default();
        for recorded in &range.recorded {
            replayed.take(recorded, table);
        }
        replayed
    }

    fn take(&mut self, recorded: &Recorded, table: &AllowTable) {
        let refused = recorded.denied.saturating_add(recorded.would_deny);
        let allowed_span = recorded.allowed_span();
        let refused_span = recorded.refused_span();
        self.connections = self.connections.saturating_add(recorded.count());
        self.flows += u64::from(recorded.count() > 0);
        let others = refused.saturating_sub(recorded.unproven);
        let is_as_it_was = |outcome| match outcome {
            Outcome::Deny => recorded.allowed == 0,
            Outcome::Allow => refused == 0,
            Outcome::AllowWithProof => recorded.allowed == 0 && others == 0,
        };
        // Most are.
        if recorded.outcome(table).is_ok_and(is_as_it_was) {
            return;
        }
        match recorded.judge(table) {
            // No policy could say anything else.
            Err(why) if why.is_beyond_policy() => {}
            Err(why) => self.add(
                recorded,
                Change::Undecided,
                (recorded.count(), recorded.span),
                None,
                &why.to_string(),
            ),
            Ok(decision) => {
                let mut decided = |change, count, span| {
                    let rule = decision.rule.as_deref();
                    self.add(recorded, change, (count, span), rule, decision.reason.name());
                };
                match Outcome::from(&decision) {
                    Outcome::Deny => decided(Change::NewlyDenied, recorded.allowed, allowed_span),
                    Outcome::Allow => decided(Change::NewlyAllowed, refused, refused_span),
                    Outcome::AllowWithProof => {
                        decided(Change::NeedsProof, recorded.allowed, allowed_span);
                        // What proved nothing then is no better off with another rule that asks for proof.
                        decided(Change::NewlyAllowed, others, refused_span);
                    }
                }
            }
        }
    }

    fn add(
        &mut self,
        recorded: &Recorded,
        change: Change,
        (count, span): (u64, Span),
        rule: Option<&str>,
        reason: &str,
    ) {
        if count == 0 {
            return;
        }
        let row = Row {
            change,
            source: recorded.source.to_string(),
            destination: recorded.destination.to_string(),
            port: recorded.port,
            protocol: recorded.protocol.to_string(),
            rule: rule.map(str::to_owned),
            reason: reason.to_owned(),
        };
        let times = self.rows.entry(row).or_insert_with(|| Times {
            connections: 0,
            first_seen: span.first,
            last_seen: span.last,
            addresses: Addresses::default(),
        });
        times.connections = times.connections.saturating_add(count);
        times.first_seen = times.first_seen.min(span.first);
        times.last_seen = times.last_seen.max(span.last);
        times.addresses.join(&recorded.addresses);
    }

    /// Different connections and connections of one kind.
    pub fn sum(&self, change: Change) -> (usize, u64) {
        let of = self.rows.iter().filter(|(row, _)| row.change == change);
        of.fold((0, 0), |(rows, sum), (_, times)| {
            (rows + 1, sum.saturating_add(times.connections))
        })
    }
}
