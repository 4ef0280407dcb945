// SPDX-License-Identifier: Apache-2.0
//! The one task that makes and stores records.

mod batch;
mod house;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use self::batch::Batch;
use super::{Message, Settings, Shared, Tally};
use crate::audit::id::IdSequence;
use crate::audit::join::Joining;
use crate::audit::names::NameBook;
use crate::audit::record::Entry;
use crate::audit::store::{RingMark, Sink, SinkError};

/// Makes records of what the [`super::Intake`] is given, and stores them.
pub struct Recorder<S> {
    queue: mpsc::UnboundedReceiver<Message>,
    shared: Arc<Shared>,
    store: Arc<S>,
    names: Arc<NameBook>,
    tally: Arc<dyn Tally>,
    live: broadcast::Sender<Arc<Entry>>,
    settings: Settings,
    ids: IdSequence,
    joining: Joining,
    clock_offset: i64,
    /// How many waited when the last transaction was done: those that it served, and those who had come meanwhile.
    crowd: usize,
    pruned_at: Instant,
    sealed_at: Instant,
}

/// So many records that what each transaction costs by itself is little beside what they do.
const MANY: usize = 64;

/// What became of a batch.
enum Fate {
    Stored,
    Rejected,
    Failed,
    OutOfTime,
}

impl<S: Sink> Recorder<S> {
    pub(super) fn new(
        queue: mpsc::UnboundedReceiver<Message>,
        shared: Arc<Shared>,
        store: Arc<S>,
        names: Arc<NameBook>,
        tally: Arc<dyn Tally>,
        live: broadcast::Sender<Arc<Entry>>,
        settings: Settings,
    ) -> Self {
        let (ids, now) = (IdSequence::new(), Instant::now());
        Self {
            queue,
            shared,
            store,
            names,
            tally,
            live,
            settings,
            ids,
            joining: Joining::default(),
            clock_offset: 0,
            crowd: 0,
            pruned_at: now,
            sealed_at: now,
        }
    }

    /// Works until [`super::Intake::shut_down`], or until every [`super::Intake`] is gone; then stores what is left.
    pub async fn run(mut self) {
        let mut stopping = false;
        let mut stop = self.shared.stop.subscribe();
        self.count_breaks();
        self.look_at_damage();
        loop {
            let first = tokio::select! {
                message = self.queue.recv() => message,
                () = asked(&mut stop), if !stopping => {
                    stopping = true;
                    // From here on the queue only empties: `recv` ends with what was sent before.
                    self.close();
                    continue;
                }
                () = tokio::time::sleep(self.settings.prune_every) => {
                    self.keep_house().await;
                    continue;
                }
            };
            let Some(first) = first else { break };
            let mut batch = Batch::default();
            self.joining.begin();
            self.take(first, &mut batch);
            self.fill(&mut batch).await;
            self.store_batch(batch).await;
            if self.pruned_at.elapsed() >= self.settings.prune_every {
                self.keep_house().await;
            }
        }
        self.save_names().await;
        self.seal().await;
        self.shared.stats.waiting_since(None);
    }

    /// Takes nothing more.
    fn close(&mut self) {
        self.queue.close();
        self.shared.room.close();
        self.shared.node_room.close();
        self.shared.api_room.close();
    }

    /// Waits a moment for more, so that one transaction serves many records. Where somebody waits for the answer, only
    /// until as many do as are likely to come: those who ask again, or half of them where they are many, so that the
    /// others' questions are read while the store works. If they do not come, it is for a short moment. Where all that
    /// there is are denials that repeat, it is for a long one, until something else comes.
    async fn fill(&mut self, batch: &mut Batch) {
        let (shared, mut since) = (Arc::clone(&self.shared), Instant::now());
        // One for all messages that it waits for.
        let mut alarm = std::pin::pin!(tokio::time::sleep_until(since));
        while !batch.is_full(&self.settings) && batch.flushes.is_empty() && !self.queue.is_closed() {
            let called = shared.hurry.called();
            let repeats = batch.only_repeats();
            let linger = match batch.stored.len() {
                0 if repeats && !shared.hurry.is_on() => self.settings.repeats_linger,
                0 => self.settings.linger,
                waiting if waiting < self.quorum() => self.settings.answer_linger,
                _ => break,
            };
            if alarm.deadline() != since + linger {
                alarm.as_mut().reset(since + linger);
            }
            let message = tokio::select! {
                biased;
                message = self.queue.recv() => message,
                () = called, if repeats => continue,
                () = &mut alarm => break,
            };
            match message {
                Some(message) => self.take(message, batch),
                None => return,
            }
            if repeats && !batch.only_repeats() {
                since = Instant::now();
            }
        }
        while !batch.is_full(&self.settings) {
            let Ok(message) = self.queue.try_recv() else {
                break;
            };
            self.take(message, batch);
        }
    }

    /// For how many one transaction is worth its while.
    const fn quorum(&self) -> usize {
        if self.crowd < 2 * MANY {
            self.crowd
        } else {
            self.crowd / 2
        }
    }

    /// Stores a batch, however long it takes, and counts what became of it.
    async fn store_batch(&mut self, mut batch: Batch) {
        let (records, count) = (batch.records.len(), batch.decisions);
        let mut fate = Fate::Stored;
        if records > 0 {
            for record in batch.repeats.iter().filter_map(|at| batch.records.get(*at)) {
                self.show(record);
            }
            fate = self
                .try_to_store(&batch.records, batch.mark, &mut batch.flushes)
                .await;
            let stats = &self.shared.stats;
            match fate {
                Fate::Stored => stats.stored(count, records),
                Fate::Rejected => stats.lost_to_rejection(count),
                Fate::Failed => stats.lost_to_failure(count),
                // What the ring buffer has is left there for the next agent.
                Fate::OutOfTime => stats.lost_to_shutdown(batch.elsewhere),
            }
        }
        self.shared.stats.waiting_since(None);
        self.look_at_damage();
        if !matches!(fate, Fate::OutOfTime) {
            self.settle(batch.mark);
        }
        self.look_at_share();
        drop(std::mem::take(&mut batch.room));
        let is_kept = matches!(fate, Fate::Stored) && self.is_on_disk(&mut batch).await;
        self.crowd = match batch.stored.len() {
            0 => 0,
            served => served + self.queue.len(),
        };
        if is_kept {
            answer(batch.stored);
        }
        answer(batch.flushes);
    }

    /// Whether who waits for the answer may have it: what was stored for it, and all before, is on disk. What the kernel decided
    /// is stored by then, and waits for the disk nowhere else.
    async fn is_on_disk(&mut self, batch: &mut Batch) -> bool {
        if batch.stored.is_empty() {
            return true;
        }
        let store = Arc::clone(&self.store);
        match self.patiently(store.sync(), None, &mut batch.flushes).await {
            Some(Ok(())) => true,
            Some(Err(error)) => {
                self.shared.stats.failed();
                tracing::error!(%error, answers = batch.stored.len(), "records are stored, and would not survive a crash of the machine: who waits for them is told that they may be lost");
                false
            }
            None => false,
        }
    }

    /// Looks whether evaluations may take more of the store.
    fn look_at_share(&self) {
        let full = !self.store.takes_evaluations();
        if self.shared.share_full.swap(full, Ordering::Relaxed) != full {
            if full {
                tracing::error!(
                    "evaluations over the API have their share of the audit trail (audit.apiShare): they are refused"
                );
            } else {
                tracing::info!("evaluations over the API have room in the audit trail again");
            }
        }
    }

    /// What lies before the mark is accounted for.
    fn settle(&self, mark: Option<RingMark>) {
        if let Some(mark) = mark {
            self.shared.settled.send_if_modified(|settled| {
                let further = *settled < mark.position;
                *settled = (*settled).max(mark.position);
                further
            });
        }
    }

    fn pressed(&self) -> bool {
        self.shared.pressed.load(Ordering::Relaxed)
    }

    /// Tries until it works, until it never will, until the ring buffer fills up behind it, or until the deadline.
    async fn try_to_store(
        &mut self,
        records: &[Entry],
        mark: Option<RingMark>,
        flushes: &mut Vec<oneshot::Sender<()>>,
    ) -> Fate {
        let mut wait = self.settings.retry;
        loop {
            let store = Arc::clone(&self.store);
            let error = match self.patiently(store.append(records, mark), mark, flushes).await {
                None => return Fate::OutOfTime,
                Some(Ok(())) => return Fate::Stored,
                Some(Err(error)) => error,
            };
            self.shared.stats.failed();
            let records = records.len();
            if !error.is_transient() {
                tracing::error!(%error, records, "the audit store refuses a batch: its records are lost and counted");
                return Fate::Rejected;
            }
            if self.pressed() {
                tracing::error!(%error, records, "the audit store fails and the ring buffer fills up: the oldest records are lost and counted");
                return Fate::Failed;
            }
            tracing::warn!(%error, records, "the audit store fails: its records are kept and tried again");
            if self.before_deadline(tokio::time::sleep(wait)).await.is_none() {
                return Fate::OutOfTime;
            }
            wait = (wait * 2).min(self.settings.retry * 20);
        }
    }

    /// Waits for the store. Once that takes longer than it may, and while the ring buffer is filling up, what waits
    /// behind is given up, counted, so that room is made for what must reach the node: refused sockets, notices. The
    /// batch that the store hangs on keeps its fate; only its place in the ring buffer is given back.
    async fn patiently<T>(
        &mut self,
        work: impl Future<Output = T>,
        mark: Option<RingMark>,
        flushes: &mut Vec<oneshot::Sender<()>>,
    ) -> Option<T> {
        let shared = Arc::clone(&self.shared);
        let mut work = std::pin::pin!(before(&shared, work));
        let until = Instant::now() + self.settings.patience;
        if let Ok(result) = timeout_at(until, &mut work).await {
            return result;
        }
        tracing::error!("the audit store hangs: records wait in the ring buffer until it is half full");
        let mut look = tokio::time::interval(self.settings.retry);
        loop {
            tokio::select! {
                biased;
                result = &mut work => return result,
                _ = look.tick() => {}
            }
            if !self.pressed() {
                continue;
            }
            self.settle(mark);
            while let Ok(message) = self.queue.try_recv() {
                self.give_up(message, flushes);
            }
        }
    }

    fn give_up(&self, message: Message, flushes: &mut Vec<oneshot::Sender<()>>) {
        match message {
            Message::Decisions { decisions, mark, .. } => {
                self.shared.stats.lost_to_failure(decisions.len());
                self.settle(mark);
            }
            Message::Api { events, .. } => self.shared.stats.lost_to_failure(events.len()),
            Message::Flush(done) => flushes.push(done),
        }
    }

    /// The result, or `None` when a shutdown's deadline came first.
    async fn before_deadline<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        before(&self.shared, work).await
    }
}

/// Completes when the pipeline is to stop.
async fn asked(stop: &mut watch::Receiver<Option<Instant>>) {
    if stop.wait_for(Option::is_some).await.is_err() {
        // Without a sender nobody will ask.
        std::future::pending::<()>().await;
    }
}

/// Tells those who wait that what they waited for has its fate.
fn answer(flushes: Vec<oneshot::Sender<()>>) {
    for done in flushes {
        // An error means that nobody waits any more.
        let _ = done.send(());
    }
}

/// The result, or `None` when a shutdown's deadline came first.
async fn before<T>(shared: &Shared, work: impl Future<Output = T>) -> Option<T> {
    let mut stop = shared.stop.subscribe();
    let deadline = async {
        // Without a sender there is no deadline either.
        let at = stop.wait_for(Option::is_some).await.ok().and_then(|at| *at);
        match at {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        result = work => Some(result),
        () = deadline => None,
    }
}
