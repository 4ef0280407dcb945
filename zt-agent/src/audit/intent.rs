// SPDX-License-Identifier: Apache-2.0
//! Changes of policy that are about to be made.
//!
//! Each is noted, on disk, before it is made, and the note goes with its record, in one transaction. So whoever changed policy is
//! known also where the agent ends in between: the next run finds the note. The note's id is that of the record, so that none
//! has two.

use std::sync::Arc;

use uuid::Uuid;

use super::record::Timestamp;

/// A change that somebody asked for, and that is made next.
#[derive(Clone, Debug, PartialEq)]
pub struct Intent {
    /// Which change it is: the id of its record, and where objects keep policies the mark that the one has which it wrote.
    pub id: Uuid,
    /// How far it is known to have come.
    pub progress: Progress,
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

/// How far a change is known to have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// It was about to be made, and nothing has been heard since.
    #[default]
    Begun,
    /// What was to write it failed, and it may be made all the same, now or in a while.
    Doubtful,
    /// Where policy is kept it was taken. It has no record yet.
    Made,
}

impl Progress {
    /// The number that it has in the file.
    pub const fn number(self) -> i64 {
        match self {
            Self::Begun => 0,
            Self::Doubtful => 1,
            Self::Made => 2,
        }
    }

    /// What that number stands for; of one that nobody knows, nothing.
    pub const fn of(number: i64) -> Self {
        match number {
            1 => Self::Doubtful,
            2 => Self::Made,
            _ => Self::Begun,
        }
    }
}
