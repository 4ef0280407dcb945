// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with the store.

use std::path::PathBuf;

use crate::audit::seal::KeyError;
use crate::audit::store::SinkError;

/// An error of the `SQLite` store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The DSN is not one of `SQLite`. The DSN itself is not shown: it may hold a password.
    #[error("audit.dsn: {problem}; write sqlite:///var/lib/zt/audit.db")]
    Dsn {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A directory or the file could not be made.
    #[error("cannot create {}: {source}", path.display())]
    Create {
        /// What was to be made.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file could not be opened as a database.
    #[error("cannot open the audit store {}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: sqlx::Error,
    },
    /// The file is the database of something else.
    #[error("{} is a database, but not an audit store: nothing in it was changed; name another file in audit.dsn", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a later release.
    #[error("the audit store {} has layout {found}, this agent knows up to {known}: run the newer agent, or name another file in audit.dsn", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: i64,
        /// The last one known.
        known: i64,
    },
    /// The file was written by an earlier release, and is only to be read.
    #[error("the audit store {} has layout {found}, this program reads {known}: start this release's agent on it once", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: i64,
        /// The one needed.
        known: i64,
    },
    /// The keys of the checkpoints cannot be used.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The chain does not go on from what was signed last.
    #[error(
        "{} does not go on from entry {seq}, up to which it was signed at {time}: {how}. What was signed then is kept in {}, and `zt-agent audit verify` names what is wrong; what comes from now on is signed again in a minute",
        path.display(), kept.display()
    )]
    Broken {
        /// The file.
        path: PathBuf,
        /// The entry that was signed last.
        seq: u64,
        /// When.
        time: crate::audit::record::Timestamp,
        /// What of it shows.
        how: &'static str,
        /// Where the checkpoint is kept.
        kept: PathBuf,
    },
    /// The file has nothing in it, and had.
    #[error("the audit store {} is empty, and it was not: its content is gone", path.display())]
    Emptied {
        /// The file.
        path: PathBuf,
    },
    /// A damaged file cannot be moved.
    #[error("the audit store {} is damaged and cannot be put aside: {source}", path.display())]
    Aside {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The directory of the file cannot be read.
    #[error("cannot look for damaged files beside {}: {source}", path.display())]
    Beside {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The disk does not take what was committed.
    #[error("the disk does not take the log of the audit store {}: {source}", path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another process records into the file.
    #[error("another process records into the audit store {} (it holds {}): end it, or give each agent and each engine a file of its own in audit.dsn or audit.spool", path.display(), lock.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// What is locked.
        lock: PathBuf,
    },
    /// The tables could not be made.
    #[error("cannot bring the audit store {} to layout {version}: {source}", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// The layout.
        version: i64,
        /// Why not.
        source: sqlx::Error,
    },
    /// A statement failed.
    #[error("audit store: {0}")]
    Database(#[from] sqlx::Error),
    /// The answer would be too large.
    #[error(transparent)]
    TooMuch(#[from] crate::audit::query::TooMuch),
    /// A record cannot be read back.
    #[error("record {row} of the audit store is damaged: {column} is {found}")]
    Damaged {
        /// Its row.
        row: i64,
        /// The column.
        column: &'static str,
        /// What it holds.
        found: String,
    },
}

/// Primary result codes of `SQLite` that say that the *batch* is at fault, and would be again.
const OF_THE_BATCH: [i64; 4] = [
    18, /* TOOBIG */
    19, /* CONSTRAINT */
    20, /* MISMATCH */
    25, /* RANGE */
];

/// Those that say that the file is no database, or not a whole one: no other attempt fares better.
const OF_THE_FILE: [i64; 2] = [11 /* CORRUPT */, 26 /* NOTADB */];

impl StoreError {
    /// Whether the file is damaged.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Emptied { .. } => true,
            Self::Open { source, .. } | Self::Migrate { source, .. } | Self::Database(source) => {
                primary_code(source).is_some_and(|code| OF_THE_FILE.contains(&code))
            }
            _ => false,
        }
    }
}

/// The primary code of what `SQLite` says. Extended codes hold it in their low byte.
fn primary_code(error: &sqlx::Error) -> Option<i64> {
    let code = error.as_database_error()?.code()?.parse::<i64>().ok()?;
    Some(code & 0xff)
}

impl SinkError for StoreError {
    fn is_transient(&self) -> bool {
        let Self::Database(error) = self else {
            return true;
        };
        primary_code(error).is_none_or(|code| !OF_THE_BATCH.contains(&code))
    }
}
