// SPDX-License-Identifier: Apache-2.0
//! Days that are over are added up from their hours, so that the graph of a year reads days. What comes for such a day
//! later the server counts in both.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};

use super::PgError;

/// What is there of a day that is not added up was left by somebody who took its mark away.
const CLEAR: &str = "DELETE FROM zt_audit.bucket_day WHERE day = $1";
const ADD_UP: &str = "
INSERT INTO zt_audit.bucket_day (shape, day, login, connections, first_seen, last_seen)
SELECT shape, $1::integer, login, least(sum(connections), 9223372036854775807)::bigint, min(first_seen), max(last_seen)
FROM zt_audit.bucket WHERE hour BETWEEN $1::bigint * 24 AND $1::bigint * 24 + 23 GROUP BY shape, login";
const MARK: &str = "INSERT INTO zt_audit.whole_day VALUES ($1)";

/// The days that are added up, in order.
pub(super) async fn added_up(connection: &mut PgConnection) -> Result<Vec<i32>, PgError> {
    Ok(
        sqlx::query_scalar("SELECT day FROM zt_audit.whole_day ORDER BY day")
            .fetch_all(connection)
            .await?,
    )
}

/// Adds up a day. False where that cannot be now: somebody inserts into its partition for longer than one waits, or it is
/// gone, or another maintainer was faster.
pub(super) async fn add_up(
    connection: &mut PgConnection,
    day: i32,
    partition: &str,
) -> Result<bool, PgError> {
    let mut transaction = connection.begin().await?;
    // Whoever inserts into this day is waited for, and waits: what is counted before is in the sum, what is counted after
    // finds the mark. The name is made of digits.
    let lock = format!("LOCK TABLE zt_audit.{partition} IN SHARE ROW EXCLUSIVE MODE");
    match sqlx::raw_sql(AssertSqlSafe(lock))
        .execute(&mut *transaction)
        .await
    {
        Ok(_) => {}
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("55P03" | "42P01")) => {
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    }
    if added_up(&mut transaction).await?.contains(&day) {
        return Ok(false);
    }
    for sql in [CLEAR, ADD_UP, MARK] {
        sqlx::query(sql).bind(day).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// Forgets all that is counted of a day whose records go, and what they were of.
pub(super) async fn forget(connection: &mut PgConnection, day: i32) -> Result<(), PgError> {
    for sql in [
        "DELETE FROM zt_audit.whole_day WHERE day = $1",
        "DELETE FROM zt_audit.bucket_day WHERE day = $1",
        "DELETE FROM zt_audit.bucket WHERE hour BETWEEN $1::bigint * 24 AND $1::bigint * 24 + 23",
        "DELETE FROM zt_audit.shape WHERE day = $1",
    ] {
        sqlx::query(sql).bind(day).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Removes what is counted before a day.
pub(super) async fn forget_before(connection: &mut PgConnection, day: i32) -> Result<(), PgError> {
    for sql in [
        "DELETE FROM zt_audit.whole_day WHERE day < $1",
        "DELETE FROM zt_audit.bucket_day WHERE day < $1",
        "DELETE FROM zt_audit.bucket WHERE hour < $1::bigint * 24",
    ] {
        sqlx::query(sql).bind(day).execute(&mut *connection).await?;
    }
    Ok(())
}
