// SPDX-License-Identifier: Apache-2.0
//! What a spool had to give up: noted with the loss, in one transaction, and signed before it is told.

use std::path::Path;

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection as _, Row as _};
use uuid::Uuid;

use super::ship::{note, parse};
use super::{Shipping, Store, StoreError, Writer, place, seal, spooled};
use crate::audit::chain::{Hash, START};
use crate::audit::record::Entry;
use crate::audit::seal::{Cause, Gap, Keys};
use crate::audit::store::RingMark;

/// Made when the store is first used as a spool. `text` is the signed statement: what has none may still grow.
/// `discarded` keeps the hash of the last record that went.
pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS gap (
    row INTEGER PRIMARY KEY,
    first INTEGER NOT NULL UNIQUE,
    last INTEGER NOT NULL,
    before BLOB,
    after BLOB NOT NULL,
    cause TEXT NOT NULL,
    text TEXT,
    shipped INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS discarded (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    row INTEGER NOT NULL,
    hash BLOB
) STRICT;
";

/// Statements that could not be read, and were laid aside as `shipped = 2`, are tried again: this version may be another.
pub(super) const READ_AGAIN: &str = "UPDATE gap SET shipped = 0 WHERE shipped = 2";

/// Statements told at a time.
const MOST: i64 = 1000;

impl Store {
    /// Takes entries that there is no room for: each gets its place in the chain, and none is kept.
    pub async fn give_up(&self, entries: &[Entry], mark: Option<RingMark>) -> Result<(), StoreError> {
        let mut writer = self.writing().await?;
        let Writer {
            connection, watched, ..
        } = &mut *writer;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let before = place::place(&mut transaction).await?;
        let after = place::skip(&mut transaction, before, entries, mark).await?;
        let (before, _) = before;
        let (place, hashes) = ((before.seq + 1, after.seq), (Some(before.hash), after.hash));
        grow(&mut transaction, place, hashes, Cause::SpoolNewest).await?;
        watched.leaves(before);
        transaction.commit().await?;
        watched.arrives(after);
        writer.mark = mark.or(writer.mark);
        Ok(())
    }

    /// Notes entries as lost, and how far shipping is. `after` is the hash of the last one, where the caller has it.
    pub async fn lose(
        &self,
        (first, last): (u64, u64),
        after: Option<Hash>,
        cause: Cause,
        shipping: &Shipping,
    ) -> Result<(), StoreError> {
        let mut writer = self.writing().await?;
        let mut transaction = writer.connection.begin_with("BEGIN IMMEDIATE").await?;
        let before = hash_of(&mut transaction, first.saturating_sub(1)).await?;
        let after = match after {
            Some(after) => Some(after),
            None => hash_of(&mut transaction, last).await?,
        };
        if let Some(after) = after {
            grow(&mut transaction, (first, last), (before, after), cause).await?;
        } else {
            tracing::error!(
                first,
                last,
                "nothing is left of lost records that could be signed"
            );
        }
        note(&mut transaction, shipping).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Removes records up to `last`; of those behind `safe`, which were not shipped, it notes that they are lost. Returns
    /// how many these were; `shipping` counts the decisions that they stood for.
    pub async fn drop_oldest(
        &self,
        safe: u64,
        last: u64,
        shipping: &mut Shipping,
    ) -> Result<u64, StoreError> {
        let mut writer = self.writing().await?;
        spooled::let_go(&mut writer.connection, self.settings.keys.as_deref(), last).await?;
        let mut transaction = writer.connection.begin_with("BEGIN IMMEDIATE").await?;
        // There may be gaps between them already.
        let spans: Vec<(i64, i64, i64)> = sqlx::query_as(
            "SELECT min(row), max(row), sum(max(1, min(count, 4294967295))) FROM (
                 SELECT row, count, row - row_number() OVER (ORDER BY row) AS span FROM record
                 WHERE row > ?1 AND row <= ?2
             ) GROUP BY span ORDER BY 1",
        )
        .bind(safe.cast_signed())
        .bind(last.cast_signed())
        .fetch_all(&mut *transaction)
        .await?;
        let mut lost = 0;
        for (first, last, decisions) in spans {
            shipping.dropped += decisions.cast_unsigned();
            let place = (first.cast_unsigned(), last.cast_unsigned());
            lost += place.1 - place.0 + 1;
            let before = hash_of(&mut transaction, place.0 - 1).await?;
            // Older than the chain: nobody misses it.
            if let Some(after) = hash_of(&mut transaction, place.1).await? {
                grow(&mut transaction, place, (before, after), Cause::SpoolOldest).await?;
            }
        }
        super::ship::remove(&mut transaction, last, shipping).await?;
        transaction.commit().await?;
        let writer = &mut *writer;
        writer.share.count(&mut writer.connection).await?;
        Ok(lost)
    }

    /// The last entry of the gap that begins with this one.
    pub async fn gap_at(&self, first: u64) -> Result<Option<u64>, StoreError> {
        let last: Option<i64> = sqlx::query_scalar("SELECT last FROM gap WHERE first = ?")
            .bind(first.cast_signed())
            .fetch_optional(&self.house)
            .await?;
        Ok(last.map(i64::cast_unsigned))
    }

    /// The first entry of the next gap from an entry on.
    pub async fn next_gap(&self, from: u64) -> Result<Option<u64>, StoreError> {
        let first: Option<i64> = sqlx::query_scalar("SELECT min(first) FROM gap WHERE first >= ?")
            .bind(from.cast_signed())
            .fetch_one(&self.house)
            .await?;
        Ok(first.map(i64::cast_unsigned))
    }

    /// Entries behind this one that are not there any more.
    pub async fn lost_behind(&self, seq: u64) -> Result<u64, StoreError> {
        lost_behind(&mut *self.house.acquire().await?, seq).await
    }

    /// The signed statements of gaps that begin before an entry and were not shipped, with their row; at most a thousand.
    /// Those that cannot be read are laid aside: a later version may have made them, and the others do not wait for it.
    pub async fn stated_gaps(&self, before: u64) -> Result<Vec<(i64, Gap)>, StoreError> {
        let before = i64::try_from(before).unwrap_or(i64::MAX);
        let waiting: i64 = sqlx::query_scalar("SELECT count(*) FROM gap WHERE shipped = 0 AND first < ?")
            .bind(before)
            .fetch_one(&self.house)
            .await?;
        let Some(keys) = self.settings.keys.as_deref().filter(|_| waiting > 0) else {
            return Ok(Vec::new());
        };
        let mut writer = self.writing().await?;
        let connection = &mut writer.connection;
        // What is told must still have been said after a crash of the machine.
        seal::sync_commits(connection).await?;
        let stated = state(connection, keys, before).await;
        seal::spare_commits(connection, self.settings.sync).await?;
        let mut parsed = Vec::new();
        for (row, text) in stated? {
            match parse(row, &text) {
                Ok(gap) => parsed.push((row, gap)),
                Err(error) => lay_aside(connection, row, &error).await?,
            }
        }
        Ok(parsed)
    }

    /// Notes statements of gaps as shipped. Those that lie behind are forgotten, but not before the entries that were there before
    /// them have gone: from these one looks whether the chain goes on.
    pub async fn gaps_shipped(&self, rows: &[i64], shipped: u64) -> Result<(), StoreError> {
        let mut writer = self.writing().await?;
        let mut transaction = writer.connection.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("UPDATE gap SET shipped = 1 WHERE row IN (SELECT value FROM json_each(?))")
            .bind(super::rows::json(rows))
            .execute(&mut *transaction)
            .await?;
        let forget = "DELETE FROM gap WHERE shipped = 1 AND last < ? AND last < (SELECT row FROM discarded)";
        sqlx::query(forget)
            .bind(shipped.cast_signed())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }
}

/// Entries behind this one that are not there any more, as the file says.
pub(super) async fn lost_behind(connection: &mut SqliteConnection, seq: u64) -> Result<u64, StoreError> {
    let lost: i64 =
        sqlx::query_scalar("SELECT coalesce(sum(last - max(first, ?1 + 1) + 1), 0) FROM gap WHERE last > ?1")
            .bind(seq.cast_signed())
            .fetch_one(connection)
            .await?;
    Ok(lost.cast_unsigned())
}

/// Leaves out a statement that cannot be made or read, until the next start.
async fn lay_aside(
    connection: &mut SqliteConnection,
    row: i64,
    error: &StoreError,
) -> Result<(), StoreError> {
    tracing::error!(%error, row, "a statement of what is lost cannot be shipped: `audit verify` will find that it is not there");
    sqlx::query("UPDATE gap SET shipped = 2 WHERE row = ?")
        .bind(row)
        .execute(connection)
        .await?;
    Ok(())
}

/// Signs what is not signed yet, and gives the texts that were not shipped.
async fn state(
    connection: &mut SqliteConnection,
    keys: &Path,
    before: i64,
) -> Result<Vec<(i64, String)>, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sign(&mut transaction, keys, before).await?;
    let texts = sqlx::query_as(
        "SELECT row, text FROM gap WHERE shipped = 0 AND first < ? AND text IS NOT NULL ORDER BY first LIMIT ?",
    )
    .bind(before)
    .bind(MOST)
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(texts)
}

/// Signs what is not signed yet.
async fn sign(connection: &mut SqliteConnection, directory: &Path, before: i64) -> Result<(), StoreError> {
    let rows = sqlx::query(
        "SELECT row, first, last, before, after, cause FROM gap
         WHERE text IS NULL AND shipped = 0 AND first < ? ORDER BY first",
    )
    .bind(before)
    .fetch_all(&mut *connection)
    .await?;
    if rows.is_empty() {
        return Ok(());
    }
    let keys = Keys::open(directory)?;
    let id = place::head(connection).await?.writer;
    seal::keep_keys(connection, &keys).await?;
    for found in rows {
        let row: i64 = found.try_get("row")?;
        match stated(&found, row, id, &keys) {
            Ok(gap) => {
                sqlx::query("UPDATE gap SET text = ? WHERE row = ?")
                    .bind(seal::text(&gap))
                    .bind(row)
                    .execute(&mut *connection)
                    .await?;
            }
            Err(error) => lay_aside(connection, row, &error).await?,
        }
    }
    Ok(())
}

/// The statement of a row.
fn stated(found: &SqliteRow, row: i64, writer: Uuid, keys: &Keys) -> Result<Gap, StoreError> {
    let damaged = |column, found: String| StoreError::Damaged { row, column, found };
    let (first, last): (i64, i64) = (found.try_get("first")?, found.try_get("last")?);
    let before: Option<&[u8]> = found.try_get("before")?;
    let before = before.map(hash).transpose();
    let after: &[u8] = found.try_get("after")?;
    let cause: &str = found.try_get("cause")?;
    let hashes = (
        before.map_err(|found| damaged("before", found))?,
        hash(after).map_err(|found| damaged("after", found))?,
    );
    let cause = Cause::from_name(cause).ok_or_else(|| damaged("cause", cause.to_owned()))?;
    let place = (first.cast_unsigned(), last.cast_unsigned());
    Ok(Gap::sign(writer, place, hashes, cause, keys))
}

/// Notes a gap: the one before it grows, if that is not signed yet and has the same cause.
async fn grow(
    connection: &mut SqliteConnection,
    (first, last): (u64, u64),
    (before, after): (Option<Hash>, Hash),
    cause: Cause,
) -> Result<(), StoreError> {
    if last < first {
        return Ok(());
    }
    let grown = sqlx::query(
        "UPDATE gap SET last = ?, after = ? WHERE last = ? AND cause = ? AND text IS NULL AND shipped = 0",
    )
    .bind(last.cast_signed())
    .bind(after.0.as_slice())
    .bind(first.cast_signed() - 1)
    .bind(cause.name())
    .execute(&mut *connection)
    .await?;
    if grown.rows_affected() == 0 {
        sqlx::query("INSERT INTO gap (first, last, before, after, cause) VALUES (?, ?, ?, ?, ?)")
            .bind(first.cast_signed())
            .bind(last.cast_signed())
            .bind(before.map(|hash| hash.0.to_vec()))
            .bind(after.0.as_slice())
            .bind(cause.name())
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// The hash of an entry that may have gone, as far as that is known: one that is damaged is not.
async fn hash_of(connection: &mut SqliteConnection, row: u64) -> Result<Option<Hash>, StoreError> {
    if row == 0 {
        return Ok(Some(START));
    }
    let found: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT hash FROM record WHERE row = ?1 AND length(hash) = 32
         UNION ALL SELECT hash FROM discarded WHERE row = ?1 AND length(hash) = 32
         UNION ALL SELECT after FROM gap WHERE last = ?1 AND length(after) = 32
         UNION ALL SELECT before FROM gap WHERE first = ?1 + 1 AND length(before) = 32",
    )
    .bind(row.cast_signed())
    .fetch_optional(connection)
    .await?;
    let damaged = |found| StoreError::Damaged {
        row: row.cast_signed(),
        column: "hash",
        found,
    };
    found.map(|bytes| hash(&bytes).map_err(damaged)).transpose()
}

fn hash(bytes: &[u8]) -> Result<Hash, String> {
    <[u8; 32]>::try_from(bytes)
        .map(Hash)
        .map_err(|_| format!("{bytes:02x?}"))
}
