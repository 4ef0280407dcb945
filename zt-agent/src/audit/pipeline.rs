// SPDX-License-Identifier: Apache-2.0
//! From decisions to stored records, with every loss counted.
//!
//! [`Intake`] takes decisions from the ring reader and from the API; [`Recorder::run`] turns them into records, shows
//! them to whoever watches, and stores them in batches.
//!
//! Where decisions may be lost, and who counts:
//! * in the ring buffer, when this side is too slow: the kernel's own counter;
//! * undecodable bytes: the ring reader, in [`Stats::undecodable`];
//! * a batch that the store will never take: [`Stats::rejected`];
//! * a store that fails until the queue is full: the batch in hand, in [`Stats::store_failed`]. A store that is only
//!   *slow* loses nothing here: [`Intake::submit`] waits, and the ring buffer fills;
//! * what is left at the deadline of a shutdown, or comes after it: [`Stats::shut_down`].

mod recorder;
mod stats;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;

pub use self::recorder::Recorder;
pub use self::stats::{Losses, Stats};
use super::convert::Evaluation;
use super::decode::Decision;
use super::names::NameBook;
use super::record::AuditRecord;
use super::store::Sink;

/// Decisions in one message to the recorder.
const CHUNK: usize = 256;
/// Messages that wait at most. Together with [`CHUNK`] this bounds the memory of the queue to some 10 MB.
const QUEUE: usize = 256;
/// Records kept for a subscriber that is behind; it then learns how many it missed.
const LIVE: usize = 4096;

/// Sees every record once, when it is made. The metrics are one.
pub trait Tally: Send + Sync + 'static {
    /// A record was made.
    fn recorded(&self, record: &AuditRecord);
}

/// Tallies nothing.
impl Tally for () {
    fn recorded(&self, _: &AuditRecord) {}
}

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
    /// First wait after the store failed; doubled up to twenty times that.
    pub retry: Duration,
    /// How often the store is asked to enforce its limits.
    pub prune_every: Duration,
}

impl Settings {
    /// The defaults, for this node.
    pub fn new(cluster: &str, node: &str) -> Self {
        Self {
            cluster: Arc::from(cluster),
            node: Arc::from(node),
            batch: 8192,
            linger: Duration::from_millis(20),
            retry: Duration::from_millis(50),
            prune_every: Duration::from_secs(1),
        }
    }
}

/// The pipeline no longer takes anything: the agent is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit pipeline is closed: the agent is shutting down")]
pub struct Closed;

/// What an operator or a client did over the API.
#[derive(Clone, Debug)]
pub enum ApiEvent {
    /// Asked for a decision.
    Evaluated(Evaluation),
    /// Changed the mode of the node.
    ModeChanged {
        /// `true`: nothing is refused from now on; `false`: the workloads' own modes hold again.
        observe_all: bool,
        /// Who.
        caller: Arc<str>,
        /// Revision in force.
        revision: u64,
    },
}

/// One message to the recorder.
enum Message {
    Decisions {
        at: Instant,
        decisions: Vec<Decision>,
    },
    Api {
        at: Instant,
        time: i64,
        events: Vec<ApiEvent>,
    },
    Flush(oneshot::Sender<()>),
}

impl Message {
    fn len(&self) -> usize {
        match self {
            Self::Decisions { decisions, .. } => decisions.len(),
            Self::Api { events, .. } => events.len(),
            Self::Flush(_) => 0,
        }
    }
}

/// Where decisions go in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Intake {
    queue: mpsc::Sender<Message>,
    live: broadcast::Sender<Arc<AuditRecord>>,
    stats: Arc<Stats>,
    stop: Arc<watch::Sender<Option<Instant>>>,
}

/// Makes a pipeline. Somebody must run the [`Recorder`].
pub fn pipeline<S: Sink>(
    store: Arc<S>,
    names: Arc<NameBook>,
    tally: Arc<dyn Tally>,
    settings: Settings,
) -> (Intake, Recorder<S>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (live, _) = broadcast::channel(LIVE);
    let (stop, stopped) = watch::channel(None);
    let stats = Arc::new(Stats::default());
    let intake = Intake {
        queue: sender,
        live: live.clone(),
        stats: Arc::clone(&stats),
        stop: Arc::new(stop),
    };
    let recorder = Recorder::new(receiver, stopped, store, names, tally, live, stats, settings);
    (intake, recorder)
}

impl Intake {
    /// Hands over decisions from a thread of its own (the ring reader); blocks while the queue is full. Must not be
    /// called from asynchronous code. After a shutdown they are counted as lost and [`Closed`] says so.
    pub fn submit(&self, decisions: Vec<Decision>) -> Result<(), Closed> {
        self.stats.received(decisions.len());
        let mut left = decisions.len();
        let mut decisions = decisions.into_iter();
        while left > 0 {
            let chunk: Vec<Decision> = decisions.by_ref().take(CHUNK).collect();
            let message = Message::Decisions {
                at: Instant::now(),
                decisions: chunk,
            };
            let sent = message.len();
            if self.queue.blocking_send(message).is_err() {
                self.stats.lost_to_shutdown(left);
                return Err(Closed);
            }
            left -= sent;
        }
        Ok(())
    }

    /// Records what happened over the API. Waits while the queue is full; given up before it is done, it has
    /// recorded nothing and counted nothing.
    pub async fn record_api(&self, events: Vec<ApiEvent>) -> Result<(), Closed> {
        if events.is_empty() {
            return Ok(());
        }
        let place = self.queue.reserve().await.map_err(|_| Closed)?;
        self.stats.received(events.len());
        place.send(Message::Api {
            at: Instant::now(),
            time: super::clock::now(),
            events,
        });
        Ok(())
    }

    /// Waits until what was handed over before is stored, or counted as lost.
    pub async fn flush(&self) -> Result<(), Closed> {
        let (done, wait) = oneshot::channel();
        self.queue.send(Message::Flush(done)).await.map_err(|_| Closed)?;
        wait.await.map_err(|_| Closed)
    }

    /// Records as they are made, from now on. One that falls behind misses the oldest and is told how many.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<AuditRecord>> {
        self.live.subscribe()
    }

    /// The counters.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Takes nothing more; what is queued is stored until `deadline` has passed. [`Recorder::run`] ends then.
    pub fn shut_down(&self, deadline: Duration) {
        self.stop.send_replace(Some(Instant::now() + deadline));
    }
}

#[cfg(test)]
mod tests;
