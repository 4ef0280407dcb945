// SPDX-License-Identifier: Apache-2.0
//! The hourly counts when records go: what the records stood for goes with them, in the same transaction.

use sqlx::sqlite::SqliteConnection;

use super::StoreError;
use super::schema::SEGMENT_ROWS;
use crate::audit::query::HOUR;

/// What the records before a row stood for; in memory, on the one connection that writes.
const GONE: &str = "
CREATE TEMP TABLE IF NOT EXISTS gone (
    shape INTEGER NOT NULL, hour INTEGER NOT NULL, connections INTEGER NOT NULL, PRIMARY KEY (shape, hour)
) STRICT, WITHOUT ROWID;
DELETE FROM temp.gone;
";

/// Takes the records before `row` out of the counts. They are still there.
pub(super) async fn take_out(connection: &mut SqliteConnection, row: i64) -> Result<(), StoreError> {
    sqlx::raw_sql(GONE).execute(&mut *connection).await?;
    sqlx::query(
        "INSERT INTO temp.gone SELECT shape, time / ?2, sum(count) FROM record WHERE row < ?1 GROUP BY 1, 2",
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
    // Segment by segment from the oldest on, until each hour has been seen: as a rule that is the first segment.
    while let Some(segment) = segments.pop() {
        for sql in [
            "UPDATE bucket SET first_seen = f.first
             FROM (SELECT shape, time / ?3 AS hour, min(time) AS first FROM record
                   WHERE row >= ?1 AND row < ?2 GROUP BY 1, 2) f
             WHERE bucket.shape = f.shape AND bucket.hour = f.hour
               AND (bucket.shape, bucket.hour) IN (SELECT shape, hour FROM temp.gone)",
            "DELETE FROM temp.gone WHERE (shape, hour) IN
                 (SELECT shape, time / ?3 FROM record WHERE row >= ?1 AND row < ?2)",
        ] {
            sqlx::query(sql)
                .bind(segment * SEGMENT_ROWS)
                .bind((segment + 1) * SEGMENT_ROWS)
                .bind(HOUR)
                .execute(&mut *connection)
                .await?;
        }
        let (left,): (i64,) = sqlx::query_as(
            "SELECT count(*) FROM temp.gone g JOIN bucket b ON b.shape = g.shape AND b.hour = g.hour",
        )
        .fetch_one(&mut *connection)
        .await?;
        if left == 0 {
            break;
        }
    }
    Ok(())
}
