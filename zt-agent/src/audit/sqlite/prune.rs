// SPDX-License-Identifier: Apache-2.0
//! Making room: the oldest records go, a segment at a time, and are counted.

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::schema::SEGMENT_ROWS;
use super::{Settings, StoreError};
use crate::audit::clock;
use crate::audit::store::Pruned;

const NANOSECONDS_A_DAY: i64 = 86_400_000_000_000;
/// Pages given back to the file system at a time, where the file is larger than it may be.
const VACUUM: &str = "PRAGMA incremental_vacuum(2048)";

/// One piece of work: at most one segment for space and one for age.
pub(super) async fn prune(
    connection: &mut SqliteConnection,
    settings: &Settings,
) -> Result<Pruned, StoreError> {
    let mut pruned = Pruned::default();
    if let Some(days) = settings.retention_days {
        let cutoff = clock::now().saturating_sub(i64::from(days).saturating_mul(NANOSECONDS_A_DAY));
        if let Some(row) = first_row_since(connection, cutoff).await? {
            pruned.for_age = delete_below(connection, row).await?;
        }
    }
    let (pages, free, page_size): (i64, i64, i64) = sqlx::query_as(
        "SELECT page_count, freelist_count, page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
    )
    .fetch_one(&mut *connection)
    .await?;
    let limit = i64::try_from(settings.max_disk_bytes).unwrap_or(i64::MAX);
    // An eighth is left to the write-ahead log and to what comes in until the next look.
    if (pages - free) * page_size > limit - limit / 8
        && let Some(row) = first_row_of_second_segment(connection).await?
    {
        pruned.for_space = delete_below(connection, row).await?;
    }
    // Free pages are used again; they only have to go where the limit was lowered.
    let too_large = free > 0 && pages * page_size > limit;
    if too_large {
        sqlx::query(VACUUM).execute(&mut *connection).await?;
    }
    pruned.more = too_large || pruned.for_age > 0 || pruned.for_space > 0;
    Ok(pruned)
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
async fn delete_below(connection: &mut SqliteConnection, row: i64) -> Result<u64, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let gone = sqlx::query("DELETE FROM record WHERE row < ?")
        .bind(row)
        .execute(&mut *transaction)
        .await?;
    for sql in [
        "DELETE FROM span WHERE segment < ?",
        "DELETE FROM segment WHERE segment < ?",
    ] {
        sqlx::query(sql)
            .bind(row / SEGMENT_ROWS)
            .execute(&mut *transaction)
            .await?;
    }
    sqlx::query("DELETE FROM shape WHERE last_row < ?")
        .bind(row)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("UPDATE trail SET pruned = pruned + ?")
        .bind(gone.rows_affected().cast_signed())
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(gone.rows_affected())
}
