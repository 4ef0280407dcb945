// SPDX-License-Identifier: Apache-2.0
//! What an agent does whose file is damaged: it puts it aside, and goes on in a new one.
//!
//! A file is given up where the agent itself cannot go on with it: cannot open it, store, sign, make room or ship. A question
//! that comes upon a damaged page fails, and moves nothing: whoever may ask must not be able to have a trail put aside, and
//! what is stored meanwhile is stored.
//!
//! The new file has a chain of its own. Where the one before it ended is signed and kept beside the keys, as for any chain that
//! is not gone on with, and for a spool the server is told which entries are lost. The place in the ring buffer goes over, so that
//! what was not stored is stored in the new file, and nothing twice.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions as _, Connection as _};

use super::before::Before;
use super::carried::Carried;
use super::connections::{reading, writing};
use super::{
    Durability, Settings, Shipping, Store, StoreError, Use, Writer, aside, dsn, schema, share, ship, told,
};
use crate::audit::chain::{Head, START};
use crate::audit::clock;
use crate::audit::record::Timestamp;
use crate::audit::seal::{Cause, Checkpoint, Gap, Keys};
use crate::audit::store::RingMark;

/// A file that takes the place of a damaged one is not given up before it has lasted so long: a disk that damages all that is
/// written to it is not to be filled with what it damaged.
const LASTS: Duration = Duration::from_secs(60);
/// Between two tries to open the new file, which is in place.
const AGAIN: Duration = Duration::from_secs(1);

/// A file that is given up.
pub(super) struct Damaged<'a> {
    pub(super) path: &'a Path,
    pub(super) used_as: Use,
    pub(super) sync: Durability,
    pub(super) keys: Option<&'a Path>,
    /// What this process knows of it, whatever it says.
    pub(super) known: Option<Head>,
    pub(super) mark: Option<RingMark>,
    /// How far it has shipped, and how many of the entries behind that were lost before.
    pub(super) shipping: Option<(Shipping, u64)>,
}

/// What is said of its entries.
struct Ended {
    /// Those that are lost with it.
    lost: u64,
    head: Option<Head>,
    checkpoint: Option<Checkpoint>,
    /// For the server.
    stated: Option<Before>,
}

impl Damaged<'_> {
    /// Puts it aside, with another one in its place. Returns how many entries are lost with it. `says` is a connection to it.
    pub(super) async fn give_up(
        &self,
        says: Option<&mut SqliteConnection>,
        why: &StoreError,
    ) -> Result<u64, StoreError> {
        let keys = self.keys.map(Keys::open).transpose()?;
        let mut carried = match says {
            Some(connection) => Carried::read(connection, self.used_as).await,
            None => Carried::default(),
        };
        carried.mark = self.mark.or(carried.mark);
        let ended = self.ended(&carried, keys.as_ref())?;
        let new = aside::beside(self.path, ".new");
        let writer = self.make(&new, carried, keys.as_ref(), ended.stated).await?;
        if let Some(keys) = &keys
            && let Some(checkpoint) = &ended.checkpoint
        {
            keys.keep(checkpoint)?;
        }
        let now = Timestamp(clock::now());
        let aside = aside::exchange(self.path, &new, now)?;
        if let Some(keys) = &keys {
            // What became of the one before is kept: nobody need find it out from the new one.
            keys.note_writer(self.path, writer)?;
        }
        self.tell(why, &aside, ended.head, ended.lost);
        Ok(ended.lost)
    }

    /// What of it is lost, and what is signed of that. Its own word is believed where nothing signed says otherwise.
    fn ended(&self, carried: &Carried, keys: Option<&Keys>) -> Result<Ended, StoreError> {
        let noted = match keys {
            Some(keys) => match keys.writer_in(self.path)? {
                Some(writer) => keys.last_of(writer)?,
                None => None,
            },
            None => None,
        };
        let of_noted = noted.as_ref().map(|noted| Head {
            writer: noted.writer,
            seq: noted.seq,
            hash: noted.hash,
        });
        let said = carried
            .head
            .filter(|head| of_noted.is_none_or(|noted| noted.writer != head.writer || noted.seq <= head.seq));
        let Some(head) = self.known.or(said).or(of_noted) else {
            return Ok(Ended {
                lost: 0,
                head: None,
                checkpoint: None,
                stated: None,
            });
        };
        let noted = noted.filter(|noted| noted.writer == head.writer);
        let pruned = match &noted {
            Some(noted) => (noted.pruned, noted.pruned_hash),
            None => carried.pruned.unwrap_or((0, START)),
        };
        let shipping = self.shipping.map(|(shipping, _)| shipping).or(carried.shipping);
        let lost_before = carried.lost.or(self.shipping.map(|(_, lost)| lost)).unwrap_or(0);
        let behind = match (self.used_as, shipping) {
            (Use::Trail, _) => pruned.0,
            (Use::Spool, Some(shipping)) => shipping.shipped + lost_before,
            // How far it had shipped nobody knows any more: all that is not noted as gone, then.
            (Use::Spool, None) => match keys {
                Some(keys) => keys.gone(head.writer)?.map_or(0, |gone| gone.gone),
                None => 0,
            },
        };
        let lost = head.seq.saturating_sub(behind);
        let checkpoint = match (self.known, keys) {
            _ if lost == 0 => None,
            (Some(known), Some(keys)) => Some(Checkpoint::sign(known, Timestamp(clock::now()), pruned, keys)),
            // What only the file says is not signed.
            _ => noted.filter(|noted| noted.seq > 0),
        };
        let stated = shipping
            .zip(keys)
            .filter(|_| self.used_as == Use::Spool && lost > 0);
        let stated = stated.map(|(shipping, keys)| Before {
            gap: Gap::sign(
                head.writer,
                (shipping.shipped + 1, head.seq),
                (None, head.hash),
                Cause::SpoolDamaged,
                keys,
            ),
            checkpoint: checkpoint.clone(),
        });
        Ok(Ended {
            lost,
            head: Some(head),
            checkpoint,
            stated,
        })
    }

    /// Makes the file that takes its place, whole, under another name.
    async fn make(
        &self,
        new: &Path,
        carried: Carried,
        keys: Option<&Keys>,
        stated: Option<Before>,
    ) -> Result<uuid::Uuid, StoreError> {
        aside::remove_unfinished(new)?;
        dsn::create(new)?;
        let options = writing(new, self.sync);
        let mut connection = options.connect().await.map_err(|source| StoreError::Open {
            path: new.to_owned(),
            source,
        })?;
        let filled = async {
            schema::migrate(&mut connection, new).await?;
            share::prepare(&mut connection).await?;
            told::prepare(&mut connection).await?;
            if self.used_as == Use::Spool {
                ship::prepare(&mut connection).await?;
            }
            carried.write(&mut connection, (self.used_as, keys), stated).await
        };
        let filled = filled.await;
        // Its log goes with that.
        let closed = connection.close().await;
        let writer = filled?;
        closed?;
        Ok(writer)
    }

    fn tell(&self, why: &StoreError, aside: &Path, head: Option<Head>, lost: u64) {
        let entries = head.map_or_else(|| "nobody knows how many".to_owned(), |head| head.seq.to_string());
        tracing::error!(
            %why,
            path = %self.path.display(),
            aside = %aside.display(),
            entries,
            lost,
            "the audit store is damaged: it was put aside whole, and a new one, with a new chain, is in its place; enforcement \
             goes on. Its entries are lost, counted, until somebody brings back what can be read: keep a copy, run \
             `sqlite3 FILE .recover | sqlite3 RECOVERED` on it, then `zt-agent audit verify --store sqlite://RECOVERED --trust \
             KEY`, and look at the disk. See docs/audit.md, A damaged file"
        );
    }
}

/// As [`Damaged::give_up`], of a file that nobody in this process has open.
pub(super) async fn give_up_unopened(
    path: &Path,
    used_as: Use,
    settings: &Settings,
    why: &StoreError,
) -> Result<u64, StoreError> {
    let damaged = Damaged {
        path,
        used_as,
        sync: settings.sync,
        keys: settings.keys.as_deref(),
        known: None,
        mark: None,
        shipping: None,
    };
    // It would remove the log of a file that has nothing in it.
    let connection = match why {
        StoreError::Emptied { .. } => None,
        _ => reading(path).connect().await.ok(),
    };
    let Some(mut connection) = connection else {
        return damaged.give_up(None, why).await;
    };
    let given_up = damaged.give_up(Some(&mut connection), why).await;
    // It is another file's by now, or the next try opens its own.
    let _ = connection.close().await;
    given_up
}

impl Store {
    /// How often a damaged file was put aside since the start.
    pub fn times_replaced(&self) -> u64 {
        self.replaced.times()
    }

    /// Entries that were lost with damaged files since the start.
    pub fn lost_to_damage(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The damaged files that lie beside the file.
    pub fn damaged_files(&self) -> Result<Vec<PathBuf>, StoreError> {
        aside::damaged_beside(&self.path).map_err(|source| StoreError::Beside {
            path: self.path.clone(),
            source,
        })
    }

    /// Does what a trail needs; where its file is damaged, once more with a new one. A spool is seen to by who ships it.
    pub(super) async fn or_anew<T, W>(&self, mut work: impl FnMut() -> W + Send) -> Result<T, StoreError>
    where
        T: Send,
        W: Future<Output = Result<T, StoreError>> + Send,
    {
        let seen = self.times_replaced();
        match work().await {
            Err(error) if error.is_damage() && self.used_as == Use::Trail => {
                self.begin_anew(seen, error, None).await?;
                work().await
            }
            done => done,
        }
    }

    /// Puts the file aside for what is wrong with it, unless somebody has since one saw `seen`, and goes on in a new one.
    /// `shipping` is how far shipping is, where that is known, and how many of the entries behind that were lost before.
    pub(in crate::audit) async fn begin_anew(
        &self,
        seen: u64,
        why: StoreError,
        shipping: Option<(Shipping, u64)>,
    ) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        if self.times_replaced() != seen {
            return Ok(());
        }
        if self.replaced.age().is_some_and(|age| age < LASTS) {
            return Err(why);
        }
        let damaged = Damaged {
            path: &self.path,
            used_as: self.used_as,
            sync: self.settings.sync,
            keys: self.settings.keys.as_deref(),
            known: writer.watched.at(),
            mark: writer.mark,
            shipping,
        };
        let lost = damaged.give_up(Some(&mut writer.connection), &why).await?;
        self.lost.fetch_add(lost, Ordering::Relaxed);
        // From here on there is no way back: the file of this connection has another name.
        let new = loop {
            let opened = Writer::open(
                &self.path,
                (self.used_as, self.settings.sync),
                self.alone.is_some(),
                &self.share,
            );
            match opened.await {
                Ok(new) => break new,
                Err(error) => {
                    tracing::error!(%error, "cannot open the audit store that was made in the place of a damaged one: tried again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        let old = std::mem::replace(&mut *writer, new);
        self.replaced.note();
        // Of a file that was moved it removes nothing.
        let _ = old.connection.close().await;
        Ok(())
    }
}
