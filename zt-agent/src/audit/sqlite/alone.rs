// SPDX-License-Identifier: Apache-2.0
//! One process at a time records into a file: so what else has changed there, no agent has. `flock(2)` on a file beside it,
//! which stays: removing it would let two hold it. On the database itself a lock would be lost with those that `SQLite`
//! takes, whenever another descriptor of it is closed.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::StoreError;

/// How long an agent that ends may take to let go: it stores and ships what it has.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How often one looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The right to record into a file, until it is dropped.
#[derive(Debug)]
pub(super) struct Alone {
    _lock: File,
}

/// Waits until nobody else records into a file; `None` where its file system knows no locks.
pub(super) async fn wait(database: &Path, patience: Duration) -> Result<Option<Alone>, StoreError> {
    let path = beside(database);
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let lock = lock.map_err(|source| StoreError::Create {
        path: path.clone(),
        source,
    })?;
    let begun = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(Some(Alone { _lock: lock })),
            Err(TryLockError::Error(error)) => {
                tracing::warn!(%error, path = %path.display(), "cannot see to it that one process at a time records into the audit trail: changes of what is not signed yet are not noticed");
                return Ok(None);
            }
            Err(TryLockError::WouldBlock) if begun.elapsed() >= patience => {
                return Err(StoreError::Taken {
                    path: database.to_owned(),
                    lock: path,
                });
            }
            Err(TryLockError::WouldBlock) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// The file that is locked.
fn beside(database: &Path) -> PathBuf {
    let mut lock = database.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_records_and_the_next_waits_for_its_end() {
        let directory = tempfile::tempdir().expect("directory");
        let database = directory.path().join("audit.db");
        let first = wait(&database, Duration::ZERO).await.expect("nobody has it");
        assert!(first.is_some());
        let error = wait(&database, Duration::from_millis(50))
            .await
            .expect_err("taken");
        assert!(error.to_string().contains("audit.db.lock"), "{error}");
        let ending = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(first);
        });
        let begun = Instant::now();
        let second = wait(&database, PATIENCE).await.expect("the first has ended");
        assert!(second.is_some() && begun.elapsed() >= Duration::from_millis(50));
        ending.await.expect("ends");
        let mode = std::os::unix::fs::MetadataExt::mode(&beside(&database).metadata().expect("exists"));
        assert_eq!(mode & 0o777, 0o600);
    }
}
