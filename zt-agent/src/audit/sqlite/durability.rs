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
    /// Within a second, and before anybody is answered over the API: a crash of the machine takes of what the kernel decided
    /// what came last. Nobody but who is answered waits for the disk.
    #[default]
    Second,
    /// When it is committed. Whoever commits waits for the disk.
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

/// Has the disk take what was written to the write-ahead log: when somebody waits for it, and every second in which there was
/// something.
#[derive(Debug)]
pub(super) struct Syncer {
    log: Arc<Log>,
    task: JoinHandle<()>,
}

/// The write-ahead log of a database.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    /// Something was committed since the disk was asked last.
    written: AtomicBool,
    /// The disk has refused something of it.
    broken: AtomicBool,
}

impl Syncer {
    /// Begins, for the log of a database.
    pub(super) fn start(database: &Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push("-wal");
        let log = Arc::new(Log {
            path: PathBuf::from(path),
            written: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        });
        let seen = Arc::clone(&log);
        let task = tokio::spawn(async move {
            let mut round = tokio::time::interval(WAIT);
            round.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut failing = false;
            loop {
                round.tick().await;
                if !seen.written.load(Ordering::Relaxed) {
                    continue;
                }
                // The log goes when the database is closed, and then everything is in the database.
                let synced = match seen.sync().await {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    synced => synced,
                };
                if let Some(error) = synced.as_ref().err().filter(|_| !failing) {
                    tracing::error!(%error, "the disk does not take the audit trail's log: records of the last seconds would not survive a crash of the machine");
                }
                failing = synced.is_err();
            }
        });
        Self { log, task }
    }

    /// Something was committed.
    pub(super) fn written(&self) {
        self.log.written.store(true, Ordering::Relaxed);
    }

    /// Has the disk take what was committed before this was called.
    pub(super) async fn sync(&self) -> io::Result<()> {
        self.log.sync().await
    }

    /// Whether the disk has refused something: the system says so once, and takes what it could not write for written. Only
    /// what is written back to the database is on disk from then on.
    pub(super) fn is_broken(&self) -> bool {
        self.log.broken.load(Ordering::Relaxed)
    }

    /// All of it was written back.
    pub(super) fn mended(&self) {
        self.log.broken.store(false, Ordering::Relaxed);
    }
}

impl Log {
    async fn sync(&self) -> io::Result<()> {
        // First: what is committed meanwhile is for the next time.
        self.written.store(false, Ordering::Relaxed);
        let path = self.path.clone();
        let synced = tokio::task::spawn_blocking(move || sync(&path)).await;
        let synced = synced.unwrap_or_else(|error| Err(io::Error::other(error)));
        if let Err(error) = &synced {
            self.written.store(true, Ordering::Relaxed);
            if error.kind() != io::ErrorKind::NotFound {
                self.broken.store(true, Ordering::Relaxed);
            }
        }
        synced
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `SQLite` has no lock on the log itself, which closing it here would take away.
fn sync(log: &Path) -> io::Result<()> {
    File::open(log)?.sync_data()
}
