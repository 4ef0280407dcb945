// SPDX-License-Identifier: Apache-2.0
//! The account of the pipeline, with stores that work, fail and hang.

mod answers;
mod joined;
mod signed;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::audit::names::Named;
use crate::audit::query::Filter;
use crate::audit::sample::decision;
use crate::audit::sqlite::{self, Store};
use crate::audit::store::{Pruned, RingMark, SinkError};

/// Keeps records in memory, when it is allowed to.
#[derive(Default)]
struct Memory {
    records: Mutex<Vec<Entry>>,
    /// Attempts that shall still fail.
    failing: AtomicUsize,
    refuses: AtomicBool,
    /// Evaluations have their share.
    share_full: AtomicBool,
    hangs: AtomicBool,
    /// How often the disk was asked for what was stored; whether it takes it.
    syncs: AtomicUsize,
    disk_hangs: AtomicBool,
    disk_fails: AtomicBool,
    resumed: tokio::sync::Notify,
    marks: Mutex<Vec<RingMark>>,
}

impl Memory {
    fn resume(&self) {
        self.hangs.store(false, Ordering::SeqCst);
        self.disk_hangs.store(false, Ordering::SeqCst);
        self.resumed.notify_one();
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the test's store fails")]
struct Broken {
    transient: bool,
}

impl SinkError for Broken {
    fn is_transient(&self) -> bool {
        self.transient
    }
}

impl Sink for Memory {
    type Error = Broken;

    async fn append(&self, records: &[Entry], mark: Option<RingMark>) -> Result<(), Broken> {
        while self.hangs.load(Ordering::SeqCst) {
            self.resumed.notified().await;
        }
        if self.refuses.load(Ordering::SeqCst) {
            return Err(Broken { transient: false });
        }
        let one_less = |left: usize| left.checked_sub(1);
        if self
            .failing
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
            .is_ok()
        {
            return Err(Broken { transient: true });
        }
        self.records.lock().expect("lock").extend_from_slice(records);
        self.marks.lock().expect("lock").extend(mark);
        Ok(())
    }

    async fn sync(&self) -> Result<(), Broken> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        while self.disk_hangs.load(Ordering::SeqCst) {
            self.resumed.notified().await;
        }
        if self.disk_fails.load(Ordering::SeqCst) {
            return Err(Broken { transient: true });
        }
        Ok(())
    }

    async fn remember(&self, _: &[Named]) -> Result<(), Broken> {
        Ok(())
    }

    async fn prune(&self) -> Result<Pruned, Broken> {
        Ok(Pruned::default())
    }

    fn takes_evaluations(&self) -> bool {
        !self.share_full.load(Ordering::SeqCst)
    }
}

fn quick() -> Settings {
    Settings {
        linger: Duration::from_millis(1),
        retry: Duration::from_millis(1),
        patience: Duration::from_millis(20),
        // What waits for that waits for nothing that comes in a test.
        repeats_linger: Duration::from_hours(1),
        ..Settings::new("hanzo-k8s", "worker-3")
    }
}

fn start<S: Sink>(store: &Arc<S>) -> (Intake, tokio::task::JoinHandle<()>) {
    let (intake, recorder) = pipeline(Arc::clone(store), Arc::default(), Arc::new(()), quick());
    (intake, tokio::spawn(recorder.run()))
}

/// As the reader of the ring buffer does: in chunks, each with its place, and again where there is no room.
async fn submit(intake: &Intake, count: usize) -> Result<(), Closed> {
    let start = intake.stats().received_total();
    for first in (0..count).step_by(256) {
        let mut chunk = vec![decision(); 256.min(count - first)];
        let mark = mark(start + (first + chunk.len()) as u64);
        while intake.submit(&mut chunk, Some(mark))? == Handed::NoRoom {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(())
}

/// A place in a ring buffer whose events take one byte each.
fn mark(position: u64) -> RingMark {
    RingMark {
        ring: uuid::Uuid::from_u128(7),
        position,
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

fn lost(stats: &Stats) -> u64 {
    stats
        .losses()
        .by_cause()
        .into_iter()
        .map(|(_, count)| count)
        .sum()
}

#[tokio::test]
async fn everything_submitted_is_stored_in_order() {
    let directory = tempfile::tempdir().expect("directory");
    let settings = sqlite::Settings {
        dsn: format!("sqlite://{}/audit.db", directory.path().display()),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: None,
        sync: sqlite::Durability::default(),
    };
    let store = Arc::new(Store::open(settings).await.expect("opens"));
    let (intake, running) = start(&store);
    submit(&intake, 20_000).await.expect("takes");
    submit(&intake, 1).await.expect("takes");
    intake.flush().await.expect("flushes");
    assert_eq!(intake.stats().stored_total(), 20_001);
    assert_eq!(intake.stats().lag(), Duration::ZERO);
    assert_eq!(store.totals().await.expect("totals").stored, 20_001);
    let newest = store
        .query(&Filter::default(), None, 1000)
        .await
        .expect("answers")
        .records;
    assert!(
        newest.is_sorted_by(|a, b| a.link.map(|link| link.seq) > b.link.map(|link| link.seq)
            || a.entry.timestamp() > b.entry.timestamp()),
        "the newest first"
    );
    intake.shut_down(Duration::from_secs(5));
    running.await.expect("ends");
}

#[tokio::test]
async fn a_store_that_recovers_loses_nothing() {
    let store = Arc::new(Memory {
        failing: AtomicUsize::new(7),
        ..Memory::default()
    });
    let (intake, _running) = start(&store);
    submit(&intake, 100).await.expect("takes");
    until("lag is visible while the store fails", || {
        intake.stats().lag() > Duration::ZERO || intake.stats().stored_total() > 0
    })
    .await;
    intake.flush().await.expect("flushes");
    assert_eq!((intake.stats().stored_total(), lost(intake.stats())), (100, 0));
    assert_eq!(intake.stats().failures_total(), 7);
}

#[tokio::test]
async fn a_store_that_fails_for_good_never_blocks_the_reader_and_every_loss_is_counted() {
    let store = Arc::new(Memory {
        failing: AtomicUsize::new(usize::MAX),
        ..Memory::default()
    });
    let (intake, running) = start(&store);
    let total = ROOM * 3;
    intake.press(true);
    tokio::time::timeout(Duration::from_secs(20), submit(&intake, total))
        .await
        .expect("is not blocked")
        .expect("takes");
    store.failing.store(0, Ordering::SeqCst);
    intake.flush().await.expect("flushes");
    let stats = intake.stats();
    assert!(stats.losses().store_failed > 0);
    assert_eq!(stats.received_total(), total as u64);
    assert_eq!(stats.stored_total() + lost(stats), total as u64);
    assert_eq!(
        store.records.lock().expect("lock").len() as u64,
        stats.stored_total()
    );
    intake.shut_down(Duration::from_secs(5));
    running.await.expect("ends");
}

#[tokio::test]
async fn a_batch_that_the_store_refuses_does_not_hold_up_the_next() {
    let store = Arc::new(Memory::default());
    store.refuses.store(true, Ordering::SeqCst);
    let (intake, _running) = start(&store);
    submit(&intake, 10).await.expect("takes");
    intake.flush().await.expect("flushes");
    store.refuses.store(false, Ordering::SeqCst);
    submit(&intake, 5).await.expect("takes");
    intake.flush().await.expect("flushes");
    assert_eq!(
        intake.stats().losses(),
        Losses {
            rejected: 10,
            ..Losses::default()
        }
    );
    assert_eq!(intake.stats().stored_total(), 5);
}

#[tokio::test]
async fn a_shutdown_stores_what_is_queued() {
    let store = Arc::new(Memory::default());
    let (intake, recorder) = pipeline(Arc::clone(&store), Arc::default(), Arc::new(()), quick());
    submit(&intake, 3000).await.expect("takes");
    intake.shut_down(Duration::from_secs(5));
    recorder.run().await;
    assert_eq!(intake.stats().stored_total(), 3000);
    assert_eq!(submit(&intake, 4).await, Err(Closed), "it stays in the ring");
    assert_eq!(intake.settled(), 3000);
    intake.revoked(vec![decision(); 3]);
    assert!(!intake.note(mode_change()));
    assert_eq!(
        intake.stats().losses(),
        Losses {
            shut_down: 4, // The revocations and the note.
            ..Losses::default()
        }
    );
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_store_that_hangs() {
    let store = Arc::new(Memory::default());
    store.hangs.store(true, Ordering::SeqCst);
    let (intake, running) = start(&store);
    submit(&intake, 5000).await.expect("takes");
    intake.revoked(vec![decision(); 20]);
    intake.shut_down(Duration::from_millis(50));
    tokio::time::timeout(Duration::from_secs(10), running)
        .await
        .expect("ends")
        .expect("ends well");
    assert_eq!(
        intake.stats().losses(),
        Losses {
            shut_down: 20,
            ..Losses::default()
        }
    );
    assert_eq!(intake.settled(), 0, "what the ring has is left there");
}

#[tokio::test]
async fn watchers_see_records_and_a_slow_one_learns_what_it_missed() {
    let store = Arc::new(Memory::default());
    let (intake, _running) = start(&store);
    let (mut quick, mut slow) = (intake.subscribe(), intake.subscribe());
    submit(&intake, 1).await.expect("takes");
    let seen = quick.recv().await.expect("record");
    intake.flush().await.expect("flushes");
    assert_eq!(*seen, store.records.lock().expect("lock")[0]);
    submit(&intake, LIVE + 99).await.expect("takes");
    intake.flush().await.expect("flushes");
    assert!(matches!(slow.recv().await, Err(broadcast::error::RecvError::Lagged(missed)) if missed >= 100));
}

#[tokio::test]
async fn a_mode_change_is_recorded() {
    let store = Arc::new(Memory::default());
    let (intake, _running) = start(&store);
    intake.record_api(vec![mode_change()]).await.expect("takes");
    assert!(intake.note(mode_change()));
    intake.flush().await.expect("flushes");
    let records = store.records.lock().expect("lock");
    assert!(matches!(records.first(), Some(Entry::ModeChange(change)) if &*change.caller == "root"));
}

fn mode_change() -> ApiEvent {
    ApiEvent::ModeChanged {
        observe_all: true,
        caller: Arc::from("root"),
        revision: 2,
    }
}

#[tokio::test]
async fn a_store_that_hangs_keeps_nothing_from_the_node() {
    let store = Arc::new(Memory::default());
    store.hangs.store(true, Ordering::SeqCst);
    let (intake, running) = start(&store);
    submit(&intake, 5000).await.expect("takes");
    // A break-glass and a revocation while the store hangs: neither waits.
    assert!(intake.note(mode_change()));
    intake.revoked(vec![decision(); 10_000]);
    intake.revoked(vec![decision(); NODE_ROOM]);
    assert_eq!(intake.stats().losses().queue_full, NODE_ROOM as u64);
    assert_eq!(intake.settled(), 0);

    // The ring fills up: its room is given back, and what was given up is counted.
    intake.press(true);
    until("the ring is given back", || intake.settled() == 5000).await;
    let total = 2 * ROOM;
    let end = intake.stats().received_total() + total as u64;
    submit(&intake, total).await.expect("takes");
    until("it is given back again", || intake.settled() == end).await;
    intake.press(false);

    store.resume();
    intake.flush().await.expect("flushes");
    let stats = intake.stats();
    assert!(stats.losses().store_failed >= total as u64);
    assert_eq!(stats.received_total(), stats.stored_total() + lost(stats));
    assert_eq!(
        store.records.lock().expect("lock").len() as u64,
        stats.stored_total()
    );
    submit(&intake, 10).await.expect("takes");
    intake.flush().await.expect("flushes");
    assert_eq!(stats.received_total(), stats.stored_total() + lost(stats));
    intake.shut_down(Duration::from_secs(5));
    running.await.expect("ends");
}

#[tokio::test]
async fn only_what_is_stored_is_given_back_to_the_ring() {
    let store = Arc::new(Memory::default());
    store.hangs.store(true, Ordering::SeqCst);
    let (intake, _running) = start(&store);
    intake.follow_ring(0, || 100);
    submit(&intake, 99).await.expect("takes");
    assert!(
        tokio::time::timeout(Duration::from_millis(30), intake.flush())
            .await
            .is_err()
    );
    assert_eq!(intake.settled(), 0);
    store.resume();
    until("stored", || intake.settled() == 99).await;
    assert!(
        tokio::time::timeout(Duration::from_millis(30), intake.flush())
            .await
            .is_err(),
        "what the ring still holds is waited for"
    );
    submit(&intake, 1).await.expect("takes");
    intake.flush().await.expect("flushes");
    assert_eq!(store.marks.lock().expect("lock").last(), Some(&mark(100)));
}
