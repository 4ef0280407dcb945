// SPDX-License-Identifier: Apache-2.0
//! A store as a spool: which of its records were shipped elsewhere, and how those go.

use std::time::Duration;

use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;

use super::schema::SEGMENT_ROWS;
use super::{Store, StoreError, before, gaps, rows, seal, spooled};
use crate::audit::query::HOUR;
use crate::audit::record::Kept;
use crate::audit::seal::{Checkpoint, KeyRecord};

/// One row; made when the store is first used as a spool.
const TABLE: &str = "
CREATE TABLE IF NOT EXISTS shipping (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    shipped INTEGER NOT NULL,
    planned INTEGER NOT NULL,
    gap INTEGER NOT NULL,
    dropped INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    unreadable INTEGER NOT NULL,
    checkpoint INTEGER NOT NULL
) STRICT;
INSERT OR IGNORE INTO shipping SELECT 1, coalesce((SELECT min(row) FROM record), next_row) - 1,
    coalesce((SELECT min(row) FROM record), next_row) - 1, 0, 0, 0, 0, 0 FROM trail;
";

/// How far shipping is. Records are numbered as in the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shipping {
    /// Up to this one all were shipped, dropped or refused.
    pub shipped: u64,
    /// The batch that was begun last ends here. It may have arrived: it is never sent in another size.
    pub planned: u64,
    /// Records right before the next batch that were dropped.
    pub gap: u64,
    /// Decisions whose records were dropped before they were shipped, in all.
    pub dropped: u64,
    /// Decisions whose records the other side will never take, in all.
    pub refused: u64,
    /// Records that could not be read when their turn came, in all.
    pub unreadable: u64,
    /// Up to this row of the table of checkpoints all were shipped.
    pub checkpoint: i64,
}

impl Store {
    /// How far shipping is.
    pub async fn shipping(&self) -> Result<Shipping, StoreError> {
        let mut writer = self.writing().await?;
        prepare(&mut writer.connection).await?;
        read(&mut writer.connection).await
    }

    /// Notes how far shipping is.
    pub async fn note_shipping(&self, shipping: &Shipping) -> Result<(), StoreError> {
        let mut writer = self.writing().await?;
        note(&mut writer.connection, shipping).await
    }

    /// Notes which batch is shipped next, before it is. When this returns, the batch is on disk with all before it: else
    /// a power cut would take from this store what the server has, and the same numbers would be given to others.
    pub async fn plan_shipping(&self, shipping: &Shipping) -> Result<(), StoreError> {
        let mut writer = self.writing().await?;
        let connection = &mut writer.connection;
        seal::sync_commits(connection).await?;
        let noted = note(connection, shipping).await;
        seal::spare_commits(connection, self.settings.sync).await?;
        noted
    }

    /// Records from `first` to `last`, in order, those that are there; what is wrong, of one that cannot be read.
    pub async fn range(&self, first: u64, last: u64) -> Result<Vec<(u64, Result<Kept, String>)>, StoreError> {
        let last = i64::try_from(last).unwrap_or(i64::MAX);
        let mut house = self.house.acquire().await?;
        let found = rows::between(&mut house, first.cast_signed(), last).await?;
        let numbered = found.into_iter().map(|(row, kept)| (row.cast_unsigned(), kept));
        Ok(numbered.collect())
    }

    /// Checkpoints behind a row of their table that speak of no entry behind `seq`, oldest first, with their row; at most a
    /// thousand. One that cannot be read is left out: it proves nothing.
    pub async fn checkpoints_after(&self, row: i64, seq: u64) -> Result<Vec<(i64, Checkpoint)>, StoreError> {
        let texts: Vec<(i64, String)> = sqlx::query_as(
            "SELECT row, text FROM checkpoint WHERE row > ? AND seq <= ? ORDER BY row LIMIT 1000",
        )
        .bind(row)
        .bind(i64::try_from(seq).unwrap_or(i64::MAX))
        .fetch_all(&self.house)
        .await?;
        let parsed = texts
            .iter()
            .filter_map(|(row, text)| Some((*row, readable(*row, text)?)));
        Ok(parsed.collect())
    }

    /// Removes checkpoints before a row of their table.
    pub async fn forget_checkpoints(&self, row: i64) -> Result<(), StoreError> {
        let mut writer = self.writing().await?;
        sqlx::query("DELETE FROM checkpoint WHERE row < ?")
            .bind(row)
            .execute(&mut writer.connection)
            .await?;
        Ok(())
    }

    /// Every key that has signed a checkpoint, oldest first, but those that cannot be read.
    pub async fn signing_keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let texts: Vec<(i64, String)> = sqlx::query_as("SELECT row, text FROM signing_key ORDER BY row")
            .fetch_all(&self.house)
            .await?;
        Ok(texts
            .iter()
            .filter_map(|(row, text)| readable(*row, text))
            .collect())
    }

    /// When the first record from `first` on was made, Unix nanoseconds.
    pub async fn time_of(&self, first: u64) -> Result<Option<i64>, StoreError> {
        Ok(
            sqlx::query_scalar("SELECT time FROM record WHERE row >= ? ORDER BY row LIMIT 1")
                .bind(first.cast_signed())
                .fetch_optional(&self.house)
                .await?,
        )
    }

    /// Bytes of the file that hold something.
    pub async fn used_bytes(&self) -> Result<u64, StoreError> {
        let (pages, free, size): (i64, i64, i64) = sqlx::query_as(
            "SELECT page_count, freelist_count, page_size
             FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        )
        .fetch_one(&self.house)
        .await?;
        Ok(((pages - free) * size).cast_unsigned())
    }

    /// The last record of the oldest segment; `None` where that is the one being written.
    pub async fn end_of_oldest_segment(&self) -> Result<Option<u64>, StoreError> {
        let segments: Vec<i64> = sqlx::query_scalar("SELECT segment FROM segment ORDER BY segment LIMIT 2")
            .fetch_all(&self.house)
            .await?;
        Ok(segments
            .get(1)
            .map(|second| (second * SEGMENT_ROWS - 1).cast_unsigned()))
    }

    /// Removes records up to `last`, and in the same transaction notes how far shipping is. What they were is elsewhere,
    /// or counted by the caller: they are not "pruned".
    pub async fn discard(&self, last: u64, shipping: &Shipping) -> Result<(), StoreError> {
        let mut writer = self.writing().await?;
        let keys = self.settings.keys.as_deref();
        if let Err(error) = spooled::let_go(&mut writer.connection, keys, last).await {
            tracing::error!(%error, "what has been shipped stays in the spool until that can be noted beside the keys");
            return note(&mut writer.connection, shipping).await;
        }
        let mut transaction = writer.connection.begin_with("BEGIN IMMEDIATE").await?;
        remove(&mut transaction, last, shipping).await?;
        transaction.commit().await?;
        let writer = &mut *writer;
        writer.share.count(&mut writer.connection).await
    }

    /// Gives free pages back to the file system, a little at a time, where the file is larger than `limit`.
    pub async fn shrink(&self, limit: u64) -> Result<bool, StoreError> {
        let mut writer = self.writing().await?;
        let (pages, free, size): (i64, i64, i64) = sqlx::query_as(
            "SELECT page_count, freelist_count, page_size
             FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        )
        .fetch_one(&mut writer.connection)
        .await?;
        let too_large = free > 0 && (pages * size).cast_unsigned() > limit;
        if too_large {
            let vacuum = sqlx::query("PRAGMA incremental_vacuum(2048)").execute(&mut writer.connection);
            let _ = tokio::time::timeout(Duration::from_secs(5), vacuum).await;
        }
        Ok(too_large)
    }
}

/// Makes the tables of a spool where they are missing.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    for tables in [TABLE, gaps::TABLES, gaps::READ_AGAIN, before::TABLE] {
        sqlx::raw_sql(tables).execute(&mut *connection).await?;
    }
    Ok(())
}

/// How far shipping is, as the file says.
pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Shipping, StoreError> {
    let numbers: (i64, i64, i64, i64, i64, i64, i64) = sqlx::query_as(
        "SELECT shipped, planned, gap, dropped, refused, unreadable, checkpoint FROM shipping",
    )
    .fetch_one(connection)
    .await?;
    Ok(Shipping {
        shipped: numbers.0.cast_unsigned(),
        planned: numbers.1.cast_unsigned(),
        gap: numbers.2.cast_unsigned(),
        dropped: numbers.3.cast_unsigned(),
        refused: numbers.4.cast_unsigned(),
        unreadable: numbers.5.cast_unsigned(),
        checkpoint: numbers.6,
    })
}

/// Removes records up to `last`, with all that only they needed, and notes how far shipping is.
pub(super) async fn remove(
    connection: &mut SqliteConnection,
    last: u64,
    shipping: &Shipping,
) -> Result<(), StoreError> {
    let last = last.cast_signed();
    for sql in [
        // What was removed before is further back, if there is nothing here.
        "INSERT OR REPLACE INTO discarded SELECT 1, row, hash FROM record WHERE row <= ? ORDER BY row DESC LIMIT 1",
        "DELETE FROM record WHERE row <= ?",
    ] {
        sqlx::query(sql).bind(last).execute(&mut *connection).await?;
    }
    for sql in [
        "DELETE FROM span WHERE segment < ?1",
        "DELETE FROM segment WHERE segment < ?1",
        "DELETE FROM evaluations WHERE segment < ?1",
    ] {
        sqlx::query(sql)
            .bind((last + 1) / SEGMENT_ROWS)
            .execute(&mut *connection)
            .await?;
    }
    // Nobody asks a spool for the graph. The shapes of what is left stay.
    sqlx::query("DELETE FROM bucket WHERE hour < (SELECT min(min_time) FROM segment) / ?1")
        .bind(HOUR)
        .execute(&mut *connection)
        .await?;
    let unused = sqlx::query(
        "DELETE FROM shape WHERE NOT EXISTS (SELECT 1 FROM bucket WHERE bucket.shape = shape.id)",
    )
    .execute(&mut *connection)
    .await?;
    if unused.rows_affected() > 0 {
        sqlx::query("UPDATE trail SET shapes_gone = shapes_gone + 1")
            .execute(&mut *connection)
            .await?;
    }
    note(connection, shipping).await
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(row: i64, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::Damaged {
        row,
        column: "text of a checkpoint or key",
        found: text.to_owned(),
    })
}

/// What a row says that may be left out, where it cannot be read.
pub(super) fn readable<T: serde::de::DeserializeOwned>(row: i64, text: &str) -> Option<T> {
    let parsed = parse(row, text);
    let told = parsed.inspect_err(|error| tracing::error!(%error, "what was signed is not shipped"));
    told.ok()
}

pub(super) async fn note(connection: &mut SqliteConnection, shipping: &Shipping) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE shipping SET shipped = ?, planned = ?, gap = ?, dropped = ?, refused = ?, unreadable = ?,
                checkpoint = ?",
    )
    .bind(shipping.shipped.cast_signed())
    .bind(shipping.planned.cast_signed())
    .bind(shipping.gap.cast_signed())
    .bind(shipping.dropped.cast_signed())
    .bind(shipping.refused.cast_signed())
    .bind(shipping.unreadable.cast_signed())
    .bind(shipping.checkpoint)
    .execute(connection)
    .await?;
    Ok(())
}
