// SPDX-License-Identifier: Apache-2.0
//! The audit store in `SQLite`: the only part of the agent that knows a database.
//!
//! Layout (see `sqlite/schema.rs`). What repeats from record to record (parties, port, rule, verdict, hook, node …) is
//! a *shape*, kept once. A record is a row of small integers that points to its shape; its row is its number in the hash
//! chain. A shape's connections are counted by the hour in the same transaction, so that the graph is one small query and
//! never a walk through the records. There is no index on records: they are in the order of arrival, cut into *segments*,
//! and each segment notes its times and its shapes, so that a question reads only the segments that can answer it.
//! Inserting costs the same however large the trail is.
//!
//! Durability: a commit survives a crash of the agent. What a crash of the *machine* may take, [`Durability`] says; it never
//! damages what is older.

mod age;
mod alone;
mod anew;
mod append;
mod aside;
mod before;
mod bulk;
mod carried;
mod connections;
mod continuity;
mod counts;
mod dsn;
mod durability;
mod error;
mod gaps;
mod graph;
mod intents;
mod names;
mod packed;
mod place;
mod prune;
mod read;
mod rollup;
mod rows;
mod rules;
mod schema;
mod seal;
mod select;
mod shapes;
mod share;
mod ship;
mod spooled;
mod structure;
mod sums;
mod told;
mod traffic;
mod unused;
mod usage;
mod watched;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use sqlx::Connection as _;
use sqlx::sqlite::SqlitePool;
use tokio::sync::{Mutex, MutexGuard};

use self::alone::Alone;
pub use self::append::Links;
pub use self::aside::damaged_beside;
pub use self::before::Before;
use self::connections::{Replaced, pools};
pub use self::durability::Durability;
pub use self::error::StoreError;
pub use self::read::{Reader, Shipped, default_keys};
pub use self::schema::SEGMENT_ROWS;
pub use self::ship::Shipping;
pub use self::usage::Use;
use self::watched::Watched;
use self::writer::Writer;
use super::chain::Head;
use super::names::Named;
use super::query::{Begins, Cursor, Filter, Fold, Graph, GraphFilter, Page, RuleHits, Traffic};
use super::record::{Entry, Timestamp};
use super::seal::{Checkpoint, Keys};
use super::store::{Pruned, PutAside, RingMark, Sink};

/// Where the trail is kept and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `sqlite:///var/lib/zt/audit.db`.
    pub dsn: String,
    /// Most bytes on disk, write-ahead log included; the oldest records make room.
    pub max_disk_bytes: u64,
    /// Days after which records go; `None` keeps them until the space is needed.
    pub retention_days: Option<u32>,
    /// Directory of the keys that checkpoints are signed with; without one nothing is signed.
    pub keys: Option<PathBuf>,
    /// When records are safe from a crash of the machine.
    pub sync: Durability,
}

/// An open audit store. One connection writes, a few others read; nobody waits for anybody.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    settings: Settings,
    used_as: Use,
    writer: Mutex<Writer>,
    replaced: Arc<Replaced>,
    /// Entries that were lost with damaged files.
    lost: AtomicU64,
    /// For questions, each of which holds one connection and never a second.
    readers: SqlitePool,
    /// For what the agent itself looks up: shipping and housekeeping wait for no question.
    house: SqlitePool,
    share: Arc<share::Share>,
    syncer: Option<durability::Syncer>,
    /// Held until the store is gone.
    alone: Option<Alone>,
}

impl Store {
    /// Opens the store of a trail; makes directory (0700), file (0600) and tables where they are missing.
    pub async fn open(settings: Settings) -> Result<Self, StoreError> {
        Self::open_as(settings, Use::Trail).await
    }

    /// The same for either use. Waits for a process that records into the file to end, for a while. A file that is damaged is put
    /// aside, and another one takes its place.
    pub(super) async fn open_as(settings: Settings, used_as: Use) -> Result<Self, StoreError> {
        let path = dsn::path(&settings.dsn)?;
        let was_there = path.exists();
        dsn::create(&path)?;
        let alone = alone::wait(&path, alone::PATIENCE).await?;
        let keys = settings.keys.as_deref();
        keys.map(Keys::open).transpose()?;
        let share = Arc::new(share::Share::default());
        let how = (used_as, settings.sync);
        let emptied = was_there && aside::is_emptied(&path, keys);
        let opened = if emptied {
            Err(StoreError::Emptied { path: path.clone() })
        } else {
            Writer::open(&path, how, alone.is_some(), &share).await
        };
        let (writer, lost) = match opened {
            Err(why) if why.is_damage() && (emptied || aside::is_ours(&path, keys)) => {
                let lost = anew::give_up_unopened(&path, used_as, &settings, &why).await?;
                (Writer::open(&path, how, alone.is_some(), &share).await?, lost)
            }
            opened => (opened?, 0),
        };
        Ok(Self::with(settings, path, (writer, share), (alone, lost)))
    }

    /// Opens the store of a trail into which another process may record: for who removes what is old, and appends nothing.
    pub async fn visit(settings: Settings) -> Result<Self, StoreError> {
        let path = dsn::path(&settings.dsn)?;
        dsn::create(&path)?;
        settings.keys.as_deref().map(Keys::open).transpose()?;
        let share = Arc::new(share::Share::default());
        let writer = Writer::open(&path, (Use::Trail, settings.sync), false, &share).await?;
        Ok(Self::with(settings, path, (writer, share), (None, 0)))
    }

    fn with(
        settings: Settings,
        path: PathBuf,
        (writer, share): (Writer, Arc<share::Share>),
        (alone, lost): (Option<Alone>, u64),
    ) -> Self {
        let replaced = Arc::new(Replaced::default());
        let (readers, house) = pools(&path, &replaced);
        let syncer = (settings.sync == Durability::Second).then(|| durability::Syncer::start(&path));
        Self {
            path,
            settings,
            used_as: writer.watched.used_as,
            writer: Mutex::new(writer),
            replaced,
            lost: AtomicU64::new(lost),
            readers,
            house,
            share,
            syncer,
            alone,
        }
    }

    /// Bounds what evaluations over the API may take of the file, in percent of its limit. A hundred is no bound.
    pub fn limit_evaluations(&self, percent: u8) {
        if percent < 100 {
            self.share
                .limit(self.settings.max_disk_bytes / 100 * u64::from(percent));
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One page of records, newest first. `cursor` is the `next` of the page before; `limit` is at most
    /// [`super::query::MAX_LIMIT`].
    pub async fn query(
        &self,
        filter: &Filter,
        cursor: Option<Cursor>,
        limit: u32,
    ) -> Result<Page, StoreError> {
        select::page(&self.readers, filter, cursor, limit).await
    }

    /// Who talks to whom.
    pub async fn graph(&self, filter: &GraphFilter) -> Result<Graph, StoreError> {
        // One moment of the trail for all statements.
        let mut moment = self.readers.begin().await?;
        graph::graph(&mut moment, filter).await
    }

    /// The connections of a range of hours, each counted once. `fold` says which addresses are one, and how many there may be.
    pub async fn traffic(&self, filter: &GraphFilter, fold: &Fold) -> Result<Traffic, StoreError> {
        // One moment of the trail for all statements.
        let mut moment = self.readers.begin().await?;
        traffic::traffic(&mut moment, filter, fold).await
    }

    /// How often which rule decided in a range of hours, before and after policies began.
    pub async fn rules(&self, filter: &GraphFilter, begins: &Begins) -> Result<RuleHits, StoreError> {
        // One moment of the trail for all statements.
        let mut moment = self.readers.begin().await?;
        rules::rules(&mut moment, filter, begins).await
    }

    /// Names that earlier runs remembered, the most recent first, at most `limit`.
    pub async fn remembered(&self, limit: usize) -> Result<Vec<Named>, StoreError> {
        let read = || async move { append::remembered(&mut *self.house.acquire().await?, limit).await };
        self.or_anew(read).await
    }

    /// The connection that writes, when its turn has come.
    async fn writing(&self) -> Result<MutexGuard<'_, Writer>, StoreError> {
        let mut writer = self.writer.lock().await;
        writer.recover().await?;
        Ok(writer)
    }

    /// Keeps a batch, as [`Sink::append`]. Returns the places of its entries; `None` where there was nothing to do.
    pub(super) async fn keep(
        &self,
        entries: &[Entry],
        mark: Option<RingMark>,
    ) -> Result<Option<Links>, StoreError> {
        let links = append::append(&mut *self.writing().await?, entries, mark).await?;
        if let Some(syncer) = &self.syncer {
            syncer.written();
        }
        Ok(links)
    }

    /// Where the chain of this store's writer ends.
    pub async fn head(&self) -> Result<Head, StoreError> {
        place::head(&mut *self.house.acquire().await?).await
    }

    /// The last checkpoint that was signed, in whatever run.
    pub async fn last_checkpoint(&self) -> Result<Option<Checkpoint>, StoreError> {
        seal::last(&mut *self.house.acquire().await?).await
    }

    /// Up to where the ring buffer is accounted for, as the last batch said that had an opinion.
    pub async fn ring_mark(&self) -> Result<Option<RingMark>, StoreError> {
        place::ring_mark(&mut *self.house.acquire().await?).await
    }

    /// What went through this store since it was made.
    pub async fn totals(&self) -> Result<Totals, StoreError> {
        let (stored, pruned): (i64, i64) = sqlx::query_as("SELECT stored, pruned FROM trail")
            .fetch_one(&self.house)
            .await?;
        Ok(Totals {
            stored: stored.cast_unsigned(),
            pruned: pruned.cast_unsigned(),
        })
    }

    /// Removes what is older than a time, a piece of work at a time, and signs what is left. Returns how many went.
    pub async fn prune_before(&self, time: Timestamp) -> Result<u64, StoreError> {
        let mut gone = 0;
        loop {
            let mut writer = self.writing().await?;
            let went = prune::before(&mut writer, &self.settings, time.0).await?;
            if went == 0 {
                return Ok(gone);
            }
            gone += went;
        }
    }

    /// Writes the log back and closes the file.
    pub async fn close(self) -> Result<(), StoreError> {
        self.readers.close().await;
        self.house.close().await;
        self.writer.into_inner().connection.close().await?;
        Ok(())
    }
}

/// Records that a store took and gave up, over its whole life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Kept, at one time.
    pub stored: u64,
    /// Gone since, for space or age.
    pub pruned: u64,
}

impl Sink for Store {
    type Error = StoreError;

    async fn append(&self, entries: &[Entry], mark: Option<RingMark>) -> Result<(), StoreError> {
        self.or_anew(|| self.keep(entries, mark)).await?;
        Ok(())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        // Without one, each commit was synced.
        let Some(syncer) = &self.syncer else { return Ok(()) };
        let failed = |source| StoreError::Sync {
            path: self.path.clone(),
            source,
        };
        if syncer.is_broken() {
            let mut writer = self.writing().await?;
            if !writer.write_back().await? {
                return Err(failed(io::Error::from(io::ErrorKind::ResourceBusy)));
            }
            syncer.mended();
            return Ok(());
        }
        syncer.sync().await.map_err(failed)
    }

    async fn remember(&self, names: &[Named]) -> Result<(), StoreError> {
        let remember = || async move { append::remember(&mut self.writing().await?.connection, names).await };
        self.or_anew(remember).await
    }

    async fn prune(&self) -> Result<Pruned, StoreError> {
        let prune = || async move { prune::prune(&mut *self.writing().await?, &self.settings).await };
        let pruned = self.or_anew(prune).await?;
        if !pruned.more {
            self.forget_names().await;
        }
        Ok(pruned)
    }

    fn takes_evaluations(&self) -> bool {
        !self.share.is_full()
    }

    async fn seal(&self) -> Result<Option<Checkpoint>, StoreError> {
        self.or_anew(|| self.sign()).await
    }

    fn breaks(&self) -> Result<u64, StoreError> {
        Ok(self.settings.keys.as_deref().map_or(Ok(0), Keys::kept)?)
    }

    fn put_aside(&self) -> PutAside {
        PutAside {
            files: self.times_replaced(),
            records: self.lost_to_damage(),
        }
    }

    fn damaged(&self) -> Result<u64, StoreError> {
        Ok(self.damaged_files()?.len() as u64)
    }
}

#[cfg(test)]
pub(crate) mod tests;
