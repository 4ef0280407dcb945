// SPDX-License-Identifier: Apache-2.0
//! Checkpoints of this store's chain.

use std::path::Path;

use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::place::{self, head};
use super::{Durability, Store, StoreError, Use, Writer, continuity, spooled};
use crate::audit::clock;
use crate::audit::record::Timestamp;
use crate::audit::seal::{Checkpoint, Keys};

/// Age at which a key gets a successor.
const KEY_AGE: i64 = 365 * 86_400 * 1_000_000_000;

/// Signs where the chain stands, if it moved since it was last signed.
pub(super) async fn seal(writer: &mut Writer, directory: &Path) -> Result<Option<Checkpoint>, StoreError> {
    let mut keys = Keys::open(directory)?;
    if clock::now() - keys.current().created.0 > KEY_AGE {
        keys = Keys::rotate(directory)?;
        tracing::info!(key = %keys.current().key, "the audit trail's key is a year old: it has a successor");
    }
    // What is noted apart from the data must not be ahead of it after a crash of the machine.
    sync_commits(&mut writer.connection).await?;
    let sealed = sign_if_it_goes_on(writer, &keys).await;
    spare_commits(&mut writer.connection, writer.sync).await?;
    let sealed = sealed?;
    if let Some(checkpoint) = &sealed {
        if writer.watched.used_as == Use::Spool {
            spooled::note(&mut writer.connection, directory, checkpoint).await?;
        }
        keys.note(checkpoint)?;
    }
    Ok(sealed)
}

impl Store {
    /// Signs where the chain stands, if the store has keys and the chain moved since.
    pub(super) async fn sign(&self) -> Result<Option<Checkpoint>, StoreError> {
        let Some(keys) = &self.settings.keys else {
            return Ok(None);
        };
        // What it cannot do is done where others wait.
        if let Err(error) = self.look_ahead(keys).await {
            tracing::debug!(%error, "cannot look ahead whether the audit trail goes on");
        }
        seal(&mut *self.writing().await?, keys).await
    }

    /// Looks whether the chain goes on from what was signed, while others append to it: after a start there may be many
    /// entries that were not signed yet.
    async fn look_ahead(&self, directory: &Path) -> Result<(), StoreError> {
        if self.writer.lock().await.watched.is_verified() {
            return Ok(());
        }
        let keys = Keys::open(directory)?;
        let mut house = self.house.acquire().await?;
        let mut moment = house.begin().await?;
        let (head, used_as) = {
            let mut writer = self.writing().await?;
            // From here on it is of one moment.
            let head = head(&mut moment).await?;
            if !writer.watched.begin(head) {
                return Ok(());
            }
            (head, writer.watched.used_as)
        };
        if continuity::goes_on(&mut moment, used_as, &keys, head).await? {
            self.writer.lock().await.watched.end();
        }
        Ok(())
    }
}

async fn sign_if_it_goes_on(writer: &mut Writer, keys: &Keys) -> Result<Option<Checkpoint>, StoreError> {
    let mut transaction = writer.connection.begin_with("BEGIN IMMEDIATE").await?;
    let broken = continuity::check(&mut transaction, &mut writer.watched, keys).await?;
    let sealed = match &broken {
        Some(_) => None,
        None => sign(&mut transaction, keys).await?,
    };
    transaction.commit().await?;
    broken.map_or(Ok(sealed), Err)
}

/// The last checkpoint that there is.
pub(super) async fn last(connection: &mut SqliteConnection) -> Result<Option<Checkpoint>, StoreError> {
    let last: Option<(i64, String)> =
        sqlx::query_as("SELECT row, text FROM checkpoint ORDER BY row DESC LIMIT 1")
            .fetch_optional(connection)
            .await?;
    last.map(|(row, text)| super::ship::parse(row, &text)).transpose()
}

/// From now on a commit returns when it, and all before it, is on disk: what others learn of the chain must not be
/// ahead of it after a crash of the machine. Not within a transaction.
pub(super) async fn sync_commits(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::raw_sql("PRAGMA synchronous = FULL")
        .execute(connection)
        .await?;
    Ok(())
}

/// Commits are again as they were: on disk some time later, where that is enough.
pub(super) async fn spare_commits(
    connection: &mut SqliteConnection,
    sync: Durability,
) -> Result<(), StoreError> {
    if sync == Durability::Batch {
        return Ok(());
    }
    sqlx::raw_sql("PRAGMA synchronous = NORMAL")
        .execute(connection)
        .await?;
    Ok(())
}

/// Signs where the chain stands within a transaction. What a checkpoint says of removed entries alone is kept no longer
/// than those.
pub(super) async fn sign(
    connection: &mut SqliteConnection,
    keys: &Keys,
) -> Result<Option<Checkpoint>, StoreError> {
    let head = head(connection).await?;
    let pruned_to = place::pruned(connection).await?;
    let pruned = pruned_to.0.cast_signed();
    let last: Option<(i64, i64)> =
        sqlx::query_as("SELECT seq, pruned FROM checkpoint ORDER BY row DESC LIMIT 1")
            .fetch_optional(&mut *connection)
            .await?;
    if last == Some((head.seq.cast_signed(), pruned)) {
        return Ok(None);
    }
    keep_keys(connection, keys).await?;
    let checkpoint = Checkpoint::sign(head, Timestamp(clock::now()), pruned_to, keys);
    sqlx::query("INSERT INTO checkpoint (seq, pruned, text) VALUES (?, ?, ?)")
        .bind(head.seq.cast_signed())
        .bind(pruned)
        .bind(text(&checkpoint))
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM checkpoint WHERE seq < ?")
        .bind(pruned)
        .execute(connection)
        .await?;
    Ok(Some(checkpoint))
}

/// Keeps the public parts beside what they have signed.
pub(super) async fn keep_keys(connection: &mut SqliteConnection, keys: &Keys) -> Result<(), StoreError> {
    for key in keys.records() {
        sqlx::query("INSERT OR IGNORE INTO signing_key (key, text) VALUES (?, ?)")
            .bind(&key.key)
            .bind(text(key))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

pub(super) fn text(value: &impl serde::Serialize) -> String {
    // Plain structures of texts and numbers: this does not fail.
    serde_json::to_string(value).unwrap_or_default()
}
