// SPDX-License-Identifier: Apache-2.0
//! The whole trail, from the oldest entry on: for those who check it and for exports. Nothing is written, and an agent
//! that writes is not disturbed.

use std::collections::BTreeMap;
use std::path::Path;

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{ConnectOptions as _, Row};
use uuid::Uuid;

use super::connections::reading;
use super::counts::{Counts, edge};
use super::place::head;
use super::{StoreError, Use, dsn, rows, schema, structure};
use crate::audit::record::{AuditRecord, Entry, Part, Timestamp};
use crate::audit::seal::{Checkpoint, Gap, KeyRecord};
use crate::audit::store::{Found, Miscount, Statement, Told, Trail};

/// Entries read at a time, and statements.
const ROWS: i64 = 2048;
/// Shapes that are told one by one where they are not counted as what they say.
const MOST_SHAPES: usize = 1000;

/// A file, at one moment.
#[derive(Debug)]
pub struct Reader {
    connection: SqliteConnection,
    used_as: Use,
    writer: Uuid,
    /// The first row that was not read yet, and the first checkpoint.
    next: i64,
    next_checkpoint: i64,
    /// The entry of the last checkpoint, and up to which it says that entries were pruned.
    checkpoint: (u64, u64),
    gaps_told: bool,
    /// Shapes that are not counted as their entries should be: what they are counted as, and what they should be.
    misfiled: BTreeMap<i64, (i64, i64)>,
    counts: Option<Counts>,
}

/// How far a spool has shipped.
#[derive(Clone, Debug)]
pub struct Shipped {
    /// Whose spool it is.
    pub writer: Uuid,
    /// Up to this entry the server has all, or they were given up.
    pub seq: u64,
    /// The last checkpoint that the server has.
    pub checkpoint: Option<Checkpoint>,
}

impl Reader {
    /// Opens the file of a trail's DSN, which must be there and of this layout.
    pub async fn open(dsn: &str) -> Result<Self, StoreError> {
        Self::open_as(dsn, Use::Trail).await
    }

    /// The same for either use.
    pub async fn open_as(dsn: &str, used_as: Use) -> Result<Self, StoreError> {
        let path = dsn::path(dsn)?;
        let open = |source| StoreError::Open {
            path: path.clone(),
            source,
        };
        let mut connection = reading(&path).connect().await.map_err(open)?;
        schema::check(&mut connection, &path).await?;
        // All that is read is of one moment.
        sqlx::raw_sql("BEGIN").execute(&mut connection).await?;
        let writer = head(&mut connection).await?.writer;
        Ok(Self {
            connection,
            used_as,
            writer,
            next: i64::MIN,
            next_checkpoint: 0,
            checkpoint: (0, 0),
            gaps_told: false,
            misfiled: BTreeMap::new(),
            counts: None,
        })
    }

    /// The file that a DSN names.
    pub fn path(dsn: &str) -> Result<std::path::PathBuf, StoreError> {
        dsn::path(dsn)
    }

    /// Whose chain it is.
    pub const fn writer(&self) -> Uuid {
        self.writer
    }

    /// How far shipping is, where the file is a spool.
    pub async fn shipped(&mut self) -> Result<Option<Shipped>, StoreError> {
        if self.used_as != Use::Spool || !self.ships().await? {
            return Ok(None);
        }
        let (seq, row): (i64, i64) = sqlx::query_as("SELECT shipped, checkpoint FROM shipping")
            .fetch_one(&mut self.connection)
            .await?;
        let text: Option<String> = sqlx::query_scalar("SELECT text FROM checkpoint WHERE row = ?")
            .bind(row)
            .fetch_optional(&mut self.connection)
            .await?;
        let parse = |text: String| {
            serde_json::from_str(&text).map_err(|_| StoreError::Damaged {
                row,
                column: "text of a checkpoint",
                found: text,
            })
        };
        Ok(Some(Shipped {
            writer: self.writer,
            seq: seq.cast_unsigned(),
            checkpoint: text.map(parse).transpose()?,
        }))
    }

    /// Entries that are in the file, or were.
    pub async fn entries(&mut self) -> Result<u64, StoreError> {
        Ok(head(&mut self.connection).await?.seq)
    }

    /// Time of the last entry; `None` in a trail without any.
    pub async fn last_time(&mut self) -> Result<Option<Timestamp>, StoreError> {
        let time: Option<i64> = sqlx::query_scalar("SELECT time FROM record ORDER BY row DESC LIMIT 1")
            .fetch_optional(&mut self.connection)
            .await?;
        Ok(time.map(Timestamp))
    }

    /// Whether the file says that its entries are shipped: what a spool does, and what anybody can write into it.
    pub async fn ships(&mut self) -> Result<bool, StoreError> {
        self.has_table("shipping").await
    }

    /// Whether somebody has signed something of it.
    pub async fn is_signed(&mut self) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM checkpoint)")
            .fetch_one(&mut self.connection)
            .await?)
    }

    /// The connection, which sees one moment.
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    /// Notes what a row's shape is counted as, where that is not what the entry is.
    fn look_at_part(&mut self, row: &SqliteRow, entry: &Entry) -> Result<(), StoreError> {
        let part = entry.decision().map_or(Part::Aside, AuditRecord::part).number();
        let (shape, kept): (i64, i64) = (row.try_get("shape")?, row.try_get("part")?);
        if kept != part && self.misfiled.len() < MOST_SHAPES {
            self.misfiled.insert(shape, (kept, part));
        }
        Ok(())
    }

    async fn has_table(&mut self, name: &str) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?)";
        Ok(sqlx::query_scalar(sql)
            .bind(name)
            .fetch_one(&mut self.connection)
            .await?)
    }
}

/// Where the keys are when the configuration does not say: beside the directory's data, in one of their own.
pub fn default_keys(path: &Path) -> std::path::PathBuf {
    path.parent().unwrap_or(Path::new("/")).join("keys")
}

impl Trail for Reader {
    type Error = StoreError;

    async fn keys(&mut self) -> Result<Vec<Told<KeyRecord>>, StoreError> {
        let rows: Vec<(i64, String, String)> =
            sqlx::query_as("SELECT row, key, text FROM signing_key ORDER BY row")
                .fetch_all(&mut self.connection)
                .await?;
        let told = |(row, key, text): (i64, String, String)| {
            let same = |read: &KeyRecord| read.key == key;
            Told::text(format!("row {row} of the keys"), &text, same)
        };
        Ok(rows.into_iter().map(told).collect())
    }

    async fn statements(&mut self) -> Result<Vec<Told<Statement>>, StoreError> {
        let rows: Vec<(i64, i64, i64, String)> = sqlx::query_as(
            "SELECT row, seq, pruned, text FROM checkpoint WHERE row >= ? ORDER BY row LIMIT ?",
        )
        .bind(self.next_checkpoint)
        .bind(ROWS)
        .fetch_all(&mut self.connection)
        .await?;
        if let Some((row, ..)) = rows.last() {
            self.next_checkpoint = row + 1;
        }
        let mut told = Vec::with_capacity(rows.len());
        for (row, seq, pruned, text) in rows {
            let place = (seq.cast_unsigned(), pruned.cast_unsigned());
            let same = |read: &Checkpoint| (read.seq, read.pruned) == place;
            let mut checkpoint = Told::text(format!("row {row} of the checkpoints"), &text, same);
            // The last row is what the agent takes for the last checkpoint.
            if place.0 < self.checkpoint.0 || place.1 < self.checkpoint.1 {
                checkpoint.read = Err("it stands behind one of later entries".to_owned());
            }
            self.checkpoint = place;
            told.push(checkpoint.map(Statement::Checkpoint));
        }
        if !std::mem::replace(&mut self.gaps_told, true) && self.has_table("gap").await? {
            let gaps: Vec<(i64, i64, i64, String)> =
                sqlx::query_as("SELECT row, first, last, text FROM gap WHERE text IS NOT NULL ORDER BY row")
                    .fetch_all(&mut self.connection)
                    .await?;
            told.extend(gaps.into_iter().map(|(row, first, last, text)| {
                let place = (first.cast_unsigned(), last.cast_unsigned());
                let same = |read: &Gap| (read.first, read.last) == place;
                Told::text(format!("row {row} of the gaps"), &text, same).map(Statement::Gap)
            }));
        }
        Ok(told)
    }

    async fn more(&mut self) -> Result<Vec<Found>, StoreError> {
        let rows = sqlx::query(rows::FROM)
            .bind(self.next)
            .bind(ROWS)
            .fetch_all(&mut self.connection)
            .await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let number: i64 = row.try_get("row")?;
            self.next = number + 1;
            let kept = rows::kept(row).map_err(|error| error.to_string());
            if let Ok(kept) = &kept {
                self.look_at_part(row, &kept.entry)?;
            }
            found.push(Found {
                writer: self.writer,
                seq: number.cast_unsigned(),
                login: None,
                kept,
            });
        }
        Ok(found)
    }

    async fn miscounts(&mut self) -> Result<Option<Vec<Miscount>>, StoreError> {
        if let Some(counts) = &mut self.counts {
            return counts.next(&mut self.connection).await;
        }
        // Nobody goes by the hourly counts of a spool.
        self.counts = Some(Counts::of(self.used_as == Use::Spool));
        let mut found = structure::wrong(&mut self.connection, self.used_as).await?;
        for (shape, (kept, part)) in std::mem::take(&mut self.misfiled) {
            let what = edge(&mut self.connection, shape).await?;
            found.push(Miscount {
                what: format!("what is counted of {what}"),
                kept: format!("part {kept}"),
                counted: format!("part {part}"),
            });
        }
        Ok(Some(found))
    }
}
