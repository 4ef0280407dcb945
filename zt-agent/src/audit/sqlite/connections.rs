// SPDX-License-Identifier: Apache-2.0
//! How connections to the file are opened, and which of them are to a file that is not in its place any more.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::LevelFilter;
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Executor as _};

use super::{Durability, select};

/// Questions at a time, and looks of the agent itself. Each holds a connection with its cache.
pub(super) const READERS: u32 = 4;
const HOUSE: u32 = 2;
/// Pages of write-ahead log after which it is written back: 16 MiB.
const CHECKPOINT_PAGES: &str = "4000";
/// A statement that took longer is worth a line to whoever looks for the reason. It has kilobytes of text.
const SLOW: Duration = Duration::from_secs(5);
/// A connection that came about so soon after another file was put in place may have found the one before.
const SETTLED: Duration = Duration::from_secs(1);

/// The files that were put in the place of damaged ones since the start.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    times: AtomicU64,
    at: Mutex<Option<Instant>>,
}

impl Replaced {
    /// How many there were.
    pub(super) fn times(&self) -> u64 {
        self.times.load(Ordering::Acquire)
    }

    /// Another one is in place.
    pub(super) fn note(&self) {
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.times.fetch_add(1, Ordering::Release);
    }

    /// How long ago the last one came; `None` where there was none.
    pub(super) fn age(&self) -> Option<Duration> {
        let at = *self.at.lock().unwrap_or_else(PoisonError::into_inner);
        at.map(|at| at.elapsed())
    }

    /// Whether a connection of that age is one to the file in place.
    fn holds(&self, age: Duration) -> bool {
        self.age().is_none_or(|replaced| age + SETTLED < replaced)
    }
}

/// Connections that only read: for questions, and for what the agent itself looks up.
pub(super) fn pools(path: &Path, replaced: &Arc<Replaced>) -> (SqlitePool, SqlitePool) {
    let pool = |connections| {
        let replaced = Arc::clone(replaced);
        SqlitePoolOptions::new()
            .max_connections(connections)
            .min_connections(0)
            .acquire_timeout(Duration::from_secs(5))
            // A file does not hang up.
            .test_before_acquire(false)
            .before_acquire(move |_, connection| {
                let holds = replaced.holds(connection.age);
                Box::pin(async move { Ok(holds) })
            })
    };
    let readers = pool(READERS)
        .after_connect(|connection, _| {
            Box::pin(async move { connection.execute(select::WANTED).await.map(|_| ()) })
        })
        .connect_lazy_with(reading(path));
    (readers, pool(HOUSE).connect_lazy_with(reading(path)))
}

/// How the one who writes connects.
pub(super) fn writing(path: &Path, sync: Durability) -> SqliteConnectOptions {
    again(path, sync)
        // Lets a lowered limit give space back to the file system; takes effect when the file is new.
        .auto_vacuum(SqliteAutoVacuum::Incremental)
}

/// The same to a file that was written before: nothing is written by it.
pub(super) fn again(path: &Path, sync: Durability) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(match sync {
            Durability::Batch => SqliteSynchronous::Full,
            Durability::Second => SqliteSynchronous::Normal,
        })
        .busy_timeout(Duration::from_secs(5))
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .pragma("journal_size_limit", "33554432")
        .pragma("cache_size", "-4096")
        .pragma("trusted_schema", "OFF")
        .pragma("temp_store", "MEMORY")
        .log_statements(LevelFilter::Trace)
        .log_slow_statements(LevelFilter::Debug, SLOW)
}

/// How those who read connect. What is a property of the file is left to the writer: a connection that may not write
/// cannot set it either.
pub(super) fn reading(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(Duration::from_secs(5))
        .pragma("cache_size", "-4096")
        .pragma("trusted_schema", "OFF")
        .log_statements(LevelFilter::Trace)
        .log_slow_statements(LevelFilter::Debug, SLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_that_are_surely_to_the_file_in_place_are_used_again() {
        let replaced = Replaced::default();
        assert!(replaced.holds(Duration::from_secs(3600)) && replaced.times() == 0);
        replaced.note();
        assert!(!replaced.holds(Duration::from_secs(3600)) && !replaced.holds(Duration::ZERO));
        let past = Instant::now().checked_sub(Duration::from_secs(60));
        *replaced.at.lock().expect("nobody panicked") = past;
        assert!(replaced.holds(Duration::from_secs(50)) && !replaced.holds(Duration::from_secs(70)));
        // Who connected at that moment.
        assert!(!replaced.holds(Duration::from_millis(59_500)));
        assert_eq!(replaced.times(), 1);
    }
}
