// SPDX-License-Identifier: Apache-2.0
//! The changes of policy that were about to be made and are not recorded yet. They are beside the records, so that each goes in the
//! transaction that keeps the record of it.

use std::sync::Arc;

use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;

use super::{Store, StoreError};
use crate::audit::intent::{Intended, Intent};
use crate::audit::record::{Entry, Timestamp};
use crate::audit::store::Sink as _;

const TABLE: &str = "
CREATE TABLE IF NOT EXISTS policy_intent (
    row INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    at INTEGER NOT NULL,
    caller TEXT NOT NULL,
    policy TEXT NOT NULL,
    policy_before TEXT,
    policy_after TEXT,
    from_digest TEXT NOT NULL,
    to_digest TEXT NOT NULL,
    diff TEXT NOT NULL
) STRICT;
";

/// The most notes that are looked at: a start has room for them all.
const MOST: u32 = 10_000;

/// A new note.
const NOTE: &str = "INSERT INTO policy_intent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
/// One that comes from a damaged file: it may come twice.
const CARRY: &str = "INSERT OR IGNORE INTO policy_intent VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// A row, in the order of the columns.
type Row = (
    i64,
    i64,
    i64,
    String,
    String,
    Option<String>,
    Option<String>,
    String,
    String,
    String,
);

impl Store {
    /// Notes a change that is about to be made, in the place of the same one that its caller tried before and that nobody went
    /// on from. When this returns, the note survives a crash of the machine.
    pub async fn note_intent(&self, intent: &Intent) -> Result<Intended, StoreError> {
        let noting = || async move { note(&mut self.writing().await?.connection, intent).await };
        let noted = self.or_anew(noting).await?;
        if let Some(syncer) = &self.syncer {
            syncer.written();
        }
        self.sync().await?;
        Ok(noted)
    }

    /// What was noted and is not recorded, the oldest first.
    pub async fn intents(&self) -> Result<Vec<(Intended, Intent)>, StoreError> {
        intents(&mut *self.house.acquire().await?).await
    }

    /// Forgets a change that was not made.
    pub async fn forget_intent(&self, noted: Intended) -> Result<(), StoreError> {
        // A number is given again once it is free.
        sqlx::query("DELETE FROM policy_intent WHERE row = ? AND run = ? AND at = ?")
            .bind(noted.row)
            .bind(noted.run)
            .bind(noted.at.0)
            .execute(&mut self.writing().await?.connection)
            .await?;
        Ok(())
    }

    /// Forgets a change that was not made, and of which it is not known whether it was noted.
    pub async fn forget_attempt(&self, intent: &Intent) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM policy_intent WHERE run = ? AND at = ? AND caller = ?")
            .bind(intent.run)
            .bind(intent.at.0)
            .bind(&*intent.caller)
            .execute(&mut self.writing().await?.connection)
            .await?;
        Ok(())
    }
}

/// Makes the table where it is missing.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::raw_sql(TABLE).execute(connection).await?;
    Ok(())
}

/// What the file says was noted and is not recorded, the oldest first, at most [`MOST`].
pub(super) async fn intents(
    connection: &mut SqliteConnection,
) -> Result<Vec<(Intended, Intent)>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT row, run, at, caller, policy, policy_before, policy_after, from_digest, to_digest, diff FROM policy_intent \
         ORDER BY row LIMIT ?",
    )
    .bind(MOST)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(read).collect())
}

fn read((row, run, at, caller, policy, before, after, from, to, diff): Row) -> (Intended, Intent) {
    let diff = serde_json::from_str(&diff).unwrap_or_else(|error| {
        tracing::warn!(%error, policy, "the difference that a change of policy was to make cannot be read");
        serde_json::Value::Null
    });
    let intent = Intent {
        run,
        at: Timestamp(at),
        caller: Arc::from(caller),
        policy,
        before,
        after,
        from,
        to,
        diff,
    };
    let noted = Intended {
        row,
        run,
        at: intent.at,
    };
    (noted, intent)
}

async fn note(connection: &mut SqliteConnection, intent: &Intent) -> Result<Intended, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    // Who tries again what failed leaves one note. What somebody went on from was made, and has to be told.
    sqlx::query(
        "DELETE FROM policy_intent WHERE run = ? AND caller = ? AND policy = ? AND from_digest = ? AND to_digest = ? \
         AND NOT EXISTS (SELECT 1 FROM policy_intent AS later WHERE later.row > policy_intent.row \
         AND later.from_digest = policy_intent.to_digest)",
    )
    .bind(intent.run)
    .bind(&*intent.caller)
    .bind(&intent.policy)
    .bind(&intent.from)
    .bind(&intent.to)
    .execute(&mut *transaction)
    .await?;
    let row = insert(&mut transaction, NOTE, (None, intent)).await?;
    transaction.commit().await?;
    Ok(Intended {
        row,
        run: intent.run,
        at: intent.at,
    })
}

/// Keeps a note that another file had, under its number.
pub(super) async fn carry(
    connection: &mut SqliteConnection,
    noted: Intended,
    intent: &Intent,
) -> Result<(), StoreError> {
    insert(connection, CARRY, (Some(noted.row), intent)).await?;
    Ok(())
}

/// Inserts a row, and returns its number.
async fn insert(
    connection: &mut SqliteConnection,
    sql: &'static str,
    (row, intent): (Option<i64>, &Intent),
) -> Result<i64, StoreError> {
    let done = sqlx::query(sql)
        .bind(row)
        .bind(intent.run)
        .bind(intent.at.0)
        .bind(&*intent.caller)
        .bind(&intent.policy)
        .bind(&intent.before)
        .bind(&intent.after)
        .bind(&intent.from)
        .bind(&intent.to)
        .bind(intent.diff.to_string())
        .execute(connection)
        .await?;
    Ok(done.last_insert_rowid())
}

/// Takes away the notes of the changes that these entries are the records of, in the transaction that keeps them.
pub(super) async fn recorded(connection: &mut SqliteConnection, entries: &[Entry]) -> Result<(), StoreError> {
    for entry in entries {
        let Entry::PolicyChange(change) = entry else {
            continue;
        };
        let digests = (change.change["from"].as_str(), change.change["to"].as_str());
        let (Some(from), Some(to)) = digests else {
            continue;
        };
        // Each has a record of its own, also where somebody made the same change twice.
        sqlx::query(
            "DELETE FROM policy_intent WHERE row = (SELECT min(row) FROM policy_intent WHERE caller = ? AND from_digest = ? \
             AND to_digest = ?)",
        )
        .bind(&*change.caller)
        .bind(from)
        .bind(to)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
