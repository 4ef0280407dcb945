// SPDX-License-Identifier: Apache-2.0
//! What went through and a policy denies: what enforcing it would refuse.

use super::{Range, Recorded};
use crate::policy::{AllowTable, Outcome};

/// Connections that went through.
#[derive(Clone, Debug)]
pub struct WouldDeny<'r> {
    /// Between whom.
    pub recorded: &'r Recorded,
    /// The rule that denies, if one does.
    pub rule: Option<String>,
    /// Why.
    pub reason: &'static str,
}

impl WouldDeny<'_> {
    /// Whether another table denies it, too.
    pub fn is_denied_by(&self, table: &AllowTable) -> bool {
        self.recorded.outcome(table) == Ok(Outcome::Deny)
    }
}

/// What of a range a table denies, the most frequent first.
pub fn would_deny<'r>(range: &'r Range, table: &AllowTable) -> Vec<WouldDeny<'r>> {
    let mut denied: Vec<WouldDeny<'r>> = range
        .recorded
        .iter()
        .filter(|recorded| recorded.passed(false) > 0 && !recorded.falls_back())
        .filter(|recorded| recorded.outcome(table) == Ok(Outcome::Deny))
        .filter_map(|recorded| {
            let decision = recorded.judge(table).ok()?;
            Some(WouldDeny {
                recorded,
                rule: decision.rule.as_ref().map(ToString::to_string),
                reason: decision.reason.name(),
            })
        })
        .collect();
    // Those of the same count stay in their order.
    denied.sort_by_key(|one| std::cmp::Reverse(one.recorded.passed(false)));
    denied
}
