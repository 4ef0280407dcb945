// SPDX-License-Identifier: Apache-2.0
//! The durable spool before `PostgreSQL`: every record is in a local `SQLite` store, with its place in the chain, before it
//! counts as stored; from there the [`Shipper`] takes it to the server, and it goes when the server has it.
//!
//! What was stored last is also in memory, up to a bound: as long as the server keeps up, nothing is read back. While the
//! server works on a batch, the next one is read and made ready, and what has been shipped is removed.
//!
//! Exactly once: a batch is planned on disk before it is sent, so that after a crash on either side the very same batch
//! is sent again, and the server notes each with its records in one transaction. A batch never crosses a segment of the
//! store, and room is made by segments: a batch is there as a whole or gone as a whole.
//!
//! While the server is away the spool grows to its limit. Then, as [`WhenFull`] says, the oldest records go or the
//! newest are not taken; either is counted, and what the kernel decides is never held up. What was given up has its place
//! in the chain, and a signed statement takes it on the server: see [`Gap`].

mod account;
mod anew;
mod batches;
mod error;
mod lost;
mod recent;
mod shipper;
mod when_full;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use tokio::sync::{Mutex, MutexGuard, Notify};

pub use self::account::Account;
use self::account::Position;
pub use self::error::SpoolError;
use self::recent::Recent;
pub use self::shipper::Shipper;
pub use self::when_full::WhenFull;
use super::chain::Head;
use super::intent::Intent;
use super::names::Named;
use super::record::Entry;
use super::seal::{Checkpoint, Gap};
use super::sqlite::{self, Before, Shipping, Store, StoreError, Use};
use super::store::{Pruned, PutAside, RingMark, Sink};

/// An open spool.
#[derive(Debug)]
pub struct Spool {
    store: Store,
    limit: u64,
    when_full: WhenFull,
    full: AtomicBool,
    state: Mutex<State>,
    /// Held by who appends, so that no file goes meanwhile.
    turn: Mutex<()>,
    /// Held by the shipper while something is under way, so that no file goes meanwhile.
    flight: Mutex<()>,
    recent: std::sync::Mutex<Recent>,
    account: Arc<Account>,
    more: Notify,
}

/// What was signed, each with its row in the spool.
#[derive(Debug)]
struct Statements {
    gaps: Vec<(i64, Gap)>,
    checkpoints: Vec<(i64, Checkpoint)>,
    /// Of spools that were in the place of this one.
    before: Vec<(i64, Before)>,
}

impl Statements {
    const fn is_empty(&self) -> bool {
        self.gaps.is_empty() && self.checkpoints.is_empty() && self.before.is_empty()
    }

    fn gaps(&self) -> Vec<Gap> {
        let before = self.before.iter().map(|(_, before)| before.gap.clone());
        before
            .chain(self.gaps.iter().map(|(_, gap)| gap.clone()))
            .collect()
    }

    fn checkpoints(&self) -> Vec<Checkpoint> {
        let before = self.before.iter();
        let before = before.filter_map(|(_, before)| before.checkpoint.clone());
        before
            .chain(self.checkpoints.iter().map(|(_, checkpoint)| checkpoint.clone()))
            .collect()
    }
}

/// How far shipping is.
#[derive(Debug)]
struct State {
    /// Which of the files that the store has had this is of.
    file: u64,
    head: Head,
    noted: Shipping,
    /// Up to here what was shipped has been removed.
    tidied: u64,
}

impl State {
    /// What a file says that is there; its first checkpoint, where it has none.
    async fn of(store: &Store) -> Result<Self, StoreError> {
        let file = store.times_replaced();
        let (head, noted) = (store.head().await?, store.shipping().await?);
        if head.seq == 0 {
            // Says before the first record whose chain this is.
            match store.seal().await {
                // What shows it is kept and counted; nobody's start waits for that to be looked at.
                Err(error @ StoreError::Broken { .. }) => {
                    tracing::error!(%error, "the audit trail is broken");
                }
                sealed => drop(sealed?),
            }
        }
        Ok(Self {
            file,
            head,
            noted,
            // What was left is removed with the first segment.
            tidied: 0,
        })
    }
}

impl Spool {
    /// Opens the spool; `settings` are those of its file. Room is made as `when_full` says.
    pub async fn open(settings: sqlite::Settings, when_full: WhenFull) -> Result<Self, StoreError> {
        let limit = settings.max_disk_bytes;
        let settings = sqlite::Settings {
            retention_days: None,
            ..settings
        };
        let store = Store::open_as(settings, Use::Spool).await?;
        let state = match State::of(&store).await {
            Err(error) if error.is_damage() => {
                store.begin_anew(store.times_replaced(), error, None).await?;
                State::of(&store).await?
            }
            state => state?,
        };
        let spool = Self {
            limit,
            when_full,
            full: AtomicBool::new(false),
            recent: std::sync::Mutex::default(),
            account: Arc::default(),
            more: Notify::new(),
            state: Mutex::new(state),
            turn: Mutex::default(),
            flight: Mutex::default(),
            store,
        };
        spool.account.lost_to_damage(spool.store.lost_to_damage());
        spool.measure().await?;
        let state = spool.state().await?;
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
        let mut moved = self.account.watch();
        let file = moved.borrow().file;
        let Ok(head) = self.store.head().await else { return };
        let is_done = |at: &Position| at.file != file || at.shipped >= head.seq;
        // An error means that the account is gone, and with it the spool.
        let _ = moved.wait_for(is_done).await;
    }

    /// The file.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Names that earlier runs remembered, the most recent first, at most `limit`.
    pub async fn remembered(&self, limit: usize) -> Result<Vec<Named>, SpoolError> {
        self.or_anew(|| async move { Ok(self.store.remembered(limit).await?) })
            .await
    }

    /// Notes a change of policy that is about to be made, as [`Store::note_intent`].
    pub async fn note_intent(&self, intent: &Intent) -> Result<(), SpoolError> {
        self.or_anew(|| async move { Ok(self.store.note_intent(intent).await?) })
            .await
    }

    /// Closes the file.
    pub async fn close(self) -> Result<(), StoreError> {
        self.store.close().await
    }

    /// How far shipping is, in the file that is there.
    async fn state(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let mut state = self.state.lock().await;
        if state.file != self.store.times_replaced() {
            *state = State::of(&self.store).await?;
            self.moved(&state).await?;
        }
        Ok(state)
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was signed and the server does not have: statements of what was given up before an entry, and the checkpoints
    /// of what it has.
    async fn statements(&self, before: u64) -> Result<Statements, StoreError> {
        let noted = self.state().await?.noted;
        Ok(Statements {
            gaps: self.store.stated_gaps(before).await?,
            checkpoints: self
                .store
                .checkpoints_after(noted.checkpoint, noted.shipped)
                .await?,
            before: self.store.stated_before().await?,
        })
    }

    /// Notes that these are on the server.
    async fn stated(&self, statements: &Statements) -> Result<(), StoreError> {
        let mut state = self.state().await?;
        let mut noted = state.noted;
        if !statements.gaps.is_empty() {
            let rows: Vec<i64> = statements.gaps.iter().map(|(row, _)| *row).collect();
            self.store.gaps_shipped(&rows, noted.shipped).await?;
        }
        if !statements.before.is_empty() {
            let rows: Vec<i64> = statements.before.iter().map(|(row, _)| *row).collect();
            self.store.before_shipped(&rows).await?;
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
        let mut state = self.state().await?;
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

    /// Keeps a batch.
    async fn take(&self, entries: &[Entry], mark: Option<RingMark>) -> Result<(), SpoolError> {
        let _turn = self.turn.lock().await;
        if self.full.load(Ordering::Relaxed) && !entries.is_empty() {
            // Where the ring buffer is accounted for moves on all the same, and so does the chain: these are counted, not
            // kept.
            self.store.give_up(entries, mark).await?;
            let lost = entries.iter().map(Entry::weight).fold(0, u64::saturating_add);
            self.account.newest_dropped(lost);
            return Err(SpoolError::Full {
                records: entries.len(),
            });
        }
        // Nothing may be waited for behind this: it is kept, and who gives up waiting would have it kept again.
        let links = self.store.keep(entries, mark).await?;
        if let (Some(links), Some(first)) = (links, entries.first()) {
            if links.hashes.len() == entries.len() {
                self.recent().keep(entries, &links);
            } else {
                // What had a record was left out. They are read from the file, then.
                self.recent().clear();
            }
            self.account
                .stored(links.last(), links.hashes.len() as u64, first.timestamp().0);
        }
        self.more.notify_one();
        Ok(())
    }

    /// Enforces the limit on space.
    async fn make_room(&self) -> Result<Pruned, SpoolError> {
        let full = self.measure().await?;
        let mut state = self.state().await?;
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
        if !pruned.more {
            self.store.forget_names().await;
        }
        Ok(pruned)
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
        self.or_anew(|| self.take(entries, mark)).await
    }

    async fn sync(&self) -> Result<(), SpoolError> {
        Ok(self.store.sync().await?)
    }

    async fn remember(&self, names: &[Named]) -> Result<(), SpoolError> {
        self.or_anew(|| async move { Ok(self.store.remember(names).await?) })
            .await
    }

    async fn prune(&self) -> Result<Pruned, SpoolError> {
        self.or_anew(|| self.make_room()).await
    }

    fn takes_evaluations(&self) -> bool {
        self.store.takes_evaluations()
    }

    async fn seal(&self) -> Result<Option<Checkpoint>, SpoolError> {
        let sealed = self
            .or_anew(|| async move { Ok(self.store.seal().await?) })
            .await?;
        if sealed.is_some() {
            self.more.notify_one();
        }
        Ok(sealed)
    }

    fn breaks(&self) -> Result<u64, SpoolError> {
        Ok(self.store.breaks()?)
    }

    fn put_aside(&self) -> PutAside {
        PutAside {
            files: self.store.times_replaced(),
            // They are in the account of the spool.
            records: 0,
        }
    }

    fn damaged(&self) -> Result<u64, SpoolError> {
        Ok(self.store.damaged()?)
    }
}
