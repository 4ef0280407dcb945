// SPDX-License-Identifier: Apache-2.0
//! A day that is to be dropped is closed first: it takes no more records, so that what is in it can be counted for as long
//! as that takes, with nothing locked. Who inserts into it meanwhile is refused at once, and sends the record again later:
//! then the day is gone, and the record is a stray like all of its age.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::PgError;

/// The check that a closed day has and nothing passes. What is there already is not checked.
pub(super) const CLOSED: &str = "record_closed";

/// One closing of one partition: another one has another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closing(i64);

/// Closes a partition, unless it is closed. Whoever has begun to insert into it is waited for: after this nothing comes.
/// `None` where somebody opens it at the same time.
pub(super) async fn close(
    connection: &mut PgConnection,
    partition: &str,
) -> Result<Option<Closing>, PgError> {
    if let Some(closing) = closing_of(connection, partition).await? {
        return Ok(Some(closing));
    }
    // The name is made of digits.
    let sql = format!("ALTER TABLE zt_audit.{partition} ADD CONSTRAINT {CLOSED} CHECK (false) NOT VALID");
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut *connection)
        .await?;
    closing_of(connection, partition).await
}

/// How a partition is closed; `None` where it is open.
pub(super) async fn closing_of(
    connection: &mut PgConnection,
    partition: &str,
) -> Result<Option<Closing>, PgError> {
    let number: Option<i64> = sqlx::query_scalar(
        "SELECT oid::bigint FROM pg_catalog.pg_constraint
         WHERE conrelid = to_regclass('zt_audit.' || $1) AND conname = $2",
    )
    .bind(partition)
    .bind(CLOSED)
    .fetch_optional(connection)
    .await?;
    Ok(number.map(Closing))
}

/// The partitions that are closed.
pub(super) async fn closed(connection: &mut PgConnection) -> Result<Vec<String>, PgError> {
    Ok(sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_catalog.pg_inherits i
         JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
         JOIN pg_catalog.pg_constraint k ON k.conrelid = c.oid AND k.conname = $1
         WHERE i.inhparent = 'zt_audit.record'::regclass",
    )
    .bind(CLOSED)
    .fetch_all(connection)
    .await?)
}

/// Opens a partition, where it is there and closed.
pub(super) async fn open(connection: &mut PgConnection, partition: &str) -> Result<(), PgError> {
    // The name is made of digits.
    let sql = format!("ALTER TABLE IF EXISTS zt_audit.{partition} DROP CONSTRAINT IF EXISTS {CLOSED}");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}
