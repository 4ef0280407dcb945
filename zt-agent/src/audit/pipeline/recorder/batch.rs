// SPDX-License-Identifier: Apache-2.0
//! Messages → the records of one batch.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::super::{ApiEvent, Message, Settings};
use super::Recorder;
use crate::audit::clock;
use crate::audit::convert::{self, Context};
use crate::audit::decode::Decision;
use crate::audit::join::Place;
use crate::audit::names::OfBatch;
use crate::audit::record::{Entry, Latency, Timestamp};
use crate::audit::store::{RingMark, Sink};

/// Records that are to be stored together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) records: Vec<Entry>,
    /// Decisions and changes that they stand for.
    pub(super) decisions: usize,
    /// Which of them are denials that repeat, so that others may join. Nobody has been shown these yet.
    pub(super) repeats: Vec<usize>,
    pub(super) oldest: Option<Instant>,
    pub(super) flushes: Vec<oneshot::Sender<()>>,
    /// Those who are answered when the records are stored.
    pub(super) stored: Vec<oneshot::Sender<()>>,
    /// Up to where the batch goes in the ring buffer.
    pub(super) mark: Option<RingMark>,
    /// Records that no ring buffer has.
    pub(super) elsewhere: usize,
    /// Held until the batch has its fate.
    pub(super) room: Room,
}

impl Batch {
    /// Whether the store has enough to do, or the ring buffer is held for long enough.
    pub(super) const fn is_full(&self, settings: &Settings) -> bool {
        self.records.len() >= settings.batch || self.decisions >= 2 * settings.batch
    }

    /// Whether all that it has are denials that repeat.
    pub(super) const fn only_repeats(&self) -> bool {
        !self.repeats.is_empty() && self.repeats.len() == self.records.len()
    }
}

/// Places in the queues, a permit for each queue.
#[derive(Default)]
pub(super) struct Room(Vec<OwnedSemaphorePermit>);

impl Room {
    fn add(&mut self, permit: OwnedSemaphorePermit) {
        let mut held = self.0.iter_mut();
        match held.find(|held| Arc::ptr_eq(held.semaphore(), permit.semaphore())) {
            // Given back at once: each time takes a lock.
            Some(held) => held.merge(permit),
            None => self.0.push(permit),
        }
    }
}

impl<S: Sink> Recorder<S> {
    /// Makes the records of a message.
    pub(super) fn take(&mut self, message: Message, batch: &mut Batch) {
        match message {
            Message::Decisions {
                at,
                decisions,
                mark,
                room,
            } => {
                batch.room.add(room);
                match mark {
                    Some(mark) => batch.mark = Some(mark),
                    None => batch.elsewhere += decisions.len(),
                }
                if decisions.is_empty() {
                    return;
                }
                self.begin(at, batch);
                match clock::realtime_offset() {
                    Ok(offset) => self.clock_offset = offset,
                    Err(error) => tracing::error!(%error, "cannot read the clock: keeping its last offset"),
                }
                let (context, names) = (self.context(), self.names.load());
                let names = OfBatch::new(&names);
                for decision in &decisions {
                    // What the node did itself is no attempt of anybody.
                    let place = match mark {
                        Some(_) => self.joining.place(decision, batch.records.len()),
                        None => Place::Alone,
                    };
                    if self.has_joined(decision, place, batch) {
                        continue;
                    }
                    let id = self.ids.next(convert::time_of(decision, &context).0);
                    let record = convert::from_decision(decision, &names, &context, id);
                    self.tally.recorded(&record);
                    let record = Entry::Decision(record);
                    match place {
                        Place::Alone => self.show(&record),
                        // How often is known when the batch is over.
                        Place::Opens | Place::Joins(_) => batch.repeats.push(batch.records.len()),
                    }
                    batch.records.push(record);
                    batch.decisions += 1;
                }
            }
            Message::Api {
                at,
                time,
                events,
                room,
                stored,
            } => {
                // Where nobody waits nobody is told.
                if !stored.is_closed() {
                    batch.stored.push(stored);
                }
                batch.room.add(room);
                batch.elsewhere += events.len();
                self.begin(at, batch);
                let context = self.context();
                for event in events {
                    let (id, time) = (self.ids.next(time), Timestamp(time));
                    let record = match event {
                        ApiEvent::Evaluated(evaluation) => {
                            Entry::Decision(convert::from_evaluation(evaluation, &context, time, id))
                        }
                        ApiEvent::ModeChanged {
                            observe_all,
                            caller,
                            revision,
                        } => convert::from_mode_change(observe_all, caller, revision, &context, time, id),
                        ApiEvent::ModesChanged {
                            caller,
                            what,
                            revision,
                        } => convert::from_modes_change(caller, what, revision, &context, time, id),
                        ApiEvent::PolicyChanged(change) => {
                            convert::from_policy_change(change, &context, time, id)
                        }
                        ApiEvent::IdentityChanged(change) => {
                            convert::from_identity_change(change, &context, time, id)
                        }
                    };
                    if let Entry::Decision(decision) = &record {
                        self.tally.recorded(decision);
                    }
                    self.show(&record);
                    batch.records.push(record);
                    batch.decisions += 1;
                }
            }
            Message::Flush(done) => batch.flushes.push(done),
        }
    }

    fn begin(&self, at: Instant, batch: &mut Batch) {
        if batch.oldest.is_none() {
            batch.oldest = Some(at);
            self.shared.stats.waiting_since(Some(at));
        }
    }

    /// Whether a decision needs no record of its own: it has joined one of the batch.
    fn has_joined(&self, decision: &Decision, place: Place, batch: &mut Batch) -> bool {
        let Place::Joins(at) = place else { return false };
        let Some(Entry::Decision(record)) = batch.records.get_mut(at) else {
            return false;
        };
        record.count += 1;
        batch.decisions += 1;
        self.tally.joined(record, Latency(u64::from(decision.latency)));
        true
    }

    /// Shows a record to whoever watches.
    pub(super) fn show(&self, record: &Entry) {
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
}
