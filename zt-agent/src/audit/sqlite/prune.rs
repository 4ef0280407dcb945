// SPDX-License-Identifier: Apache-2.0
//! Making room: the oldest records go, a segment at a time, and are counted.

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::rollup;
use super::schema::SEGMENT_ROWS;
use super::{Settings, StoreError, Writer, continuity, seal, share};
use crate::audit::seal::Keys;
use crate::audit::store::Pruned;

/// Pages given back to the file system at a time, where the file is larger than it may be.
const VACUUM: &str = "PRAGMA incremental_vacuum(2048)";

/// One piece of work: at most one segment for space and one for age.
pub(super) async fn prune(writer: &mut Writer, settings: &Settings) -> Result<Pruned, StoreError> {
    let mut pruned = Pruned::default();
    if let Some(cutoff) = settings.retention_days.and_then(|days| writer.age.cutoff(days)) {
        pruned.for_age = before(writer, settings, cutoff).await?;
    }
    let (pages, free, page_size): (i64, i64, i64) = sqlx::query_as(
        "SELECT page_count, freelist_count, page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
    )
    .fetch_one(&mut writer.connection)
    .await?;
    let limit = i64::try_from(settings.max_disk_bytes).unwrap_or(i64::MAX);
    // An eighth is left to the write-ahead log and to what comes in until the next look.
    if (pages - free) * page_size > limit - limit / 8
        && let Some(row) = first_row_of_second_segment(&mut writer.connection).await?
    {
        pruned.for_space = delete_below(writer, settings, row).await?;
    }
    // Evaluations that take up their share give way, and with them only what is old enough.
    if writer.share.is_full()
        && let Some(row) = first_row_of_second_segment(&mut writer.connection).await?
        && share::may_go(writer, row).await?
    {
        pruned.for_space += delete_below(writer, settings, row).await?;
    }
    // Free pages are used again; they only have to go where the limit was lowered.
    let too_large = free > 0 && pages * page_size > limit;
    if too_large {
        sqlx::query(VACUUM).execute(&mut writer.connection).await?;
    }
    pruned.more = too_large || pruned.for_age > 0 || pruned.for_space > 0;
    Ok(pruned)
}

/// Removes records of before `cutoff`, at most one segment. Returns how many went.
pub(super) async fn before(writer: &mut Writer, settings: &Settings, cutoff: i64) -> Result<u64, StoreError> {
    match first_row_since(&mut writer.connection, cutoff).await? {
        Some(row) => delete_below(writer, settings, row).await,
        None => Ok(0),
    }
}

/// Where records of `cutoff` or later begin, if older ones stand before them; no further than a segment away.
async fn first_row_since(connection: &mut SqliteConnection, cutoff: i64) -> Result<Option<i64>, StoreError> {
    let oldest: Option<(i64, i64, i64)> =
        sqlx::query_as("SELECT segment, min_time, max_time FROM segment ORDER BY segment LIMIT 1")
            .fetch_optional(&mut *connection)
            .await?;
    let Some((segment, min_time, max_time)) = oldest else {
        return Ok(None);
    };
    if min_time >= cutoff {
        return Ok(None);
    }
    let end = (segment + 1) * SEGMENT_ROWS;
    if max_time < cutoff {
        return Ok(Some(end));
    }
    let (first,): (Option<i64>,) = sqlx::query_as("SELECT min(row) FROM record WHERE row < ? AND time >= ?")
        .bind(end)
        .bind(cutoff)
        .fetch_one(connection)
        .await?;
    Ok(first)
}

/// Never the newest segment: it is being written.
async fn first_row_of_second_segment(connection: &mut SqliteConnection) -> Result<Option<i64>, StoreError> {
    let second: Option<(i64,)> =
        sqlx::query_as("SELECT segment FROM segment ORDER BY segment LIMIT 1 OFFSET 1")
            .fetch_optional(connection)
            .await?;
    Ok(second.map(|(segment,)| segment * SEGMENT_ROWS))
}

/// Deletes what stands before `row` and what only that referred to.
async fn delete_below(writer: &mut Writer, settings: &Settings, row: i64) -> Result<u64, StoreError> {
    // What is noted apart from the data must not be ahead of it after a crash of the machine.
    seal::sync_commits(&mut writer.connection).await?;
    let deleted = delete_and_sign(writer, settings, row).await;
    seal::spare_commits(&mut writer.connection, writer.sync).await?;
    deleted
}

async fn delete_and_sign(writer: &mut Writer, settings: &Settings, row: i64) -> Result<u64, StoreError> {
    let keys = settings.keys.as_deref().map(Keys::open).transpose()?;
    let mut transaction = writer.connection.begin_with("BEGIN IMMEDIATE").await?;
    if let Some(keys) = &keys
        && let Some(broken) = continuity::check(&mut transaction, &mut writer.watched, keys).await?
    {
        transaction.commit().await?;
        return Err(broken);
    }
    let (last,): (Option<i64>,) = sqlx::query_as("SELECT max(row) FROM record WHERE row < ?")
        .bind(row)
        .fetch_one(&mut *transaction)
        .await?;
    let Some(last) = last else { return Ok(0) };
    // What is being written keeps its segment.
    let row = last + 1;
    sqlx::query(
        "UPDATE trail SET pruned_row = ?1, pruned_hash = coalesce((SELECT hash FROM record WHERE row = ?1), pruned_hash)
         WHERE pruned_row < ?1",
    )
    .bind(last)
    .execute(&mut *transaction)
    .await?;
    rollup::take_out(&mut transaction, row).await?;
    let deleted = sqlx::query("DELETE FROM record WHERE row < ?")
        .bind(row)
        .execute(&mut *transaction)
        .await?;
    for sql in [
        "DELETE FROM span WHERE segment < ?1",
        "DELETE FROM segment WHERE segment < ?1",
        "DELETE FROM evaluations WHERE segment < ?1",
        "UPDATE segment SET min_time = coalesce((SELECT min(time) FROM record WHERE row < (?1 + 1) * ?2), min_time)
         WHERE segment = ?1",
    ] {
        sqlx::query(sql)
            .bind(row / SEGMENT_ROWS)
            .bind(SEGMENT_ROWS)
            .execute(&mut *transaction)
            .await?;
    }
    rollup::mend(&mut transaction, row).await?;
    sqlx::query("UPDATE trail SET pruned = pruned + ?")
        .bind(deleted.rows_affected().cast_signed())
        .execute(&mut *transaction)
        .await?;
    // In the same transaction: what is left begins where it is signed to begin, at every moment.
    let sealed = match &keys {
        Some(keys) => seal::sign(&mut transaction, keys).await?,
        None => None,
    };
    transaction.commit().await?;
    writer.share.count(&mut writer.connection).await?;
    if let (Some(keys), Some(checkpoint)) = (keys, sealed) {
        keys.note(&checkpoint)?;
    }
    Ok(deleted.rows_affected())
}
