// SPDX-License-Identifier: Apache-2.0
//! What the pipeline needs of a place to keep records.

use std::future::Future;

use super::names::Named;
use super::record::AuditRecord;

/// Keeps records. A batch is kept as a whole or not at all.
pub trait Sink: Send + Sync + 'static {
    /// Why a batch was not kept.
    type Error: SinkError;

    /// Keeps a batch. When the future is dropped before it is done, nothing of the batch is kept.
    fn append(&self, records: &[AuditRecord]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Keeps names of numbers, so that a later run of the agent can still tell what they stood for.
    fn remember(&self, names: &[Named]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Enforces the limits on space and age; a short piece of work at a time. Says how many records went.
    fn prune(&self) -> impl Future<Output = Result<Pruned, Self::Error>> + Send;
}

/// An error of a [`Sink`].
pub trait SinkError: std::error::Error + Send + Sync + 'static {
    /// Whether the same batch may be taken later: the disk is full, the database is locked or away.
    fn is_transient(&self) -> bool;
}

/// Records that made room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Because of the limit on space.
    pub for_space: u64,
    /// Because of their age.
    pub for_age: u64,
    /// There is more to do, at once.
    pub more: bool,
}
