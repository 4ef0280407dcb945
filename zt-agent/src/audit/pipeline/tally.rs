// SPDX-License-Identifier: Apache-2.0
//! Who counts what is recorded, at once.

use crate::audit::record::{AuditRecord, Latency};

/// Sees every decision once, when its record is made or when it joins one. The metrics are one.
pub trait Tally: Send + Sync + 'static {
    /// A record was made.
    fn recorded(&self, record: &AuditRecord);

    /// One more decision has joined a record that was made; deciding took this long.
    fn joined(&self, record: &AuditRecord, latency: Latency);
}

/// Tallies nothing.
impl Tally for () {
    fn recorded(&self, _: &AuditRecord) {}

    fn joined(&self, _: &AuditRecord, _: Latency) {}
}
