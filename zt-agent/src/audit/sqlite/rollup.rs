// SPDX-License-Identifier: Apache-2.0
//! The hourly counts when records go: what the records stood for goes with them, in the same transaction.

use sqlx::sqlite::SqliteConnection;

use super::StoreError;
use super::schema::SEGMENT_ROWS;
use crate::audit::query::HOUR;

/// Segments that are looked at for an earlier connection, when one was found.
const MORE_SEGMENTS: u32 = 4;

/// What the records before a row stood for, and the first of those that are left; in memory, on the one connection that writes.
const GONE: &str = "
CREATE TEMP TABLE IF NOT EXISTS gone (
    shape INTEGER NOT NULL, hour INTEGER NOT NULL, connections INTEGER NOT NULL, first INTEGER,
    PRIMARY KEY (shape, hour)
) STRICT, WITHOUT ROWID;
DELETE FROM temp.gone;
";

/// Takes the records before `row` out of the counts. They are still there.
pub(super) async fn take_out(connection: &mut SqliteConnection, row: i64) -> Result<(), StoreError> {
    sqlx::raw_sql(GONE).execute(&mut *connection).await?;
    sqlx::query(
        "INSERT INTO temp.gone SELECT shape, time / ?2, sum(count), NULL FROM record WHERE row < ?1 GROUP BY 1, 2",
    )
    .bind(row)
    .bind(HOUR)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "UPDATE bucket SET connections = bucket.connections - g.connections FROM temp.gone g
         WHERE bucket.shape = g.shape AND bucket.hour = g.hour",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes hours and shapes that have nothing left, and finds the first connection of those that lost it. The records
/// before `row` are gone.
pub(super) async fn mend(connection: &mut SqliteConnection, row: i64) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM bucket WHERE connections <= 0 AND (shape, hour) IN (SELECT shape, hour FROM temp.gone)",
    )
    .execute(&mut *connection)
    .await?;
    let unused = sqlx::query(
        "DELETE FROM shape WHERE id IN (SELECT shape FROM temp.gone)
         AND NOT EXISTS (SELECT 1 FROM bucket WHERE bucket.shape = shape.id)",
    )
    .execute(&mut *connection)
    .await?;
    if unused.rows_affected() > 0 {
        sqlx::query("UPDATE trail SET shapes_gone = shapes_gone + 1")
            .execute(&mut *connection)
            .await?;
    }
    let mut segments: Vec<i64> =
        sqlx::query_scalar("SELECT segment FROM segment WHERE segment >= ? ORDER BY segment DESC")
            .bind(row / SEGMENT_ROWS)
            .fetch_all(&mut *connection)
            .await?;
    // Segment by segment from the oldest on, until each hour has been seen: as a rule that is the first segment. Then some
    // more, where one of them may have an earlier connection all the same: entries are only nearly in the order of time.
    let (mut seen, mut more) = (-1, MORE_SEGMENTS);
    while let Some(segment) = segments.pop() {
        sqlx::query(
            "UPDATE temp.gone SET first = min(coalesce(gone.first, f.first), f.first)
             FROM (SELECT shape, time / ?3 AS hour, min(time) AS first FROM record
                   WHERE row >= ?1 AND row < ?2 GROUP BY 1, 2) f
             WHERE gone.shape = f.shape AND gone.hour = f.hour",
        )
        .bind(segment * SEGMENT_ROWS)
        .bind((segment + 1) * SEGMENT_ROWS)
        .bind(HOUR)
        .execute(&mut *connection)
        .await?;
        seen = segment;
        let (unseen, earlier): (bool, bool) = sqlx::query_as(
            "SELECT EXISTS (SELECT 1 FROM temp.gone g JOIN bucket b ON b.shape = g.shape AND b.hour = g.hour
                            WHERE g.first IS NULL),
                    EXISTS (SELECT 1 FROM segment WHERE segment > ? AND min_time < (SELECT max(first) FROM temp.gone))",
        )
        .bind(segment)
        .fetch_one(&mut *connection)
        .await?;
        if !unseen && (!earlier || more == 0) {
            break;
        }
        more -= u32::from(!unseen);
    }
    // Where a segment that was not looked at may have an earlier one, what is noted stays: it is not too late.
    sqlx::query(
        "UPDATE bucket SET first_seen = g.first FROM temp.gone g
         WHERE bucket.shape = g.shape AND bucket.hour = g.hour
           AND g.first <= coalesce((SELECT min(min_time) FROM segment WHERE segment > ?), g.first)",
    )
    .bind(seen)
    .execute(connection)
    .await?;
    Ok(())
}
