// SPDX-License-Identifier: Apache-2.0
//! The pipeline's account, in decisions: received = stored + lost + still on the way, at any time it is at rest.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::audit::record::Timestamp;
use crate::audit::store::PutAside;

/// Counters of the pipeline. All only grow, except the lag.
#[derive(Debug, Default)]
pub struct Stats {
    received: AtomicU64,
    stored: AtomicU64,
    records: AtomicU64,
    undecodable: AtomicU64,
    rejected: AtomicU64,
    store_failed: AtomicU64,
    queue_full: AtomicU64,
    shut_down: AtomicU64,
    failures: AtomicU64,
    pruned_for_space: AtomicU64,
    pruned_for_age: AtomicU64,
    sealed_seq: AtomicU64,
    sealed_time: AtomicI64,
    seal_failures: AtomicU64,
    prune_failures: AtomicU64,
    chain_breaks: AtomicU64,
    put_aside: AtomicU64,
    store_damaged: AtomicU64,
    damaged_files: AtomicU64,
    over_share: AtomicU64,
    oldest: Mutex<Option<Instant>>,
}

/// Decisions that have no record, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// The ring buffer held bytes that are no event.
    pub undecodable: u64,
    /// The store refused their batch for good.
    pub rejected: u64,
    /// The store failed for longer than the queue could hold.
    pub store_failed: u64,
    /// They were stored, and the file was put aside because it was damaged.
    pub store_damaged: u64,
    /// The node's own thread had them while the queue was full.
    pub queue_full: u64,
    /// They were on the way when the agent stopped.
    pub shut_down: u64,
}

impl Losses {
    /// Each cause with the name that it has in metrics and in `status`.
    pub const fn by_cause(self) -> [(&'static str, u64); 6] {
        [
            ("undecodable", self.undecodable),
            ("store_rejected", self.rejected),
            ("store_failed", self.store_failed),
            ("store_damaged", self.store_damaged),
            ("queue_full", self.queue_full),
            ("shutdown", self.shut_down),
        ]
    }
}

impl Stats {
    /// Decisions handed over.
    pub fn received_total(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Decisions whose records are stored.
    pub fn stored_total(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Records stored: fewer than decisions where equal ones were joined.
    pub fn records_total(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Attempts at which the store failed.
    pub fn failures_total(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Records that made room: for space, for age.
    pub fn pruned_total(&self) -> (u64, u64) {
        (
            self.pruned_for_space.load(Ordering::Relaxed),
            self.pruned_for_age.load(Ordering::Relaxed),
        )
    }

    /// The entry that the trail's last checkpoint signs, and when that was; `None` before the first.
    pub fn checkpoint(&self) -> Option<(u64, Timestamp)> {
        let time = Timestamp(self.sealed_time.load(Ordering::Relaxed));
        (time.0 != 0).then(|| (self.sealed_seq.load(Ordering::Relaxed), time))
    }

    /// Checkpoints that could not be signed.
    pub fn seal_failures_total(&self) -> u64 {
        self.seal_failures.load(Ordering::Relaxed)
    }

    /// Attempts at making room that failed.
    pub fn prune_failures_total(&self) -> u64 {
        self.prune_failures.load(Ordering::Relaxed)
    }

    /// Signed checkpoints that are kept because the chain did not go on from them.
    pub fn chain_breaks(&self) -> u64 {
        self.chain_breaks.load(Ordering::Relaxed)
    }

    /// Damaged files that lie beside the store's.
    pub fn damaged_files(&self) -> u64 {
        self.damaged_files.load(Ordering::Relaxed)
    }

    /// Evaluations that were not taken, and not answered, because they have their share of the trail.
    pub fn over_share_total(&self) -> u64 {
        self.over_share.load(Ordering::Relaxed)
    }

    pub(super) fn over_share(&self, count: usize) {
        self.over_share.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(crate) fn sealed(&self, seq: u64, time: Timestamp) {
        self.sealed_seq.store(seq, Ordering::Relaxed);
        self.sealed_time.store(time.0, Ordering::Relaxed);
    }

    pub(super) fn seal_failed(&self) {
        self.seal_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn prune_failed(&self) {
        self.prune_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn broken(&self, breaks: u64) {
        self.chain_breaks.store(breaks, Ordering::Relaxed);
    }

    /// What was put aside since the start; whether that is more than before.
    pub(super) fn put_aside(&self, now: PutAside) -> bool {
        self.store_damaged.store(now.records, Ordering::Relaxed);
        self.put_aside.swap(now.files, Ordering::Relaxed) != now.files
    }

    pub(super) fn damaged(&self, files: u64) {
        self.damaged_files.store(files, Ordering::Relaxed);
    }

    /// Decisions without a record.
    pub fn losses(&self) -> Losses {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Losses {
            undecodable: load(&self.undecodable),
            rejected: load(&self.rejected),
            store_failed: load(&self.store_failed),
            store_damaged: load(&self.store_damaged),
            queue_full: load(&self.queue_full),
            shut_down: load(&self.shut_down),
        }
    }

    /// How long the oldest decision that is not stored yet has been waiting; zero when there is none.
    pub fn lag(&self) -> Duration {
        self.oldest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// The ring reader found bytes that are no event.
    pub fn undecodable(&self) {
        self.undecodable.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn received(&self, count: usize) {
        self.received.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn stored(&self, decisions: usize, records: usize) {
        self.stored.fetch_add(decisions as u64, Ordering::Relaxed);
        self.records.fetch_add(records as u64, Ordering::Relaxed);
    }

    pub(super) fn lost_to_rejection(&self, count: usize) {
        self.rejected.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn lost_to_failure(&self, count: usize) {
        self.store_failed.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn lost_to_full_queue(&self, count: usize) {
        self.queue_full.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn lost_to_shutdown(&self, count: usize) {
        self.shut_down.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn pruned(&self, for_space: u64, for_age: u64) {
        self.pruned_for_space.fetch_add(for_space, Ordering::Relaxed);
        self.pruned_for_age.fetch_add(for_age, Ordering::Relaxed);
    }

    pub(super) fn waiting_since(&self, oldest: Option<Instant>) {
        *self.oldest.lock().unwrap_or_else(PoisonError::into_inner) = oldest;
    }
}
