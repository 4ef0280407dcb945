// SPDX-License-Identifier: Apache-2.0
//! The policy that this node's trail told last, so that what changed while no agent ran can be told at the next start.
//! It is kept beside the records, for those go when they are old or shipped.

use sqlx::sqlite::SqliteConnection;

use super::{Store, StoreError, intents};
use crate::audit::record::Entry;

const TABLE: &str = "
CREATE TABLE IF NOT EXISTS policy_told (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    digest TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS policy_late (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    digest TEXT NOT NULL
) STRICT;
";

impl Store {
    /// Digest of the policy in force that was recorded, or noted, last; `None` in a new trail.
    pub async fn policy_told(&self) -> Result<Option<String>, StoreError> {
        told(&mut *self.house.acquire().await?).await
    }

    /// Notes the digest of the policy that a new trail begins with, or that was told before it came into force.
    pub async fn note_policy(&self, digest: &str) -> Result<(), StoreError> {
        note(&mut self.writing().await?.connection, digest).await
    }

    /// Digest of the policy whose change is recorded and that had not come into force by then; `None` where there is none,
    /// or another one has come into force since.
    pub async fn policy_late(&self) -> Result<Option<String>, StoreError> {
        late(&mut *self.house.acquire().await?).await
    }

    /// Notes that the change to this policy is recorded and will come into force some time.
    pub async fn note_late(&self, digest: &str) -> Result<(), StoreError> {
        set_late(&mut self.writing().await?.connection, digest).await
    }
}

/// Makes the tables where they are missing.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::raw_sql(TABLE).execute(&mut *connection).await?;
    intents::prepare(connection).await
}

/// Notes the last policy that these entries say came into force, and that the changes which they tell of need no note any more,
/// in the transaction that keeps them.
pub(super) async fn note_last(
    connection: &mut SqliteConnection,
    entries: &[Entry],
) -> Result<(), StoreError> {
    intents::recorded(connection, entries).await?;
    match entries.iter().rev().find_map(in_force) {
        Some(digest) => note(connection, digest).await,
        None => Ok(()),
    }
}

fn in_force(entry: &Entry) -> Option<&str> {
    let Entry::PolicyChange(change) = entry else {
        return None;
    };
    // The field is there where the change is not in force, and only there.
    let what = change
        .change
        .as_object()
        .filter(|what| !what.contains_key("in_force"))?;
    what.get("to")?.as_str()
}

/// The policy that was told last, as the file says.
pub(super) async fn told(connection: &mut SqliteConnection) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar("SELECT digest FROM policy_told")
        .fetch_optional(connection)
        .await?)
}

/// The policy that was told and had not come into force, as the file says.
pub(super) async fn late(connection: &mut SqliteConnection) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar("SELECT digest FROM policy_late")
        .fetch_optional(connection)
        .await?)
}

/// Notes a policy that was told and will come into force some time.
pub(super) async fn set_late(connection: &mut SqliteConnection, digest: &str) -> Result<(), StoreError> {
    sqlx::query("INSERT OR REPLACE INTO policy_late VALUES (1, ?)")
        .bind(digest)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes the policy that is told, and in force.
pub(super) async fn note(connection: &mut SqliteConnection, digest: &str) -> Result<(), StoreError> {
    sqlx::query("INSERT OR REPLACE INTO policy_told VALUES (1, ?)")
        .bind(digest)
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM policy_late").execute(connection).await?;
    Ok(())
}
