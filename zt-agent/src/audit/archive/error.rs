// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with the trail, wherever it is kept.

use crate::audit::postgres::PgError;
use crate::audit::seal::KeyError;
use crate::audit::spool::SpoolError;
use crate::audit::sqlite::StoreError;
use crate::audit::store::SinkError;

/// An error of the [`Archive`](super::Archive).
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Of the local file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Of the spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Of the server.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// Of the keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

impl ArchiveError {
    /// Whether a question asks for too much.
    pub const fn is_too_much(&self) -> bool {
        matches!(
            self,
            Self::Postgres(PgError::TooMuch(_)) | Self::Store(StoreError::TooMuch(_))
        )
    }

    /// Whether a question took longer than the server gives it.
    pub const fn is_slow(&self) -> bool {
        matches!(self, Self::Postgres(PgError::Slow { .. }))
    }

    /// Whether the login may not do this, whatever the server has.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Postgres(error) if error.is_forbidden())
    }

    /// Whether the DSN is at fault.
    pub const fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Postgres(PgError::Dsn { .. }) | Self::Store(StoreError::Dsn { .. })
        )
    }
}

impl SinkError for ArchiveError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Spool(error) => error.is_transient(),
            Self::Postgres(error) => !error.is_of_the_batch(),
            Self::Keys(_) => true,
        }
    }
}
