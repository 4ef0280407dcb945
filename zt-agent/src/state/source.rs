// SPDX-License-Identifier: Apache-2.0
//! Where the policy in force comes from, when that is a policy engine, and whether it is still what the engine says.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Why answers of an engine, or the copy of its policy on disk, are refused.
pub const SOURCE_REFUSALS: [&str; 9] = [
    "slow",
    "too_long",
    "not_an_engine",
    "digest",
    "invalid",
    "empty",
    "unusable",
    "disagreement",
    "copy_not_written",
];

/// What is known of the engine that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// Its URL.
    pub url: Arc<str>,
    /// The policy in force is not known to be the engine's: the last good one is in force.
    pub stale: bool,
    /// Since when it is so, or not so; Unix nanoseconds.
    pub since: i64,
    /// When the engine last said that what is in force is its policy; Unix nanoseconds.
    pub confirmed: Option<i64>,
    /// The engine's own revision of what is in force, as it was last told.
    pub revision: Option<u64>,
    /// Why the policy is stale, or why the last answer was refused.
    pub error: Option<Arc<str>>,
    /// Answers and copies that were refused, by cause: those of [`SOURCE_REFUSALS`].
    pub refused: BTreeMap<&'static str, u64>,
    /// Attempts at reaching the engine that failed.
    pub failures: u64,
}

impl SourceStatus {
    /// Nothing is known yet.
    pub fn new(url: &str, now: i64) -> Self {
        Self {
            url: url.into(),
            stale: true,
            since: now,
            confirmed: None,
            revision: None,
            error: None,
            refused: BTreeMap::new(),
            failures: 0,
        }
    }
}
