// SPDX-License-Identifier: Apache-2.0
//! When records are safe from a crash of the machine.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// How long what was committed waits for the disk at most, but for the time that the disk takes.
const WAIT: Duration = Duration::from_secs(1);

/// When what is committed is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Within a second: a crash of the machine takes what came last. Nobody waits for the disk.
    #[default]
    Second,
    /// Before anybody is told that it is kept. Whoever waits for the answer waits for the disk.
    Batch,
}

impl Durability {
    /// The one of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "second" => Some(Self::Second),
            "batch" => Some(Self::Batch),
            _ => None,
        }
    }
}

/// Has the disk take what was written to the write-ahead log, every second in which there was something.
#[derive(Debug)]
pub(super) struct Syncer {
    written: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Syncer {
    /// Begins, for the log of a database.
    pub(super) fn start(database: &Path) -> Self {
        let mut log = database.as_os_str().to_owned();
        log.push("-wal");
        let (log, written) = (PathBuf::from(log), Arc::new(AtomicBool::new(false)));
        let seen = Arc::clone(&written);
        let task = tokio::spawn(async move {
            let mut round = tokio::time::interval(WAIT);
            round.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut failing = false;
            loop {
                round.tick().await;
                if !seen.swap(false, Ordering::Relaxed) {
                    continue;
                }
                let log = log.clone();
                let synced = tokio::task::spawn_blocking(move || sync(&log)).await;
                let error = match synced {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error),
                    Err(error) => Some(io::Error::other(error)),
                };
                if let Some(error) = error.as_ref().filter(|_| !failing) {
                    tracing::error!(%error, "the disk does not take the audit trail's log: records of the last seconds would not survive a crash of the machine");
                }
                failing = error.is_some();
                if failing {
                    seen.store(true, Ordering::Relaxed);
                }
            }
        });
        Self { written, task }
    }

    /// Something was committed.
    pub(super) fn written(&self) {
        self.written.store(true, Ordering::Relaxed);
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The log goes when the database is closed, and then everything is in the database. `SQLite` has no lock on the log
/// itself, which closing it here would take away.
fn sync(log: &Path) -> io::Result<()> {
    match File::open(log) {
        Ok(file) => file.sync_data(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
