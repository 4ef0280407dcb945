// SPDX-License-Identifier: Apache-2.0
//! Who is answered over the API is answered when the record is stored, and on disk.

use super::*;
use crate::audit::convert::Evaluation;
use crate::audit::record::{Mode, Reason};

fn evaluated() -> ApiEvent {
    ApiEvent::Evaluated(Evaluation {
        source: Arc::from("spiffe://hanzo.ai/a"),
        destination: Arc::from("spiffe://hanzo.ai/b"),
        port: 1,
        protocol: 6,
        allowed: true,
        policy_matched: None,
        mode: Mode::Observe,
        revision: 1,
        reason: Reason::Verdict(zt_common::verdict::Reason::NoRule),
        latency: 1,
        caller: Arc::from("test"),
        mfa: None,
        incident: None,
    })
}

/// Whether it is over after a while.
async fn is_over<T>(work: impl Future<Output = T>) -> bool {
    tokio::time::timeout(Duration::from_millis(50), work)
        .await
        .is_ok()
}

#[tokio::test]
async fn an_answer_waits_for_the_store() {
    let store = Arc::new(Memory::default());
    store.hangs.store(true, Ordering::SeqCst);
    let (intake, _running) = start(&store);
    let mut waiting: Vec<_> = (0..100)
        .map(|_| Box::pin(intake.record_api(vec![evaluated(); 3])))
        .collect();
    for waiting in &mut waiting {
        assert!(!is_over(waiting).await);
        if intake.stats().received_total() >= 30 {
            break;
        }
    }
    store.resume();
    for waiting in waiting {
        assert_eq!(waiting.await, Ok(()));
    }
    assert_eq!(store.records.lock().expect("lock").len(), 300);
    assert_eq!(intake.stats().stored_total(), 300);
}

#[tokio::test]
async fn an_answer_waits_for_the_disk_and_what_the_kernel_decides_does_not() {
    let store = Arc::new(Memory::default());
    store.disk_hangs.store(true, Ordering::SeqCst);
    let (intake, _running) = start(&store);
    submit(&intake, 10).await.expect("takes");
    intake.flush().await.expect("flushes");
    assert_eq!(store.syncs.load(Ordering::SeqCst), 0);
    let mut waiting = Box::pin(intake.record_api(vec![evaluated()]));
    assert!(!is_over(&mut waiting).await);
    until("the record is stored", || intake.stats().stored_total() == 11).await;
    assert!(!is_over(&mut waiting).await);
    store.resume();
    assert_eq!(waiting.await, Ok(()));
    assert_eq!(store.syncs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn answers_at_the_same_time_wait_for_one_sync() {
    const MANY_AT_ONCE: usize = 200;
    let store = Arc::new(Memory::default());
    store.hangs.store(true, Ordering::SeqCst);
    let (intake, _running) = start(&store);
    let waiting: Vec<_> = (0..MANY_AT_ONCE)
        .map(|_| {
            let intake = intake.clone();
            tokio::spawn(async move { intake.record_api(vec![evaluated()]).await })
        })
        .collect();
    until("all have asked", || {
        intake.stats().received_total() == MANY_AT_ONCE as u64
    })
    .await;
    store.resume();
    for waiting in waiting {
        assert_eq!(waiting.await.expect("ends"), Ok(()));
    }
    let syncs = store.syncs.load(Ordering::SeqCst);
    assert!((1..=20).contains(&syncs), "{syncs} for {MANY_AT_ONCE} answers");
}

#[tokio::test]
async fn what_the_disk_does_not_take_is_not_acknowledged() {
    let store = Arc::new(Memory::default());
    store.disk_fails.store(true, Ordering::SeqCst);
    let (intake, _running) = start(&store);
    assert_eq!(
        intake.record_api(vec![evaluated(), evaluated()]).await,
        Err(NotRecorded::NotStored)
    );
    assert_eq!(
        intake.record_api(vec![mode_change()]).await,
        Err(NotRecorded::NotStored)
    );
    // It is stored all the same, and not stored again.
    assert_eq!((intake.stats().stored_total(), lost(intake.stats())), (3, 0));
    assert_eq!(store.records.lock().expect("lock").len(), 3);
    assert_eq!(intake.stats().failures_total(), 2);
    store.disk_fails.store(false, Ordering::SeqCst);
    assert_eq!(intake.record_api(vec![evaluated()]).await, Ok(()));
}

#[tokio::test]
async fn what_is_not_stored_is_not_acknowledged() {
    let store = Arc::new(Memory::default());
    let (intake, running) = start(&store);
    store.refuses.store(true, Ordering::SeqCst);
    assert_eq!(
        intake.record_api(vec![evaluated(), evaluated()]).await,
        Err(NotRecorded::NotStored)
    );
    assert_eq!(
        intake.record_api(vec![mode_change()]).await,
        Err(NotRecorded::NotStored)
    );
    assert_eq!(intake.stats().losses().rejected, 3);
    store.refuses.store(false, Ordering::SeqCst);
    // A failure that passes is waited for.
    store.failing.store(3, Ordering::SeqCst);
    assert_eq!(intake.record_api(vec![evaluated()]).await, Ok(()));
    assert_eq!(intake.record_api(Vec::new()).await, Ok(()));
    intake.shut_down(Duration::from_secs(5));
    running.await.expect("ends");
    assert_eq!(
        intake.record_api(vec![evaluated()]).await,
        Err(NotRecorded::Closed(Closed))
    );
}

#[tokio::test]
async fn who_asks_much_takes_no_room_of_the_kernel_s_and_of_the_operator_s() {
    let store = Arc::new(Memory::default());
    store.hangs.store(true, Ordering::SeqCst);
    let (intake, _running) = start(&store);
    let mut waiting: Vec<_> = (0..2 * API_ROOM / 1000)
        .map(|_| {
            let (intake, events) = (intake.clone(), vec![evaluated(); 1000]);
            tokio::spawn(async move { intake.record_api(events).await })
        })
        .collect();
    until("evaluations have all their room", || {
        intake.shared.api_room.available_permits() < 1000
    })
    .await;
    let mut decisions = vec![decision(); 1000];
    assert_eq!(
        intake.submit(&mut decisions, Some(mark(1000))),
        Ok(Handed::Over),
        "what the kernel decided has a place"
    );
    let _stored = intake
        .hand_over(vec![mode_change()])
        .await
        .expect("and what an operator does");
    store.resume();
    for waiting in waiting.drain(..) {
        assert_eq!(waiting.await.expect("ends"), Ok(()));
    }
}

#[tokio::test]
async fn evaluations_beyond_their_share_are_refused_and_counted() {
    let store = Arc::new(Memory::default());
    let (intake, _running) = start(&store);
    store.share_full.store(true, Ordering::SeqCst);
    // Looked at after each batch.
    assert_eq!(intake.record_api(vec![evaluated()]).await, Ok(()));
    assert_eq!(
        intake.record_api(vec![evaluated(), evaluated()]).await,
        Err(NotRecorded::ShareFull)
    );
    assert_eq!(intake.stats().over_share_total(), 2);
    assert_eq!(intake.record_api(vec![mode_change()]).await, Ok(()));
    submit(&intake, 10).await.expect("takes");
    store.share_full.store(false, Ordering::SeqCst);
    intake.flush().await.expect("flushes");
    assert_eq!(intake.record_api(vec![evaluated()]).await, Ok(()));
    assert_eq!((intake.stats().stored_total(), lost(intake.stats())), (13, 0));
}
