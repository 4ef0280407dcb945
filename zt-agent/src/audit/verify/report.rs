// SPDX-License-Identifier: Apache-2.0
//! What was found.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Finding;
use crate::audit::record::Timestamp;
use crate::audit::seal::Cause;

/// Problems, and spans, that are told one by one. A trail with more has more than a few entries changed.
pub(super) const MOST: usize = 1000;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong, at most a thousand.
    pub findings: Vec<Finding>,
    /// All that is wrong.
    pub count: u64,
    /// Entries that were looked at.
    pub entries: u64,
    /// Decisions beyond one for each of these: what was joined in their counts.
    pub joined: u64,
    /// Checkpoints whose signature holds.
    pub checkpoints: u64,
    /// Entries that are not there, each stated by a signature that counts: by cause.
    pub stated: BTreeMap<Cause, u64>,
    /// Where they would be, at most a thousand.
    pub spans: Vec<Span>,
    /// Each writer.
    pub writers: Vec<WriterReport>,
    /// What is not wrong, and what whoever checks the trail should know all the same.
    pub remarks: Vec<String>,
}

/// Entries in a row that are stated not to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Whose.
    pub writer: Uuid,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// Why.
    pub cause: Cause,
    /// The first key of the one who signed it.
    pub by: String,
    /// When.
    pub time: Timestamp,
}

/// One writer. `records + lost + pruned + missing` is the number of its last entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterReport {
    /// Which.
    pub writer: Uuid,
    /// The first of the keys that sign for it; `None` where none does.
    pub root: Option<String>,
    /// Up to which entry it is proven.
    pub sealed: u64,
    /// Entries behind that.
    pub behind: u64,
    /// Entries that are there.
    pub records: u64,
    /// Entries that it states to have lost.
    pub lost: u64,
    /// Entries that were removed because of their age, as signed.
    pub pruned: u64,
    /// Entries that are not there, and nothing says why.
    pub missing: u64,
}

impl Report {
    /// Whether nothing is wrong. What was lost and stated is no tampering.
    pub fn is_clean(&self) -> bool {
        self.count == 0
    }

    /// Entries that their writers state to have lost.
    pub fn lost(&self) -> u64 {
        let losses = self.stated.iter().filter(|(cause, _)| cause.is_loss());
        losses.map(|(_, count)| count).sum()
    }

    pub(super) fn found(&mut self, finding: Finding) {
        self.count += 1;
        if self.findings.len() < MOST {
            self.findings.push(finding);
        }
    }

    pub(super) fn span(&mut self, span: Span) {
        *self.stated.entry(span.cause).or_default() += span.last - span.first + 1;
        if self.spans.len() < MOST {
            self.spans.push(span);
        }
    }
}
