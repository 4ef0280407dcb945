// SPDX-License-Identifier: Apache-2.0
//! Numbers of the spool.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::audit::clock;
use crate::audit::postgres::{CAUSES, PgError};
use crate::audit::sqlite::Shipping;

/// What waits, what went, and what failed. Counters start at 0 with the agent.
#[derive(Debug, Default)]
pub struct Account {
    /// Number of the last record that was stored.
    head: AtomicU64,
    /// Of these, how many have been shipped, or are not there any more.
    gone: AtomicU64,
    used: AtomicU64,
    shipped: AtomicU64,
    dropped_oldest: AtomicU64,
    dropped_newest: AtomicU64,
    refused: AtomicU64,
    unreadable: AtomicU64,
    damaged: AtomicU64,
    failures: [AtomicU64; CAUSES.len()],
    /// Time of the oldest record that waits; of no meaning where none does.
    oldest: AtomicI64,
    reachable: AtomicBool,
    /// What of the counters on disk was there when the agent started.
    before: Mutex<Option<[u64; 3]>>,
    error: Mutex<Option<String>>,
    position: watch::Sender<Position>,
}

/// How far shipping is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// Which of the files that the spool has had since the start.
    pub(super) file: u64,
    /// Up to which of its records all were shipped, dropped or refused.
    pub(super) shipped: u64,
}

impl Account {
    /// Records that wait to be shipped.
    pub fn waiting(&self) -> u64 {
        let gone = self.gone.load(Ordering::Relaxed);
        self.head.load(Ordering::Relaxed).saturating_sub(gone)
    }

    /// Bytes of the spool's file that are in use, as of the last look.
    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Records that the server has taken.
    pub fn shipped_total(&self) -> u64 {
        self.shipped.load(Ordering::Relaxed)
    }

    /// Decisions whose records are lost, by why: the oldest and the newest for want of room, those that the server refuses,
    /// those that could not be read, and those that waited in a file that was damaged. Of a record that could not be read or is
    /// not there nobody knows for how many it stood: it counts as one.
    pub fn losses(&self) -> [(&'static str, u64); 5] {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("spool_oldest", load(&self.dropped_oldest)),
            ("spool_newest", load(&self.dropped_newest)),
            ("server_refused", load(&self.refused)),
            ("spool_unreadable", load(&self.unreadable)),
            ("spool_damaged", load(&self.damaged)),
        ]
    }

    /// Attempts that failed, by cause.
    pub fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CAUSES.into_iter().zip(
            self.failures
                .iter()
                .map(|counter| counter.load(Ordering::Relaxed)),
        )
    }

    /// How old the oldest record is that waits; zero where none does.
    pub fn lag(&self) -> Duration {
        if self.waiting() == 0 {
            return Duration::ZERO;
        }
        let oldest = self.oldest.load(Ordering::Relaxed);
        Duration::from_nanos(clock::now().saturating_sub(oldest).max(0).unsigned_abs())
    }

    /// Whether the last attempt succeeded.
    pub fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Why the last attempt failed; `None` where it did not.
    pub fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How far shipping is.
    pub(super) fn watch(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }

    /// Records up to this one are stored, of which the last `count` are new and the first of these is of this time (Unix
    /// nanoseconds).
    pub(super) fn stored(&self, head: u64, count: u64, first: i64) {
        // Before the place: whoever sees that something waits knows since when.
        if self.gone.load(Ordering::Relaxed) >= head.saturating_sub(count) {
            self.oldest.store(first, Ordering::Relaxed);
        }
        self.is_at(head);
    }

    /// A place and no difference: the one who stores and the one who ships see the same records, and either may be the
    /// first to say so.
    fn is_at(&self, head: u64) {
        self.head.fetch_max(head, Ordering::Relaxed);
    }

    pub(super) fn shipped(&self, count: u64) {
        self.shipped.fetch_add(count, Ordering::Relaxed);
        self.reachable.store(true, Ordering::Relaxed);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn newest_dropped(&self, count: u64) {
        self.dropped_newest.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn used(&self, bytes: u64) {
        self.used.store(bytes, Ordering::Relaxed);
    }

    /// The oldest record that waits is of this time, in Unix nanoseconds.
    pub(super) fn waiting_since(&self, oldest: i64) {
        self.oldest.store(oldest, Ordering::Relaxed);
    }

    /// Takes over what is noted on disk. Of what is not shipped, `lost` records are not there any more.
    pub(super) fn moved(&self, noted: &Shipping, head: u64, lost: u64) {
        if self.waiting() == 0 && head > self.head.load(Ordering::Relaxed) {
            // Until somebody has read them: they are older, but how much nobody knows.
            self.oldest.store(clock::now(), Ordering::Relaxed);
        }
        self.is_at(head);
        self.gone.store(noted.shipped + lost, Ordering::Relaxed);
        self.position
            .send_modify(|position| position.shipped = noted.shipped);
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = [noted.dropped, noted.refused, noted.unreadable];
        let before = *before.get_or_insert(noted);
        let counters = [&self.dropped_oldest, &self.refused, &self.unreadable];
        for ((counter, now), before) in counters.into_iter().zip(noted).zip(before) {
            counter.store(now.saturating_sub(before), Ordering::Relaxed);
        }
    }

    /// Records behind this one that are not there any more, as of the last look.
    pub(super) fn lost_behind(&self, shipped: u64) -> u64 {
        self.gone.load(Ordering::Relaxed).saturating_sub(shipped)
    }

    /// So many records were lost with files that were damaged, since the start.
    pub(super) fn lost_to_damage(&self, records: u64) {
        self.damaged.store(records, Ordering::Relaxed);
    }

    /// Another file has taken the place of one that was damaged: nothing of that waits any more.
    pub(super) fn begins_anew(&self) {
        self.head.store(0, Ordering::Relaxed);
        self.gone.store(0, Ordering::Relaxed);
        self.position.send_modify(|position| {
            position.file += 1;
            position.shipped = 0;
        });
    }

    pub(super) fn failed(&self, error: &PgError) {
        let cause = CAUSES
            .iter()
            .position(|cause| *cause == error.cause())
            .unwrap_or(CAUSES.len() - 1);
        if let Some(counter) = self.failures.get(cause) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.reachable.store(false, Ordering::Relaxed);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_counted_once_whoever_sees_it_first() {
        let account = Account::default();
        account.stored(2000, 2000, 1);
        // The shipper looks between the commit of the second batch and its being told.
        account.moved(&Shipping::default(), 4000, 0);
        account.stored(4000, 2000, 2);
        assert_eq!(account.waiting(), 4000);
        let shipped = Shipping {
            shipped: 3000,
            ..Shipping::default()
        };
        account.moved(&shipped, 4000, 100);
        assert_eq!(account.waiting(), 900);
    }
    #[test]
    fn what_waits_says_since_when_before_anybody_ships() {
        let account = Account::default();
        assert_eq!(account.lag(), Duration::ZERO);
        account.stored(10, 10, 1);
        let lag = account.lag();
        assert!(lag > Duration::from_secs(1_700_000_000), "{lag:?}");
        // Newer ones do not make it shorter.
        account.stored(20, 10, clock::now());
        assert!(account.lag() >= lag);
        let all = Shipping {
            shipped: 20,
            ..Shipping::default()
        };
        account.moved(&all, 20, 0);
        assert_eq!(account.lag(), Duration::ZERO);
        account.stored(30, 10, clock::now());
        assert!(account.lag() < lag && account.waiting() == 10);
    }
}
