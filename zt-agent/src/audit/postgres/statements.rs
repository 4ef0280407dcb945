// SPDX-License-Identifier: Apache-2.0
//! Statements on their way: checkpoints, gaps, and the keys that signed them.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::audit::seal::{Checkpoint, Gap, KeyRecord};

const KEYS: &str = "
INSERT INTO zt_audit.signing_key (created, text)
SELECT * FROM unnest($1::bigint[], $2::text[]) ON CONFLICT DO NOTHING";

const CHECKPOINTS: &str = "
INSERT INTO zt_audit.checkpoint (writer, seq, time, text)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[]) ON CONFLICT DO NOTHING";

const GAPS: &str = "
INSERT INTO zt_audit.gap (writer, first, last, text)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[]) ON CONFLICT DO NOTHING";

/// Keeps keys.
pub(super) async fn insert_keys(
    connection: &mut PgConnection,
    keys: &[KeyRecord],
) -> Result<(), sqlx::Error> {
    if keys.is_empty() {
        return Ok(());
    }
    sqlx::query(KEYS)
        .bind(each(keys, |key| key.created.0))
        .bind(texts(keys)?)
        .execute(connection)
        .await?;
    Ok(())
}

/// Keeps checkpoints.
pub(super) async fn insert_checkpoints(
    connection: &mut PgConnection,
    checkpoints: &[Checkpoint],
) -> Result<(), sqlx::Error> {
    if checkpoints.is_empty() {
        return Ok(());
    }
    sqlx::query(CHECKPOINTS)
        .bind(each(checkpoints, |checkpoint| checkpoint.writer))
        .bind(each(checkpoints, |checkpoint| checkpoint.seq.cast_signed()))
        .bind(each(checkpoints, |checkpoint| checkpoint.time.0))
        .bind(texts(checkpoints)?)
        .execute(connection)
        .await?;
    Ok(())
}

/// Keeps statements of gaps.
pub(super) async fn insert_gaps(connection: &mut PgConnection, gaps: &[Gap]) -> Result<(), sqlx::Error> {
    if gaps.is_empty() {
        return Ok(());
    }
    sqlx::query(GAPS)
        .bind(each(gaps, |gap| gap.writer))
        .bind(each(gaps, |gap| gap.first.cast_signed()))
        .bind(each(gaps, |gap| gap.last.cast_signed()))
        .bind(texts(gaps)?)
        .execute(connection)
        .await?;
    Ok(())
}

/// What is stated of a writer's gaps.
pub(super) async fn gaps_of(connection: &mut PgConnection, writer: Uuid) -> Result<Vec<Gap>, sqlx::Error> {
    let texts: Vec<String> =
        sqlx::query_scalar("SELECT text FROM zt_audit.gap WHERE writer = $1 ORDER BY first, last")
            .bind(writer)
            .fetch_all(connection)
            .await?;
    // What cannot be read is for the verifier to find.
    Ok(texts
        .iter()
        .filter_map(|text| serde_json::from_str(text).ok())
        .collect())
}

/// Removes statements that others stand for.
pub(super) async fn delete_gaps(connection: &mut PgConnection, gaps: &[Gap]) -> Result<(), sqlx::Error> {
    if gaps.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "DELETE FROM zt_audit.gap g USING unnest($1::uuid[], $2::text[]) AS n (writer, text)
         WHERE g.writer = n.writer AND g.text = n.text",
    )
    .bind(each(gaps, |gap| gap.writer))
    .bind(texts(gaps)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes the checkpoints before an entry, all up to which were pruned; never a writer's last.
pub(super) async fn delete_checkpoints(
    connection: &mut PgConnection,
    writer: Uuid,
    before: u64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "DELETE FROM zt_audit.checkpoint WHERE writer = $1 AND seq < $2
         AND EXISTS (SELECT FROM zt_audit.checkpoint WHERE writer = $1 AND seq >= $2)",
    )
    .bind(writer)
    .bind(before.cast_signed())
    .execute(connection)
    .await?;
    Ok(())
}

fn each<S, T>(values: &[S], get: impl Fn(&S) -> T) -> Vec<T> {
    values.iter().map(get).collect()
}

fn texts(values: &[impl serde::Serialize]) -> Result<Vec<String>, sqlx::Error> {
    let texts = values.iter().map(serde_json::to_string).collect::<Result<_, _>>();
    texts.map_err(|error| sqlx::Error::Encode(error.into()))
}
