// SPDX-License-Identifier: Apache-2.0
//! Denials that repeat on their way: few records, and every decision in one of them or counted as lost.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::audit::join::ALONE;
use crate::audit::record::{AuditRecord, Latency, Outcome};
use crate::audit::sample::denied;

/// What a loop does in a microsecond each, from one second of the machine on.
fn loops(from: u64, count: u64) -> Vec<Decision> {
    (0..count).map(|n| denied(from * SECOND + n * 1000)).collect()
}

const SECOND: u64 = 1_000_000_000;

/// Hands decisions over as the reader of the ring buffer does, each of which takes one byte there.
async fn hand_over(intake: &Intake, decisions: &[Decision], start: u64) {
    let mut position = start;
    for chunk in decisions.chunks(256) {
        position += chunk.len() as u64;
        let mut chunk = chunk.to_vec();
        while intake.submit(&mut chunk, Some(mark(position))).expect("takes") == Handed::NoRoom {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"))
}

fn kept(store: &Memory) -> Vec<AuditRecord> {
    let records = store.records.lock().expect("lock");
    records
        .iter()
        .map(|record| record.decision().expect("a decision").clone())
        .collect()
}

/// For how many decisions the records of a port stand.
fn sum(records: &[AuditRecord], port: u16) -> u64 {
    let of_port = records.iter().filter(|record| record.destination.port == port);
    of_port.map(|record| record.count).sum()
}

#[tokio::test]
async fn a_refused_loop_is_few_records_and_others_have_theirs() {
    let store = Arc::new(Memory::default());
    let (intake, _running) = start(&store);
    let mut decisions = loops(5, 20_000);
    // Somebody else in the middle of it, once refused and once let through.
    for (at, allowed) in [(7000, false), (13_000, true)] {
        decisions[at] = Decision {
            target_port: 80,
            allowed,
            ..decisions[at].clone()
        };
    }
    hand_over(&intake, &decisions, 0).await;
    in_time("the end of a flush", intake.flush())
        .await
        .expect("flushes");
    let records = kept(&store);
    assert_eq!(sum(&records, 5432), 19_998);
    assert!(records.len() < 100, "{} records", records.len());
    for first in &records[..ALONE as usize] {
        assert_eq!((first.count, first.destination.port), (1, 5432));
    }
    let others: Vec<_> = records
        .iter()
        .filter(|record| record.destination.port == 80)
        .map(|record| (record.count, record.decision))
        .collect();
    assert_eq!(others, [(1, Outcome::Deny), (1, Outcome::Allow)]);
    let stats = intake.stats();
    assert_eq!((stats.received_total(), stats.stored_total()), (20_000, 20_000));
    assert_eq!(stats.records_total(), records.len() as u64);
    assert_eq!(store.marks.lock().expect("lock").last(), Some(&mark(20_000)));
}

#[tokio::test]
async fn repeats_wait_for_more_and_for_nobody_who_waits_for_them() {
    let store = Arc::new(Memory::default());
    let (intake, running) = start(&store);
    let stored = || intake.stats().stored_total();
    // The first ones wait for nothing.
    hand_over(&intake, &loops(5, u64::from(ALONE)), 0).await;
    until("the first ones are stored", || stored() == u64::from(ALONE)).await;
    // Those behind them wait for more; who asks for them has them at once.
    hand_over(&intake, &loops(5, 100), 10).await;
    in_time("the end of a flush", intake.flush())
        .await
        .expect("flushes");
    assert_eq!(stored(), 110);
    // So has who asked before they came.
    intake.follow_ring(110, || 210);
    let asked = tokio::spawn({
        let intake = intake.clone();
        async move { intake.flush().await }
    });
    until("somebody waits", || intake.shared.hurry.is_on()).await;
    hand_over(&intake, &loops(5, 100), 110).await;
    in_time("the end of a flush", asked)
        .await
        .expect("ends")
        .expect("flushes");
    assert_eq!(stored(), 210);
    // What says something else takes them along.
    hand_over(&intake, &loops(5, 100), 210).await;
    hand_over(&intake, &[decision()], 310).await;
    until("another is stored", || stored() == 311).await;
    hand_over(&intake, &loops(5, 100), 311).await;
    intake.revoked(vec![denied(5 * SECOND)]);
    until("a revocation is stored", || stored() == 412).await;
    // And so does the end.
    hand_over(&intake, &loops(5, 100), 411).await;
    intake.shut_down(Duration::from_secs(20));
    in_time("the end", running).await.expect("ends well");
    assert_eq!((stored(), lost(intake.stats())), (512, 0));
    assert_eq!(intake.settled(), 511);
    let counts: Vec<u64> = kept(&store).iter().map(|record| record.count).collect();
    assert_eq!(counts[10..], [100, 100, 100, 1, 100, 1, 100]);
}

#[tokio::test]
async fn what_the_node_ended_is_never_joined() {
    let store = Arc::new(Memory::default());
    let (intake, _running) = start(&store);
    intake.revoked(loops(5, 1000));
    in_time("the end of a flush", intake.flush())
        .await
        .expect("flushes");
    assert_eq!(kept(&store).len(), 1000);
}

#[tokio::test]
async fn watchers_see_a_record_once_with_all_that_it_stands_for() {
    let store = Arc::new(Memory::default());
    let (intake, _running) = start(&store);
    let mut live = intake.subscribe();
    hand_over(&intake, &loops(5, 5000), 0).await;
    in_time("the end of a flush", intake.flush())
        .await
        .expect("flushes");
    let (mut seen, mut sum) = (0, 0);
    while sum < 5000 {
        let record = in_time("a record", live.recv()).await.expect("a record");
        seen += 1;
        sum += record.weight();
    }
    assert_eq!((sum, seen), (5000, kept(&store).len()));
}

/// Counts as the metrics do.
#[derive(Default)]
struct Counting {
    decisions: AtomicU64,
    latency: AtomicU64,
}

impl Tally for Counting {
    fn recorded(&self, record: &AuditRecord) {
        self.joined(record, record.latency);
    }

    fn joined(&self, _: &AuditRecord, latency: Latency) {
        self.decisions.fetch_add(1, Ordering::SeqCst);
        self.latency.fetch_add(latency.0, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn each_decision_is_tallied_with_its_own_latency() {
    let (store, tally) = (Arc::new(Memory::default()), Arc::new(Counting::default()));
    let (intake, recorder) = pipeline(store, Arc::default(), Arc::<Counting>::clone(&tally), quick());
    tokio::spawn(recorder.run());
    let decisions = (1..=1000).map(|latency| Decision {
        latency,
        ..denied(5 * SECOND)
    });
    hand_over(&intake, &decisions.collect::<Vec<_>>(), 0).await;
    in_time("the end of a flush", intake.flush())
        .await
        .expect("flushes");
    assert_eq!(tally.decisions.load(Ordering::SeqCst), 1000);
    assert_eq!(tally.latency.load(Ordering::SeqCst), 1000 * 1001 / 2);
}

#[tokio::test]
async fn a_batch_that_is_lost_is_counted_with_all_that_joined_it() {
    let store = Arc::new(Memory::default());
    store.refuses.store(true, Ordering::SeqCst);
    let (intake, _running) = start(&store);
    hand_over(&intake, &loops(5, 3000), 0).await;
    in_time("the end of a flush", intake.flush())
        .await
        .expect("flushes");
    let losses = Losses {
        rejected: 3000,
        ..Losses::default()
    };
    assert_eq!(
        (intake.stats().losses(), intake.stats().stored_total()),
        (losses, 0)
    );
    // What follows joins no record that is not there.
    store.refuses.store(false, Ordering::SeqCst);
    hand_over(&intake, &loops(5, 500), 3000).await;
    in_time("the end of a flush", intake.flush())
        .await
        .expect("flushes");
    assert_eq!(sum(&kept(&store), 5432), 500);
}

/// The agent is killed at any moment, and the next one begins behind what is stored: no decision is in two records or in none.
#[tokio::test]
async fn a_killed_recorder_leaves_exact_sums() {
    const COUNT: u64 = 60_000;
    let store = Arc::new(Memory::default());
    // Two loops side by side, and now and then somebody who is let through.
    let ring: Vec<Decision> = (0..COUNT)
        .map(|n| Decision {
            target_port: 80 + (n % 2) as u16,
            allowed: n % 97 == 0,
            ..denied(5 * SECOND + n * 20_000)
        })
        .collect();
    let last = || {
        let marks = store.marks.lock().expect("lock");
        marks.last().map_or(0, |mark| mark.position)
    };
    let mut kills = 0_u32;
    while last() < COUNT {
        let from = last();
        let (intake, running) = start(&store);
        let rest = ring[from as usize..].to_vec();
        let feeding = intake.clone();
        let feeder = tokio::spawn(async move { hand_over(&feeding, &rest, from).await });
        // Until something of this one is stored, and a little longer each time.
        until("something is stored", || last() > from).await;
        for _ in 0..kills % 7 {
            tokio::task::yield_now().await;
        }
        feeder.abort();
        running.abort();
        let _ = running.await;
        kills += 1;
    }
    assert!(kills > 1, "killed {kills} times");
    let records = kept(&store);
    for port in [80, 81] {
        let decided = ring.iter().filter(|decision| decision.target_port == port);
        assert_eq!(sum(&records, port), decided.count() as u64);
    }
    let allowed = records.iter().filter(|record| record.decision == Outcome::Allow);
    assert_eq!(
        allowed.count(),
        ring.iter().filter(|decision| decision.allowed).count()
    );
    assert!(records.len() < COUNT as usize / 10, "{} records", records.len());
}
