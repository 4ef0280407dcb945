// SPDX-License-Identifier: Apache-2.0
//! What of the write-ahead log the disk has: the kernel is asked which of its pages are still to be written.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::time::Instant;

use super::*;
use crate::audit::archive::Archive;
use crate::audit::spool::{Spool, WhenFull};

const PATIENCE: Duration = Duration::from_secs(30);

/// Pages of the log that are in memory alone, or on their way to the disk.
#[expect(unsafe_code, reason = "no crate of ours wraps cachestat")]
fn unwritten(database: &Path) -> u64 {
    const CACHESTAT: libc::c_long = 451;
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    let file = File::open(log).expect("a log");
    // Offset and length: all of it. Pages in memory, dirty ones, those being written, and what was evicted.
    let (range, mut counts) = ([0_u64; 2], [0_u64; 5]);
    // SAFETY: both have the size that the kernel reads and writes.
    let result = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            counts.as_mut_ptr(),
            0_u32,
        )
    };
    assert_eq!(result, 0, "cachestat: {}", io::Error::last_os_error());
    assert!(counts[0] > 0, "the log has no page in memory");
    counts[1] + counts[2]
}

/// On a disk: what is in memory alone for ever is never written.
async fn store(sync: Durability) -> (TempDir, Store) {
    let directory = tempfile::tempdir_in("/var/tmp").expect("directory");
    let store = Store::open(Settings {
        sync,
        keys: Some(directory.path().join("keys")),
        ..settings(&directory)
    });
    let store = store.await.expect("opens");
    (directory, store)
}

#[tokio::test]
async fn what_is_kept_is_on_disk_within_a_second() {
    let (_directory, store) = store(Durability::Second).await;
    let mut dirty = 0;
    for number in 0..20 {
        let record = record_of(&decision(), number);
        store
            .append(&[Entry::Decision(record)], None)
            .await
            .expect("kept");
        dirty += unwritten(store.path());
    }
    assert!(dirty > 0, "every commit waited for the disk");
    let begun = Instant::now();
    while unwritten(store.path()) > 0 {
        assert!(begun.elapsed() < PATIENCE, "never written");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Long before the kernel would have done it by itself.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// Looks that what was kept is on disk when that is said.
async fn says_so(sink: &impl Sink, database: &Path) {
    for number in 0..20 {
        let record = record_of(&decision(), number);
        sink.append(&[Entry::Decision(record)], None).await.expect("kept");
        sink.sync().await.expect("on disk");
        assert_eq!(unwritten(database), 0, "record {number}");
    }
}

#[tokio::test]
async fn what_somebody_waits_for_is_on_disk_when_he_is_told() {
    let (_directory, store) = store(Durability::Second).await;
    let database = store.path().to_owned();
    says_so(&store, &database).await;
    says_so(&Archive::from(store), &database).await;
    let directory = tempfile::tempdir_in("/var/tmp").expect("directory");
    let spool = Spool::open(settings(&directory), WhenFull::Oldest)
        .await
        .expect("opens");
    says_so(&spool, spool.store().path()).await;
}

#[tokio::test]
async fn each_batch_is_on_disk_before_it_is_answered_where_that_is_asked_for() {
    let (_directory, store) = store(Durability::Batch).await;
    for number in 0..20 {
        let record = record_of(&decision(), number);
        store
            .append(&[Entry::Decision(record)], None)
            .await
            .expect("kept");
        assert_eq!(unwritten(store.path()), 0, "record {number}");
        if number == 10 {
            // What is signed is always synced: afterwards it is as before.
            store.seal().await.expect("sealed");
        }
    }
}
