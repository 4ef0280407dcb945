// SPDX-License-Identifier: Apache-2.0
//! Changes of policy that are about to be made.
//!
//! Each is noted, on disk, before it is made, and the note goes with its record, in one transaction. So whoever changed policy is
//! known also where the agent ends in between: the next run finds the note.

use std::sync::Arc;

use super::record::Timestamp;

/// A change that somebody asked for, and that is made next.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// Which run of the agent makes it: when that began, Unix nanoseconds.
    pub run: i64,
    /// When it was about to be made.
    pub at: Timestamp,
    /// Who asked for it.
    pub caller: Arc<str>,
    /// The policy's name.
    pub policy: String,
    /// The policy's digest before; `None` where there is none yet.
    pub before: Option<String>,
    /// The policy's digest afterwards; `None` where it is to go.
    pub after: Option<String>,
    /// Digest of all policies before.
    pub from: String,
    /// Digest of all policies afterwards.
    pub to: String,
    /// What that newly allows and denies, as it will be recorded.
    pub diff: serde_json::Value,
}

/// An [`Intent`] that is noted: its number, and what tells it from another one that has the same number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intended {
    /// The number.
    pub row: i64,
    /// [`Intent::run`].
    pub run: i64,
    /// [`Intent::at`].
    pub at: Timestamp,
}
