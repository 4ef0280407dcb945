// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a spool.

use crate::audit::sqlite::StoreError;
use crate::audit::store::SinkError;

/// Why the spool did not keep a batch.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no room, and the newest records are what is given up.
    #[error(
        "the spool is full (audit.maxDiskBytes) and audit.whenFull is newest: {records} records are lost and counted"
    )]
    Full {
        /// How many.
        records: usize,
    },
}

impl SinkError for SpoolError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Full { .. } => false,
        }
    }
}
