// SPDX-License-Identifier: Apache-2.0
//! Places for connections: when all are taken, the one that has been idle longest is cleared. Ten thousand connections
//! that ask for nothing keep nobody out, and neither do as many that watch or leave their answers unread: where none is
//! idle, the oldest of those goes.

mod taken;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

use self::taken::Taken;

/// The places of one listener.
pub(super) struct Places {
    most: usize,
    most_of_one: usize,
    next: AtomicU64,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Seat {
    /// Whose; unknown while hands are shaken.
    account: OnceLock<Arc<str>>,
    /// Requests whose answers are not known yet.
    requests: AtomicU32,
    /// Answers that are not sent whole yet: streams of events never are.
    answers: AtomicU32,
    /// Something that was written waits for the client to read.
    writing: AtomicBool,
    evicted: Notify,
}

/// A place, until it is dropped.
pub(super) struct Place {
    number: u64,
    most_of_one: usize,
    seat: Arc<Seat>,
    taken: Arc<Mutex<Taken>>,
}

/// A request whose answer is not known yet: its connection stays.
pub(super) struct Busy(Arc<Seat>);

/// An answer that is not sent whole yet: its connection is not idle.
pub(super) struct Answering(Arc<Seat>);

/// Says whether something that was written waits for the client to read.
pub(super) struct Writing(Arc<Seat>);

impl Seat {
    fn has_requests(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    fn has_answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > 0 || self.writing.load(Ordering::Relaxed)
    }
}

impl Busy {
    /// The answer is known, and is sent from now on.
    pub(super) fn answering(self) -> Answering {
        self.0.answers.fetch_add(1, Ordering::Relaxed);
        Answering(Arc::clone(&self.0))
    }
}

impl Writing {
    pub(super) fn set(&self, writing: bool) {
        self.0.writing.store(writing, Ordering::Relaxed);
    }
}

impl Places {
    pub(super) fn new(most: usize, most_of_one: usize) -> Self {
        Self {
            most,
            most_of_one,
            next: AtomicU64::new(0),
            taken: Arc::default(),
        }
    }

    /// A place; `None` where all are taken by connections with requests whose answers are not known yet.
    pub(super) fn take(&self) -> Option<Place> {
        let mut taken = lock(&self.taken);
        if taken.len() >= self.most {
            taken.clear(None)?;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let seat = Arc::<Seat>::default();
        taken.insert(number, Arc::clone(&seat));
        Some(Place {
            number,
            most_of_one: self.most_of_one,
            seat,
            taken: Arc::clone(&self.taken),
        })
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    /// Says whose it is. Nobody has more than their number of places: one more clears another one of theirs, and is refused
    /// where none of those is idle.
    pub(super) fn belongs_to(&self, account: &Arc<str>) -> bool {
        let mut taken = lock(&self.taken);
        if taken.places_of(account) >= self.most_of_one && taken.clear(Some(account)).is_none() {
            return false;
        }
        taken.belongs(self.number, &self.seat, account);
        true
    }

    /// Completes when somebody else needs the place.
    pub(super) async fn evicted(&self) {
        self.seat.evicted.notified().await;
    }

    /// For who writes to the connection.
    pub(super) fn writing(&self) -> Writing {
        Writing(Arc::clone(&self.seat))
    }

    /// A request has come.
    pub(super) fn busy(&self) -> Busy {
        self.seat.requests.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(&self.seat))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.taken).remove(self.number, &self.seat);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_one_that_is_idle_longest_goes() {
        let places = Places::new(2, 2);
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

    #[tokio::test]
    async fn answers_that_are_being_sent_go_after_whoever_is_idle() {
        let places = Places::new(3, 3);
        let (stream, unread) = (places.take().expect("free"), places.take().expect("free"));
        let answering = stream.busy().answering();
        let writing = unread.writing();
        writing.set(true);
        let idle = places.take().expect("free");
        let busy = places.take().expect("somebody is idle");
        idle.evicted().await;
        let request = busy.busy();
        // Nobody is idle: streams keep nobody out.
        let next = places.take().expect("the stream goes");
        stream.evicted().await;
        drop((answering, idle, stream));
        writing.set(false);
        let streaming = next.busy().answering();
        let last = places.take().expect("its answer is read");
        unread.evicted().await;
        drop((request, streaming, busy, next, last, unread));
        assert_eq!(lock(&places.taken).len(), 0);
    }

    #[tokio::test]
    async fn who_fills_it_drives_out_themselves() {
        let places = Places::new(8, 4);
        let (one, many): (Arc<str>, Arc<str>) = (Arc::from("one"), Arc::from("many"));
        let first = places.take().expect("free");
        assert!(first.belongs_to(&one));
        let theirs: Vec<Place> = (0..4).map(|_| places.take().expect("free")).collect();
        assert!(theirs.iter().all(|place| place.belongs_to(&many)));
        // The fifth of eight clears the first of theirs, and none where all are answered.
        let fifth = places.take().expect("free");
        assert!(fifth.belongs_to(&many));
        theirs[0].evicted().await;
        let busy: Vec<Busy> = theirs[1..].iter().chain([&fifth]).map(Place::busy).collect();
        let sixth = places.take().expect("free");
        assert!(!sixth.belongs_to(&many));
        drop((busy, sixth));
        // Handshakes that come to nothing fill the rest; the caller who was there first stays.
        let mut strangers: Vec<Place> = (0..3).map(|_| places.take().expect("free")).collect();
        for _ in 0..100 {
            strangers.push(places.take().expect("somebody is idle"));
        }
        assert!(lock(&places.taken).places_of(&one) == 1);
        assert_eq!(lock(&places.taken).len(), 8);
    }
}
