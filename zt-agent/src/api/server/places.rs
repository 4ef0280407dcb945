// SPDX-License-Identifier: Apache-2.0
//! Places for connections: when all are taken, the one that has been idle longest is cleared. Ten thousand connections
//! that ask for nothing keep nobody out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The places of one listener.
pub(super) struct Places {
    most: usize,
    next: AtomicU64,
    taken: Arc<Mutex<Taken>>,
}

/// Who has a place, the oldest first.
type Taken = BTreeMap<u64, Arc<Seat>>;

#[derive(Default)]
struct Seat {
    /// Requests that are being answered.
    requests: AtomicU32,
    evicted: Notify,
}

/// A place, until it is dropped.
pub(super) struct Place {
    number: u64,
    seat: Arc<Seat>,
    taken: Arc<Mutex<Taken>>,
}

/// A request that is being answered: its connection is not idle.
pub(super) struct Busy(Arc<Seat>);

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            next: AtomicU64::new(0),
            taken: Arc::default(),
        }
    }

    /// A place; `None` where all are taken by connections whose requests are being answered.
    pub(super) fn take(&self) -> Option<Place> {
        let mut taken = lock(&self.taken);
        if taken.len() >= self.most {
            let idle = taken
                .iter()
                .find(|(_, seat)| seat.requests.load(Ordering::Relaxed) == 0)
                .map(|(number, _)| *number)?;
            if let Some(seat) = taken.remove(&idle) {
                seat.evicted.notify_one();
            }
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let seat = Arc::<Seat>::default();
        taken.insert(number, Arc::clone(&seat));
        Some(Place {
            number,
            seat,
            taken: Arc::clone(&self.taken),
        })
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    /// Completes when somebody else needs the place.
    pub(super) async fn evicted(&self) {
        self.seat.evicted.notified().await;
    }

    /// A request has come.
    pub(super) fn busy(&self) -> Busy {
        self.seat.requests.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(&self.seat))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.number);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_one_that_is_idle_longest_goes() {
        let places = Places::new(2);
        let (first, second) = (places.take().expect("free"), places.take().expect("free"));
        let busy = first.busy();
        let third = places.take().expect("second is idle");
        second.evicted().await;
        let also_busy = third.busy();
        assert!(places.take().is_none(), "both are answered");
        drop(busy);
        let fourth = places.take().expect("first is idle again");
        first.evicted().await;
        drop((fourth, also_busy, third));
        let left = lock(&places.taken).len();
        assert_eq!(left, 0);
    }
}
