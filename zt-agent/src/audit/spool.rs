// SPDX-License-Identifier: Apache-2.0
//! The durable spool before `PostgreSQL`: every record is in a local `SQLite` store, with its place in the chain, before it
//! counts as stored; from there the [`Shipper`] takes it to the server, and it goes when the server has it.
//!
//! What was stored last is also in memory, up to a bound: as long as the server keeps up, nothing is read back.
//!
//! Exactly once: a batch is planned on disk before it is sent, so that after a crash on either side the very same batch
//! is sent again, and the server notes each with its records in one transaction. A batch never crosses a segment of the
//! store, and room is made by segments: a batch is there as a whole or gone as a whole.
//!
//! While the server is away the spool grows to its limit. Then, as [`WhenFull`] says, the oldest records go or the
//! newest are not taken; either is counted, and what the kernel decides is never held up. What was given up has its place
//! in the chain, and a signed statement takes it on the server: see [`Gap`].

mod account;
mod error;
mod lost;
mod recent;
mod shipper;
mod when_full;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use tokio::sync::{Mutex, Notify};

pub use self::account::Account;
pub use self::error::SpoolError;
use self::recent::Recent;
pub use self::shipper::Shipper;
pub use self::when_full::WhenFull;
use super::chain::Head;
use super::names::Named;
use super::postgres::Batch;
use super::record::{Entry, Kept};
use super::seal::{Cause, Checkpoint, Gap};
use super::sqlite::{self, SEGMENT_ROWS, Shipping, Store, StoreError};
use super::store::{Pruned, RingMark, Sink};

/// An open spool.
#[derive(Debug)]
pub struct Spool {
    store: Store,
    limit: u64,
    when_full: WhenFull,
    full: AtomicBool,
    state: Mutex<State>,
    recent: std::sync::Mutex<Recent>,
    account: Arc<Account>,
    more: Notify,
}

/// What was signed, each with its row in the spool.
#[derive(Debug)]
struct Statements {
    gaps: Vec<(i64, Gap)>,
    checkpoints: Vec<(i64, Checkpoint)>,
}

/// How far shipping is.
#[derive(Debug)]
struct State {
    head: Head,
    noted: Shipping,
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
        if head.seq == 0 {
            // Says before the first record whose chain this is.
            store.seal().await?;
        }
        let spool = Self {
            store,
            limit,
            when_full,
            full: AtomicBool::new(false),
            recent: std::sync::Mutex::default(),
            account: Arc::default(),
            more: Notify::new(),
            state: Mutex::new(State { head, noted }),
        };
        spool.measure().await?;
        let state = spool.state.lock().await;
        spool.moved(&state).await?;
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
            self.pass_gaps(&mut state).await?;
            let (head, mut noted) = (state.head, state.noted);
            let first = noted.shipped + 1;
            if noted.planned <= noted.shipped {
                if noted.shipped >= head.seq {
                    self.moved(&state).await?;
                    return Ok(None);
                }
                let end_of_segment =
                    first / SEGMENT_ROWS as u64 * SEGMENT_ROWS as u64 + SEGMENT_ROWS as u64 - 1;
                let gap = self.store.next_gap(first).await?.unwrap_or(u64::MAX);
                noted.planned = [head.seq, noted.shipped + most.max(1), end_of_segment, gap - 1]
                    .into_iter()
                    .fold(u64::MAX, u64::min);
                self.store.plan_shipping(&noted).await?;
                state.noted = noted;
            }
            let recent = self.recent().take(first, noted.planned);
            let found = match recent {
                Some(records) => records
                    .into_iter()
                    .map(|(number, kept)| (number, Ok(kept)))
                    .collect(),
                None => self.store.range(first, noted.planned).await?,
            };
            let there = lost::readable_from(first, &found);
            if there == noted.planned - noted.shipped {
                self.moved(&state).await?;
                let records: Vec<Kept> = found.into_iter().filter_map(|(_, kept)| kept.ok()).collect();
                if let Some(oldest) = records.first() {
                    self.account.waiting_since(oldest.entry.timestamp().0);
                }
                return Ok(Some(Batch {
                    writer: head.writer,
                    first_seq: first,
                    dropped: noted.gap,
                    records,
                }));
            }
            // Room was made for others before the agent was killed, or what follows cannot be read: what was under way
            // then is lost, unless it had arrived, which nobody can say any more.
            if there > 0 {
                noted.planned = noted.shipped + there;
                self.store.plan_shipping(&noted).await?;
                state.noted = noted;
            } else {
                self.lose_first(&mut state, &found).await?;
            }
        }
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on behind what was given up right before the next batch.
    async fn pass_gaps(&self, state: &mut State) -> Result<(), StoreError> {
        let mut noted = state.noted;
        while noted.planned <= noted.shipped
            && let Some(last) = self.store.gap_at(noted.shipped + 1).await?
        {
            noted.gap += last - noted.shipped;
            noted.shipped = last;
            noted.planned = last;
        }
        if noted != state.noted {
            self.store.note_shipping(&noted).await?;
            state.noted = noted;
        }
        Ok(())
    }

    /// The server has the batch, or never will (`refused`). It goes, a segment at a time, or when nothing else waits.
    async fn done(&self, batch: &Batch, refused: bool) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let mut noted = state.noted;
        let (before, last) = (noted.shipped, batch.last_seq());
        (noted.shipped, noted.planned, noted.gap) = (last, last, 0);
        if refused {
            noted.refused += batch.records.len() as u64;
            // The next batch tells that they are missing on purpose.
            noted.gap = batch.records.len() as u64 + batch.dropped;
            let hash = batch
                .records
                .last()
                .and_then(|kept| kept.link)
                .map(|link| link.hash);
            self.store
                .lose((batch.first_seq, last), hash, Cause::ServerRefused, &noted)
                .await?;
        } else {
            self.account.shipped(batch.records.len() as u64);
        }
        let head = self.store.head().await?;
        let segment = |shipped: u64| (shipped + 1) / SEGMENT_ROWS as u64;
        if segment(last) > segment(before) || last >= head.seq {
            self.store.discard(last, &noted).await?;
        } else {
            self.store.note_shipping(&noted).await?;
        }
        (state.noted, state.head) = (noted, head);
        self.moved(&state).await
    }

    /// The server refuses the batch for what it says: only its first half is tried next.
    async fn halve(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let mut noted = state.noted;
        noted.planned = noted.shipped + (batch.records.len() as u64 / 2).max(1);
        self.store.plan_shipping(&noted).await?;
        state.noted = noted;
        Ok(())
    }

    /// What was signed and the server does not have: statements of what was given up before an entry, and the checkpoints
    /// of what it has.
    async fn statements(&self, before: u64) -> Result<Statements, StoreError> {
        let noted = self.state.lock().await.noted;
        Ok(Statements {
            gaps: self.store.stated_gaps(before).await?,
            checkpoints: self
                .store
                .checkpoints_after(noted.checkpoint, noted.shipped)
                .await?,
        })
    }

    /// Notes that these are on the server.
    async fn stated(&self, statements: &Statements) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        let mut noted = state.noted;
        if !statements.gaps.is_empty() {
            let rows: Vec<i64> = statements.gaps.iter().map(|(row, _)| *row).collect();
            self.store.gaps_shipped(&rows, noted.shipped).await?;
        }
        if let Some((row, _)) = statements.checkpoints.last() {
            noted.checkpoint = *row;
            self.store.note_shipping(&noted).await?;
            state.noted = noted;
            // The last one stays: it says whether there is anything new to sign, and what the server has.
            self.store.forget_checkpoints(*row).await?;
        }
        Ok(())
    }

    /// Removes the oldest segment, and counts what of it was neither shipped nor is under way.
    async fn drop_oldest(&self) -> Result<u64, StoreError> {
        let mut state = self.state.lock().await;
        let Some(end) = self.store.end_of_oldest_segment().await? else {
            return Ok(0);
        };
        let mut noted = state.noted;
        // Under way is what the shipper has in memory.
        let safe = noted.planned.max(noted.shipped);
        let lost = self.store.drop_oldest(safe, end, &mut noted).await?;
        state.noted = noted;
        self.moved(&state).await?;
        if lost > 0 {
            tracing::error!(
                records = lost,
                "the spool is full (audit.maxDiskBytes): its oldest records are lost and counted"
            );
        }
        Ok(lost)
    }

    /// Tells the account how far shipping is.
    async fn moved(&self, state: &State) -> Result<(), StoreError> {
        let lost = self.store.lost_behind(state.noted.shipped).await?;
        self.account.moved(&state.noted, state.head.seq, lost);
        Ok(())
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
            // Where the ring buffer is accounted for moves on all the same, and so does the chain: these are counted, not
            // kept.
            self.store.give_up(entries, mark).await?;
            self.account.newest_dropped(entries.len() as u64);
            return Err(SpoolError::Full {
                records: entries.len(),
            });
        }
        // Nothing may be waited for behind this: it is kept, and who gives up waiting would have it kept again.
        let links = self.store.keep(entries, mark).await?;
        if let (Some(links), Some(first)) = (links, entries.first()) {
            self.recent().keep(entries, &links);
            self.account
                .stored(links.last(), entries.len() as u64, first.timestamp().0);
        }
        self.more.notify_one();
        Ok(())
    }

    async fn remember(&self, names: &[Named]) -> Result<(), SpoolError> {
        Ok(self.store.remember(names).await?)
    }

    async fn prune(&self) -> Result<Pruned, SpoolError> {
        let full = self.measure().await?;
        let mut state = self.state.lock().await;
        state.head = self.store.head().await?;
        self.moved(&state).await?;
        drop(state);
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

    fn takes_evaluations(&self) -> bool {
        self.store.takes_evaluations()
    }

    async fn seal(&self) -> Result<Option<Checkpoint>, SpoolError> {
        let sealed = self.store.seal().await?;
        if sealed.is_some() {
            self.more.notify_one();
        }
        Ok(sealed)
    }
}
