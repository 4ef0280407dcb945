// SPDX-License-Identifier: Apache-2.0
//! The policy that would allow what was recorded.

use std::collections::BTreeSet;

use super::{Range, Recorded};
use crate::audit::record::Timestamp;
use crate::policy::{self, Counted, Moment, RecommendError, Recommended, Settings, Wishes};

/// A policy that was made of recorded connections.
#[derive(Clone, Debug)]
pub struct Advice {
    /// The policy.
    pub made: Recommended,
    /// Connections that it does not allow, each once, with why.
    pub unsaid: BTreeSet<(String, String)>,
    /// How many different connections it was made for.
    pub flows: usize,
    /// How many all together.
    pub connections: u64,
}

impl Advice {
    /// Why it is none, where nothing that is recorded went through: a policy for that would deny all.
    pub fn nothing(&self, range: &Range) -> Option<String> {
        let recorded = range.recorded.iter();
        let recorded = recorded.fold(0_u64, |sum, recorded| sum.saturating_add(recorded.count()));
        (self.flows == 0).then(|| {
            format!(
                "none of the {recorded} connections that are recorded went through: there is nothing to allow"
            )
        })
    }
}

/// Makes the smallest policy that allows what went through, and with `include_denied` what was refused.
pub fn advise(
    range: &Range,
    wishes: &Wishes,
    include_denied: bool,
    settings: &Settings,
) -> Result<Advice, RecommendError> {
    let wanted: Vec<(&Recorded, u64)> = range
        .recorded
        .iter()
        .map(|recorded| (recorded, recorded.passed(include_denied)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let counted: Vec<Counted> = wanted
        .iter()
        .filter_map(|(recorded, count)| {
            let last = recorded.last_passed(include_denied);
            Some(Counted {
                flow: recorded.flow.clone().ok()?,
                count: *count,
                last_seen: Moment {
                    at: last.0,
                    text: last.to_string(),
                },
            })
        })
        .collect();
    let made = policy::recommend(&counted, wishes, settings)?;
    let known = made.unsaid.iter().map(|(flow, why)| {
        let (source, destination) = (&flow.source, &flow.destination);
        let what = format!("{source} -> {destination} {} {}", flow.protocol.name(), flow.port);
        (what, why.clone())
    });
    let other = wanted.iter().filter_map(|(recorded, count)| {
        let why = recorded.flow.as_ref().err()?;
        let Recorded {
            source,
            destination,
            protocol,
            port,
            ..
        } = recorded;
        let what = format!("{source} -> {destination} {protocol} {port} ({count} connections)");
        Some((what, why.to_string()))
    });
    Ok(Advice {
        unsaid: known.chain(other).collect(),
        flows: wanted.len(),
        connections: wanted
            .iter()
            .fold(0_u64, |sum, (_, count)| sum.saturating_add(*count)),
        made,
    })
}

impl Recorded {
    /// How many connections went through, or shall where those denied are `included`.
    pub const fn passed(&self, included: bool) -> u64 {
        let passed = self.allowed.saturating_add(self.would_deny);
        if included {
            passed.saturating_add(self.denied)
        } else {
            passed
        }
    }

    /// When the last of them was.
    pub fn last_passed(&self, included: bool) -> Timestamp {
        let mut span = self.passed_span();
        if included {
            span = span.with(self.refused_span());
        }
        span.last
    }
}
