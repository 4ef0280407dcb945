// SPDX-License-Identifier: Apache-2.0
//! The one task that makes and stores records.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::{ApiEvent, Message, Settings, Stats, Tally};
use crate::audit::clock;
use crate::audit::convert::{self, Context};
use crate::audit::id::IdSequence;
use crate::audit::names::NameBook;
use crate::audit::record::{AuditRecord, Timestamp};
use crate::audit::store::{Sink, SinkError};

/// Makes records of what the [`super::Intake`] is given, and stores them.
pub struct Recorder<S> {
    queue: mpsc::Receiver<Message>,
    stop: watch::Receiver<Option<Instant>>,
    store: Arc<S>,
    names: Arc<NameBook>,
    tally: Arc<dyn Tally>,
    live: broadcast::Sender<Arc<AuditRecord>>,
    stats: Arc<Stats>,
    settings: Settings,
    ids: IdSequence,
    clock_offset: i64,
    pruned_at: Instant,
}

/// Records that are to be stored together.
#[derive(Default)]
struct Batch {
    records: Vec<AuditRecord>,
    oldest: Option<Instant>,
    flushes: Vec<oneshot::Sender<()>>,
}

/// What became of a batch.
enum Fate {
    Stored,
    Rejected,
    Failed,
    OutOfTime,
}

impl<S: Sink> Recorder<S> {
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, by the function that makes the other ends"
    )]
    pub(super) fn new(
        queue: mpsc::Receiver<Message>,
        stop: watch::Receiver<Option<Instant>>,
        store: Arc<S>,
        names: Arc<NameBook>,
        tally: Arc<dyn Tally>,
        live: broadcast::Sender<Arc<AuditRecord>>,
        stats: Arc<Stats>,
        settings: Settings,
    ) -> Self {
        let (ids, pruned_at) = (IdSequence::new(), Instant::now());
        Self {
            queue,
            stop,
            store,
            names,
            tally,
            live,
            stats,
            settings,
            ids,
            clock_offset: 0,
            pruned_at,
        }
    }

    /// Works until [`super::Intake::shut_down`], or until every [`super::Intake`] is gone; then stores what is left.
    pub async fn run(mut self) {
        let mut stopping = false;
        loop {
            let first = tokio::select! {
                message = self.queue.recv() => message,
                changed = self.stop.changed(), if !stopping => {
                    stopping = true;
                    if changed.is_ok() {
                        // From here on the queue only empties: `recv` ends with what was sent before.
                        self.queue.close();
                    }
                    continue;
                }
                () = tokio::time::sleep(self.settings.prune_every) => {
                    self.keep_house().await;
                    continue;
                }
            };
            let Some(first) = first else { break };
            let mut batch = Batch::default();
            self.take(first, &mut batch);
            self.fill(&mut batch).await;
            self.store_batch(batch).await;
            if self.pruned_at.elapsed() >= self.settings.prune_every {
                self.keep_house().await;
            }
        }
        self.save_names().await;
        self.stats.waiting_since(None);
    }

    /// Waits a moment for more, so that one transaction serves many records.
    async fn fill(&mut self, batch: &mut Batch) {
        let until = Instant::now() + self.settings.linger;
        while batch.records.len() < self.settings.batch && batch.flushes.is_empty() && !self.queue.is_closed()
        {
            match timeout_at(until, self.queue.recv()).await {
                Ok(Some(message)) => self.take(message, batch),
                Ok(None) | Err(_) => return,
            }
        }
        while batch.records.len() < self.settings.batch {
            let Ok(message) = self.queue.try_recv() else {
                return;
            };
            self.take(message, batch);
        }
    }

    /// Makes the records of a message.
    fn take(&mut self, message: Message, batch: &mut Batch) {
        match message {
            Message::Decisions { at, decisions } => {
                self.begin(at, batch);
                match clock::realtime_offset() {
                    Ok(offset) => self.clock_offset = offset,
                    Err(error) => tracing::error!(%error, "cannot read the clock: keeping its last offset"),
                }
                let (context, names) = (self.context(), self.names.load());
                batch.records.reserve(decisions.len());
                for decision in &decisions {
                    let id = self.ids.next(convert::time_of(decision, &context).0);
                    let record = convert::from_decision(decision, &**names, &context, id);
                    self.show(&record);
                    batch.records.push(record);
                }
            }
            Message::Api { at, time, events } => {
                self.begin(at, batch);
                let context = self.context();
                for event in events {
                    let (id, time) = (self.ids.next(time), Timestamp(time));
                    let record = match event {
                        ApiEvent::Evaluated(evaluation) => {
                            convert::from_evaluation(evaluation, &context, time, id)
                        }
                        ApiEvent::ModeChanged {
                            observe_all,
                            caller,
                            revision,
                        } => convert::from_mode_change(observe_all, caller, revision, &context, time, id),
                    };
                    self.show(&record);
                    batch.records.push(record);
                }
            }
            Message::Flush(done) => batch.flushes.push(done),
        }
    }

    fn begin(&self, at: Instant, batch: &mut Batch) {
        if batch.oldest.is_none() {
            batch.oldest = Some(at);
            self.stats.waiting_since(Some(at));
        }
    }

    fn show(&self, record: &AuditRecord) {
        self.tally.recorded(record);
        if self.live.receiver_count() > 0 {
            // An error means that the last watcher left meanwhile.
            let _ = self.live.send(Arc::new(record.clone()));
        }
    }

    fn context(&self) -> Context {
        Context {
            cluster: Arc::clone(&self.settings.cluster),
            node: Arc::clone(&self.settings.node),
            clock_offset: self.clock_offset,
        }
    }

    /// Stores a batch, however long it takes, and counts what became of it.
    async fn store_batch(&mut self, batch: Batch) {
        let count = batch.records.len();
        if count > 0 {
            match self.try_to_store(&batch.records).await {
                Fate::Stored => self.stats.stored(count),
                Fate::Rejected => self.stats.lost_to_rejection(count),
                Fate::Failed => self.stats.lost_to_failure(count),
                Fate::OutOfTime => self.stats.lost_to_shutdown(count),
            }
        }
        self.stats.waiting_since(None);
        for done in batch.flushes {
            // An error means that nobody waits any more.
            let _ = done.send(());
        }
    }

    /// Tries until it works, until it never will, until the queue is full behind it, or until the deadline.
    async fn try_to_store(&mut self, records: &[AuditRecord]) -> Fate {
        let mut wait = self.settings.retry;
        loop {
            let error = match self.before_deadline(self.store.append(records)).await {
                None => return Fate::OutOfTime,
                Some(Ok(())) => return Fate::Stored,
                Some(Err(error)) => error,
            };
            self.stats.failed();
            let records = records.len();
            if !error.is_transient() {
                tracing::error!(%error, records, "the audit store refuses a batch: its records are lost and counted");
                return Fate::Rejected;
            }
            if self.queue.capacity() == 0 {
                tracing::error!(%error, records, "the audit store fails and the queue is full: the oldest records are lost and counted");
                return Fate::Failed;
            }
            tracing::warn!(%error, records, "the audit store fails: its records are kept and tried again");
            if self.before_deadline(tokio::time::sleep(wait)).await.is_none() {
                return Fate::OutOfTime;
            }
            wait = (wait * 2).min(self.settings.retry * 20);
        }
    }

    /// The result, or `None` when a shutdown's deadline came first.
    async fn before_deadline<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut stop = self.stop.clone();
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

    /// Saves new names and enforces the store's limits, as long as no decision waits.
    async fn keep_house(&mut self) {
        self.save_names().await;
        loop {
            let Some(result) = self.before_deadline(self.store.prune()).await else {
                return;
            };
            match result {
                Ok(pruned) => {
                    self.stats.pruned(pruned.for_space, pruned.for_age);
                    // Space is made even under load: records must not fill the disk. Age can wait for a quiet moment.
                    if !pruned.more || (pruned.for_space == 0 && !self.queue.is_empty()) {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the audit store cannot make room");
                    break;
                }
            }
        }
        self.pruned_at = Instant::now();
    }

    async fn save_names(&self) {
        let names = self.names.take_unsaved();
        if names.is_empty() {
            return;
        }
        let saved = self.before_deadline(self.store.remember(&names)).await;
        if let Some(Err(error)) = saved {
            tracing::warn!(%error, "the audit store cannot keep names: tried again later");
            self.names.put_back(names);
        }
    }
}
