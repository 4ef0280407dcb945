// SPDX-License-Identifier: Apache-2.0
//! The account of the pipeline, with stores that work, fail and hang.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::audit::names::Named;
use crate::audit::query::Filter;
use crate::audit::sample::decision;
use crate::audit::sqlite::{self, Store};
use crate::audit::store::{Pruned, SinkError};

/// Keeps records in memory, when it is allowed to.
#[derive(Default)]
struct Memory {
    records: Mutex<Vec<AuditRecord>>,
    /// Attempts that shall still fail.
    failing: AtomicUsize,
    refuses: std::sync::atomic::AtomicBool,
    hangs: std::sync::atomic::AtomicBool,
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

    async fn append(&self, records: &[AuditRecord]) -> Result<(), Broken> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
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
        Ok(())
    }

    async fn remember(&self, _: &[Named]) -> Result<(), Broken> {
        Ok(())
    }

    async fn prune(&self) -> Result<Pruned, Broken> {
        Ok(Pruned::default())
    }
}

fn quick() -> Settings {
    Settings {
        linger: Duration::from_millis(1),
        retry: Duration::from_millis(1),
        ..Settings::new("hanzo-k8s", "worker-3")
    }
}

fn start<S: Sink>(store: &Arc<S>) -> (Intake, tokio::task::JoinHandle<()>) {
    let (intake, recorder) = pipeline(Arc::clone(store), Arc::default(), Arc::new(()), quick());
    (intake, tokio::spawn(recorder.run()))
}

async fn submit(intake: &Intake, count: usize) -> Result<(), Closed> {
    let intake = intake.clone();
    tokio::task::spawn_blocking(move || intake.submit(vec![decision(); count]))
        .await
        .expect("thread")
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
        newest.is_sorted_by(|a, b| a.id > b.id),
        "ids grow with the order of arrival"
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
    let total = CHUNK * QUEUE * 3;
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
    assert_eq!(submit(&intake, 4).await, Err(Closed));
    assert_eq!(
        intake.stats().losses(),
        Losses {
            shut_down: 4,
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
    intake.shut_down(Duration::from_millis(50));
    tokio::time::timeout(Duration::from_secs(10), running)
        .await
        .expect("ends")
        .expect("ends well");
    assert_eq!(
        intake.stats().losses(),
        Losses {
            shut_down: 5000,
            ..Losses::default()
        }
    );
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
    let event = ApiEvent::ModeChanged {
        observe_all: true,
        caller: Arc::from("root"),
        revision: 2,
    };
    intake.record_api(vec![event]).await.expect("takes");
    intake.flush().await.expect("flushes");
    let records = store.records.lock().expect("lock");
    assert_eq!(
        records.first().map(|record| record.reason.name()),
        Some("observe_all")
    );
}
