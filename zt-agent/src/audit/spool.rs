// SPDX-License-Identifier: Apache-2.0
//! The durable spool before `PostgreSQL`: every record is in a local `SQLite` store, with its place in the chain, before it
//! counts as stored; from there the [`Shipper`] takes it to the server, and it goes when the server has it.
//!
//! Exactly once: a batch is planned on disk before it is sent, so that after a crash on either side the very same batch
//! is sent again, and the server notes each with its records in one transaction. A batch never crosses a segment of the
//! store, and room is made by segments: a batch is there as a whole or gone as a whole.
//!
//! While the server is away the spool grows to its limit. Then, as [`WhenFull`] says, the oldest records go or the
//! newest are not taken; either is counted, and what the kernel decides is never held up.

mod account;
mod shipper;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Mutex, Notify};

pub use self::account::Account;
pub use self::shipper::Shipper;
use super::chain::Head;
use super::names::Named;
use super::postgres::Batch;
use super::record::{Entry, Kept};
use super::seal::Checkpoint;
use super::sqlite::{self, SEGMENT_ROWS, Shipping, Store, StoreError};
use super::store::{Pruned, RingMark, Sink, SinkError};

/// Which records are lost when the spool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Those that have waited longest.
    #[default]
    Oldest,
    /// Those that come.
    Newest,
}

impl WhenFull {
    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Oldest => "oldest",
            Self::Newest => "newest",
        }
    }

    /// The one with that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Oldest, Self::Newest]
            .into_iter()
            .find(|policy| policy.name() == name)
    }
}

/// Why the spool did not keep a batch.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no room, and the newest records are what is given up.
    #[error(
        "the spool is full (audit.maxDiskBytes) and audit.whenFull is newest: {records} records are lost and counted"
    )]
    Full {
        /// How many.
        records: usize,
    },
}

impl SinkError for SpoolError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Full { .. } => false,
        }
    }
}

/// An open spool.
#[derive(Debug)]
pub struct Spool {
    store: Store,
    limit: u64,
    when_full: WhenFull,
    full: AtomicBool,
    state: Mutex<State>,
    account: Arc<Account>,
    more: Notify,
}

/// How far shipping is.
#[derive(Debug)]
struct State {
    head: Head,
    noted: Shipping,
    /// Room was made up to this record while the batch that is under way was in memory.
    dropped_to: u64,
}

impl Spool {
    /// Opens the spool; `settings` are those of its file. Room is made as `when_full` says.
    pub async fn open(settings: sqlite::Settings, when_full: WhenFull) -> Result<Self, StoreError> {
        let limit = settings.max_disk_bytes;
        let store = Store::open(sqlite::Settings {
            retention_days: None,
            ..settings
        })
        .await?;
        let (head, noted) = (store.head().await?, store.shipping().await?);
        let spool = Self {
            store,
            limit,
            when_full,
            full: AtomicBool::new(false),
            account: Arc::default(),
            more: Notify::new(),
            state: Mutex::new(State {
                head,
                noted,
                dropped_to: 0,
            }),
        };
        spool.measure().await?;
        let state = spool.state.lock().await;
        spool.account.moved(&state.noted, head.seq);
        drop(state);
        Ok(spool)
    }

    /// The numbers.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Waits until what is stored now has been shipped, dropped or refused.
    pub async fn shipped_so_far(&self) {
        let Ok(head) = self.store.head().await else { return };
        let mut moved = self.account.watch();
        // An error means that the account is gone, and with it the spool.
        let _ = moved.wait_for(|shipped| *shipped >= head.seq).await;
    }

    /// The file.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Closes the file.
    pub async fn close(self) -> Result<(), StoreError> {
        self.store.close().await
    }

    /// The batch to be sent: the one that was planned before, or else the next, of at most `most` records.
    async fn next_batch(&self, most: u64) -> Result<Option<Batch>, StoreError> {
        let mut state = self.state.lock().await;
        loop {
            state.head = self.store.head().await?;
            let (head, mut noted) = (state.head, state.noted);
            if noted.planned <= noted.shipped {
                if noted.shipped >= head.seq {
                    self.account.moved(&noted, head.seq);
                    self.account.waiting_since(None);
                    return Ok(None);
                }
                let end_of_segment =
                    (noted.shipped + 1) / SEGMENT_ROWS as u64 * SEGMENT_ROWS as u64 + SEGMENT_ROWS as u64 - 1;
                noted.planned = head.seq.min(noted.shipped + most.max(1)).min(end_of_segment);
                self.store.note_shipping(&noted).await?;
                state.noted = noted;
            }
            let first = noted.shipped + 1;
            let records = self.store.range(first, noted.planned).await?;
            if records.len() as u64 == noted.planned - noted.shipped {
                self.account.moved(&noted, head.seq);
                self.account
                    .waiting_since(records.first().map(|(_, kept)| kept.entry.timestamp().0));
                let records: Vec<Kept> = records.into_iter().map(|(_, kept)| kept).collect();
                return Ok(Some(Batch {
                    writer: head.writer,
                    first_seq: first,
                    dropped: noted.gap,
                    records,
                }));
            }
            // Room was made for others before the agent was killed: what was not shipped by then is gone, unless the
            // batch had arrived, which nobody can say any more.
            let present = self
                .store
                .range(first, head.seq.min(first + SEGMENT_ROWS as u64))
                .await?;
            let next = present.first().map_or(head.seq + 1, |(number, _)| *number);
            let lost = next.max(noted.planned + 1) - first;
            noted.dropped += lost;
            noted.gap += lost;
            noted.shipped += lost;
            noted.planned = noted.shipped;
            tracing::error!(
                records = lost,
                "records that waited in the spool are gone: they are lost and counted"
            );
            self.store.note_shipping(&noted).await?;
            state.noted = noted;
        }
    }

    /// The server has the batch, or never will (`refused`). It goes, a segment at a time, or when nothing else waits.
    async fn done(&self, batch: &Batch, refused: bool) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let mut noted = state.noted;
        let last = batch.last_seq();
        let dropped = state.dropped_to.saturating_sub(last);
        noted.shipped = last + dropped;
        noted.planned = noted.shipped;
        noted.gap = dropped;
        if refused {
            noted.refused += batch.records.len() as u64;
            // The next batch tells that they are missing on purpose.
            noted.gap += batch.records.len() as u64 + batch.dropped;
        } else {
            self.account.shipped(batch.records.len() as u64);
        }
        let head = self.store.head().await?;
        let segment_done = (noted.shipped + 1).is_multiple_of(SEGMENT_ROWS as u64);
        if segment_done || noted.shipped >= head.seq {
            self.store.discard(noted.shipped, &noted).await?;
        } else {
            self.store.note_shipping(&noted).await?;
        }
        state.noted = noted;
        state.dropped_to = 0;
        state.head = head;
        self.account.moved(&noted, head.seq);
        Ok(())
    }

    /// The server refuses the batch for what it says: only its first half is tried next.
    async fn halve(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let mut noted = state.noted;
        noted.planned = noted.shipped + (batch.records.len() as u64 / 2).max(1);
        self.store.note_shipping(&noted).await?;
        state.noted = noted;
        Ok(())
    }

    /// Notes that the checkpoints up to this row of their table are on the server.
    async fn sealed(&self, row: i64) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let mut noted = state.noted;
        noted.checkpoint = row;
        self.store.note_shipping(&noted).await?;
        state.noted = noted;
        // The last one stays: it says whether there is anything new to sign.
        self.store.forget_checkpoints(row).await
    }

    async fn checkpoint_row(&self) -> i64 {
        self.state.lock().await.noted.checkpoint
    }

    /// Removes the oldest segment, and counts what of it was neither shipped nor is under way.
    async fn drop_oldest(&self) -> Result<u64, StoreError> {
        let mut state = self.state.lock().await;
        let Some(end) = self.store.end_of_oldest_segment().await? else {
            return Ok(0);
        };
        let mut noted = state.noted;
        // Under way is what the shipper has in memory.
        let safe = noted.planned.max(noted.shipped).max(state.dropped_to);
        let lost = end.saturating_sub(safe);
        noted.dropped += lost;
        if noted.planned > noted.shipped {
            state.dropped_to = state.dropped_to.max(end);
        } else if lost > 0 {
            noted.shipped = end;
            noted.planned = end;
            noted.gap += lost;
        }
        self.store.discard(end, &noted).await?;
        state.noted = noted;
        self.account.moved(&noted, state.head.seq);
        if lost > 0 {
            tracing::error!(
                records = lost,
                "the spool is full (audit.maxDiskBytes): its oldest records are lost and counted"
            );
        }
        Ok(lost)
    }

    /// Looks how much of the file is in use.
    async fn measure(&self) -> Result<bool, StoreError> {
        let used = self.store.used_bytes().await?;
        self.account.used(used);
        // An eighth is left to the write-ahead log and to what comes in until the next look.
        Ok(used > self.limit - self.limit / 8)
    }
}

impl Sink for Spool {
    type Error = SpoolError;

    async fn append(&self, entries: &[Entry], mark: Option<RingMark>) -> Result<(), SpoolError> {
        if self.full.load(Ordering::Relaxed) && !entries.is_empty() {
            // Where the ring buffer is accounted for moves on all the same: these are counted, not kept.
            self.store.append(&[], mark).await?;
            self.account.newest_dropped(entries.len() as u64);
            return Err(SpoolError::Full {
                records: entries.len(),
            });
        }
        self.store.append(entries, mark).await?;
        self.account.stored(entries.len() as u64);
        self.more.notify_one();
        Ok(())
    }

    async fn remember(&self, names: &[Named]) -> Result<(), SpoolError> {
        Ok(self.store.remember(names).await?)
    }

    async fn prune(&self) -> Result<Pruned, SpoolError> {
        let full = self.measure().await?;
        let mut pruned = Pruned::default();
        if full && self.when_full == WhenFull::Oldest {
            pruned.for_space = self.drop_oldest().await?;
            pruned.more = pruned.for_space > 0;
        }
        if full && self.when_full == WhenFull::Newest && !self.full.swap(true, Ordering::Relaxed) {
            tracing::error!("the spool is full (audit.maxDiskBytes): records that come are lost and counted");
        }
        if !full && self.full.swap(false, Ordering::Relaxed) {
            tracing::info!("the spool has room again");
        }
        self.store.shrink(self.limit).await?;
        Ok(pruned)
    }

    async fn seal(&self) -> Result<Option<Checkpoint>, SpoolError> {
        let sealed = self.store.seal().await?;
        if sealed.is_some() {
            self.more.notify_one();
        }
        Ok(sealed)
    }
}
