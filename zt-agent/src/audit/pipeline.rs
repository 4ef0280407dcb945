// SPDX-License-Identifier: Apache-2.0
//! From decisions to stored records, with every loss counted.
//!
//! [`Intake`] takes decisions from the ring reader, from the node and from the API; [`Recorder::run`] turns them into
//! records, shows them to whoever watches, and stores them in batches.
//!
//! What comes from the ring buffer stays there until it is stored: each chunk bears the position behind it
//! ([`RingMark`]), the store keeps the position in the transaction of the records, and [`Intake::settled`] tells the
//! reader what it may give back. So an agent that is killed at any moment leaves to the next exactly what it has not
//! stored.
//!
//! Nobody but the API waits for the store: who is answered over it is answered when the record is stored, and the disk has
//! it. All who wait at the same time wait for one transaction and one sync ([`Intake::record_api`]). Where decisions may be
//! lost, and who counts:
//! * in the ring buffer, when this side is too slow for long: the kernel's own counter;
//! * undecodable bytes: the ring reader, in [`Losses::undecodable`];
//! * a batch that the store will never take: [`Losses::rejected`];
//! * a store that fails, or takes longer than [`Settings::patience`], while the ring buffer is filling up: what is
//!   waiting, in [`Losses::store_failed`]. A batch that the store hangs on is counted when the store has said what became of
//!   it; an agent killed before that has counted it nowhere;
//! * a file that is damaged, with what it had stored: [`Losses::store_damaged`];
//! * what the node itself hands over while its room is taken: [`Losses::queue_full`];
//! * what does not come from the ring and is left at the deadline of a shutdown, or comes after it:
//!   [`Losses::shut_down`].
//!
//! All of these are decisions, of which a record may stand for several ([`super::join`]).

mod error;
mod event;
mod hurry;
mod recorder;
mod stats;
mod tally;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

pub use self::error::{Closed, NotRecorded};
pub use self::event::ApiEvent;
use self::hurry::Hurry;
pub use self::recorder::Recorder;
pub use self::stats::{Losses, Stats};
pub use self::tally::Tally;
use super::decode::Decision;
use super::names::NameBook;
use super::record::Entry;
use super::store::{RingMark, Sink};

/// Decisions of the ring buffer that may be on the way. With the records of one batch they take some 15 MB, and a third
/// of the ring buffer.
const ROOM: usize = 32_768;
/// What the node itself did (revocations), and changes of policy and mode, that may be on the way.
const NODE_ROOM: usize = 65_536;
/// Evaluations that may be on the way. They have room of their own, so that no caller takes the kernel's.
const API_ROOM: usize = 8192;
/// Records kept for a subscriber that is behind; it then learns how many it missed. What is read from the ring buffer at
/// once is shown at once, faster than it is written to anybody. At 50,000 a second this is what comes in a third of a second.
const LIVE: usize = 16_384;

/// How the recorder works. The defaults are for production.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster that records bear.
    pub cluster: Arc<str>,
    /// The node that records bear.
    pub node: Arc<str>,
    /// Most records of one batch.
    pub batch: usize,
    /// How long a batch that is not full waits for more.
    pub linger: Duration,
    /// How long it waits for more where somebody waits for the answer.
    pub answer_linger: Duration,
    /// How long it waits for more where all that it has are denials that repeat.
    pub repeats_linger: Duration,
    /// How long the store may take for a batch before what waits behind it may be given up.
    pub patience: Duration,
    /// First wait after the store failed; doubled up to twenty times that.
    pub retry: Duration,
    /// How often the store is asked to enforce its limits.
    pub prune_every: Duration,
    /// How often the store is asked to sign where the chain stands; it also is at the end.
    pub seal_every: Duration,
}

impl Settings {
    /// The defaults, for this node.
    pub fn new(cluster: &str, node: &str) -> Self {
        Self {
            cluster: Arc::from(cluster),
            node: Arc::from(node),
            batch: 8192,
            linger: Duration::from_millis(20),
            answer_linger: Duration::from_millis(2),
            repeats_linger: Duration::from_secs(1),
            patience: Duration::from_secs(5),
            retry: Duration::from_millis(50),
            prune_every: Duration::from_secs(1),
            seal_every: Duration::from_secs(60),
        }
    }
}

/// One message to the recorder. Its permit is its place in the queue.
enum Message {
    Decisions {
        at: Instant,
        decisions: Vec<Decision>,
        mark: Option<RingMark>,
        room: OwnedSemaphorePermit,
    },
    Api {
        at: Instant,
        time: i64,
        events: Vec<ApiEvent>,
        room: OwnedSemaphorePermit,
        /// Told when the events are stored and on disk, dropped where they are not.
        stored: oneshot::Sender<()>,
    },
    Flush(oneshot::Sender<()>),
}

/// How far the ring buffer was written.
type Produced = Box<dyn Fn() -> u64 + Send + Sync>;

/// What both ends of the pipeline know.
struct Shared {
    stats: Arc<Stats>,
    stop: watch::Sender<Option<Instant>>,
    hurry: Hurry,
    /// Room for what the ring buffer holds, for what the node hands over, and for evaluations.
    room: Arc<Semaphore>,
    node_room: Arc<Semaphore>,
    api_room: Arc<Semaphore>,
    /// Evaluations have their share of the trail.
    share_full: AtomicBool,
    /// Up to where the ring buffer is stored or counted as lost.
    settled: watch::Sender<u64>,
    /// The ring buffer fills up.
    pressed: AtomicBool,
    produced: OnceLock<Produced>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// Where decisions go in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Intake {
    queue: mpsc::UnboundedSender<Message>,
    live: broadcast::Sender<Arc<Entry>>,
    shared: Arc<Shared>,
}

/// Makes a pipeline. Somebody must run the [`Recorder`].
pub fn pipeline<S: Sink>(
    store: Arc<S>,
    names: Arc<NameBook>,
    tally: Arc<dyn Tally>,
    settings: Settings,
) -> (Intake, Recorder<S>) {
    // Not bounded by itself: every message has its permit.
    let (queue, receiver) = mpsc::unbounded_channel();
    let (live, _) = broadcast::channel(LIVE);
    let shared = Arc::new(Shared {
        stats: Arc::new(Stats::default()),
        stop: watch::Sender::new(None),
        hurry: Hurry::default(),
        room: Arc::new(Semaphore::new(ROOM)),
        node_room: Arc::new(Semaphore::new(NODE_ROOM)),
        api_room: Arc::new(Semaphore::new(API_ROOM)),
        share_full: AtomicBool::new(false),
        settled: watch::Sender::new(0),
        pressed: AtomicBool::new(false),
        produced: OnceLock::new(),
    });
    let intake = Intake {
        queue,
        live: live.clone(),
        shared: Arc::clone(&shared),
    };
    let recorder = Recorder::new(receiver, shared, store, names, tally, live, settings);
    (intake, recorder)
}

/// What became of decisions that were handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// They are on their way.
    Over,
    /// There is no room now: nothing was taken and nothing counted.
    NoRoom,
}

impl Intake {
    /// Says where the ring buffer begins and how to see how far it was written. Once, before the first chunk.
    pub fn follow_ring(&self, start: u64, produced: impl Fn() -> u64 + Send + Sync + 'static) {
        self.shared.settled.send_replace(start);
        // A second ring buffer there is not.
        let _ = self.shared.produced.set(Box::new(produced));
    }

    /// Hands over decisions of the ring buffer, up to `mark`, without waiting. `decisions` may be empty.
    pub fn submit(&self, decisions: &mut Vec<Decision>, mark: Option<RingMark>) -> Result<Handed, Closed> {
        let count = decisions.len();
        let Some(room) = take_room(&self.shared.room, count, ROOM)? else {
            return Ok(Handed::NoRoom);
        };
        let message = Message::Decisions {
            at: Instant::now(),
            decisions: std::mem::take(decisions),
            mark,
            room,
        };
        self.queue.send(message).map_err(|_| Closed)?;
        self.shared.stats.received(count);
        Ok(Handed::Over)
    }

    /// Records what the node itself decided (revocations), without waiting. What there is no room for is counted as
    /// lost.
    pub fn revoked(&self, decisions: Vec<Decision>) {
        let count = decisions.len();
        self.shared.stats.received(count);
        match take_room(&self.shared.node_room, count, NODE_ROOM) {
            Ok(Some(room)) => {
                let message = Message::Decisions {
                    at: Instant::now(),
                    decisions,
                    mark: None,
                    room,
                };
                if self.queue.send(message).is_err() {
                    self.shared.stats.lost_to_shutdown(count);
                }
            }
            Ok(None) => self.shared.stats.lost_to_full_queue(count),
            Err(Closed) => self.shared.stats.lost_to_shutdown(count),
        }
    }

    /// Records what happened over the API, and waits until it is stored, and on disk. Given up before it has a place, nothing
    /// was recorded and nothing counted; given up later, it is stored or counted all the same.
    pub async fn record_api(&self, events: Vec<ApiEvent>) -> Result<(), NotRecorded> {
        let stored = self.hand_over(events).await?;
        stored.await.map_err(|_| NotRecorded::NotStored)
    }

    /// The same without waiting for the store: the receiver is told, or its sender dropped where nothing was stored.
    pub async fn hand_over(&self, events: Vec<ApiEvent>) -> Result<oneshot::Receiver<()>, NotRecorded> {
        let evaluated = events
            .iter()
            .filter(|event| matches!(event, ApiEvent::Evaluated(_)))
            .count();
        let (room, most) = match evaluated {
            0 => (&self.shared.node_room, NODE_ROOM),
            _ if self.shared.share_full.load(Ordering::Relaxed) => {
                self.shared.stats.over_share(evaluated);
                return Err(NotRecorded::ShareFull);
            }
            _ => (&self.shared.api_room, API_ROOM),
        };
        let count = u32::try_from(events.len().min(most)).unwrap_or(u32::MAX);
        let room = Arc::clone(room).acquire_many_owned(count);
        let room = room.await.map_err(|_| Closed)?;
        Ok(self.send_api(events, room)?)
    }

    /// Records what happened from a thread that waits for nobody (the node's). Where there is no room it is counted as
    /// lost and `false` says so.
    pub fn note(&self, event: ApiEvent) -> bool {
        let sent = take_room(&self.shared.node_room, 1, NODE_ROOM)
            .and_then(|room| room.map_or(Ok(false), |room| self.send_api(vec![event], room).map(|_| true)));
        if sent != Ok(true) {
            self.shared.stats.received(1);
            match sent {
                Ok(_) => self.shared.stats.lost_to_full_queue(1),
                Err(Closed) => self.shared.stats.lost_to_shutdown(1),
            }
        }
        sent == Ok(true)
    }

    fn send_api(
        &self,
        events: Vec<ApiEvent>,
        room: OwnedSemaphorePermit,
    ) -> Result<oneshot::Receiver<()>, Closed> {
        let count = events.len();
        let (stored, wait) = oneshot::channel();
        let message = Message::Api {
            at: Instant::now(),
            time: super::clock::now(),
            events,
            room,
            stored,
        };
        self.queue.send(message).map_err(|_| Closed)?;
        self.shared.stats.received(count);
        Ok(wait)
    }

    /// Waits until what was decided before, also what the ring buffer still holds of it, is stored or counted as lost.
    pub async fn flush(&self) -> Result<(), Closed> {
        let _waiting = self.shared.hurry.wait();
        if let Some(produced) = self.shared.produced.get() {
            let end = produced();
            let mut settled = self.shared.settled.subscribe();
            settled
                .wait_for(|settled| *settled >= end)
                .await
                .map_err(|_| Closed)?;
        }
        let (done, wait) = oneshot::channel();
        self.queue.send(Message::Flush(done)).map_err(|_| Closed)?;
        wait.await.map_err(|_| Closed)
    }

    /// The agent is about to stop: nothing waits for repeats any more.
    pub fn hasten(&self) {
        self.shared.hurry.stay();
    }

    /// Up to where the ring buffer is stored or counted as lost: that much may be given back.
    pub fn settled(&self) -> u64 {
        *self.shared.settled.borrow()
    }

    /// Says whether the ring buffer fills up: then what waits for a store that fails or hangs is given up.
    pub fn press(&self, pressed: bool) {
        self.shared.pressed.store(pressed, Ordering::Relaxed);
    }

    /// Records as they are made, from now on. One that falls behind misses the oldest and is told how many.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Entry>> {
        self.live.subscribe()
    }

    /// The counters.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.shared.stats
    }

    /// Takes nothing more; what is queued is stored until `deadline` has passed. [`Recorder::run`] ends then.
    pub fn shut_down(&self, deadline: Duration) {
        self.shared.stop.send_replace(Some(Instant::now() + deadline));
        self.hasten();
    }
}

/// A place for `count` decisions, of `most` that there are. More than that are let in when nothing else is.
fn take_room(
    room: &Arc<Semaphore>,
    count: usize,
    most: usize,
) -> Result<Option<OwnedSemaphorePermit>, Closed> {
    let count = u32::try_from(count.min(most)).unwrap_or(u32::MAX);
    match Arc::clone(room).try_acquire_many_owned(count) {
        Ok(room) => Ok(Some(room)),
        Err(TryAcquireError::NoPermits) => Ok(None),
        Err(TryAcquireError::Closed) => Err(Closed),
    }
}

#[cfg(test)]
mod tests;
