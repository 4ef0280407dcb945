// SPDX-License-Identifier: Apache-2.0
//! What a spool says of the one in whose place it is: which of its entries are lost, signed, so that the server has that
//! too.

use sqlx::sqlite::SqliteConnection;

use super::ship::readable;
use super::{Store, StoreError, seal};
use crate::audit::seal::{Checkpoint, Gap};

/// One row for each spool that was put aside, until the server has what it says.
pub(super) const TABLE: &str = "
CREATE TABLE IF NOT EXISTS predecessor (
    row INTEGER PRIMARY KEY,
    gap TEXT NOT NULL,
    checkpoint TEXT
) STRICT;
";

/// What is stated of a spool that was put aside.
#[derive(Clone, Debug)]
pub struct Before {
    /// Its entries that the server does not have.
    pub gap: Gap,
    /// Where its chain ended; `None` where nothing of it was ever signed.
    pub checkpoint: Option<Checkpoint>,
}

impl Store {
    /// What is stated of spools that were put aside and the server does not have, each with its row.
    pub async fn stated_before(&self) -> Result<Vec<(i64, Before)>, StoreError> {
        read(&mut *self.house.acquire().await?).await
    }

    /// Notes that the server has these.
    pub async fn before_shipped(&self, rows: &[i64]) -> Result<(), StoreError> {
        let mut writer = self.writing().await?;
        sqlx::query("DELETE FROM predecessor WHERE row IN (SELECT value FROM json_each(?))")
            .bind(super::rows::json(rows))
            .execute(&mut writer.connection)
            .await?;
        Ok(())
    }
}

/// What a file says of those that were in its place.
pub(super) async fn read(connection: &mut SqliteConnection) -> Result<Vec<(i64, Before)>, StoreError> {
    let rows: Vec<(i64, String, Option<String>)> =
        sqlx::query_as("SELECT row, gap, checkpoint FROM predecessor ORDER BY row")
            .fetch_all(connection)
            .await?;
    let stated = |(row, gap, checkpoint): (i64, String, Option<String>)| {
        let gap = readable(row, &gap)?;
        let checkpoint = checkpoint.and_then(|text| readable(row, &text));
        Some((row, Before { gap, checkpoint }))
    };
    Ok(rows.into_iter().filter_map(stated).collect())
}

/// Keeps a statement until the server has it.
pub(super) async fn keep(connection: &mut SqliteConnection, before: &Before) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO predecessor (gap, checkpoint) VALUES (?, ?)")
        .bind(seal::text(&before.gap))
        .bind(before.checkpoint.as_ref().map(seal::text))
        .execute(connection)
        .await?;
    Ok(())
}
