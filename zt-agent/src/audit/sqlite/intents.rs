// SPDX-License-Identifier: Apache-2.0
//! The changes of policy that were about to be made and are not recorded yet. They are beside the records, so that each goes in the
//! transaction that keeps the record of it; so are the ids of the last changes that have one, so that none has a second.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::audit::intent::{Intent, Progress};
use crate::audit::record::{Entry, Timestamp};
use crate::audit::store::Sink as _;

/// The first table is that of agents before this one, as they made it: they go on with it where one of them takes over again.
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
CREATE TABLE IF NOT EXISTS policy_change_note (
    row INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    progress INTEGER NOT NULL,
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
CREATE TABLE IF NOT EXISTS policy_recorded (
    row INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE
) STRICT;
";

/// The most notes that are read at once: a start has room for them all.
const MOST: u32 = 10_000;
/// Changes of which it is known that they have a record. Only what is under way can come a second time.
const MOST_RECORDED: i64 = 1000;

/// The notes, and those of an agent before this one, which have no id.
const READ: &str = "SELECT id, progress, run, at, caller, policy, policy_before, policy_after, from_digest, to_digest, diff \
                    FROM policy_change_note ORDER BY row LIMIT ?";
const READ_OLDER: &str = "SELECT NULL, 0, run, at, caller, policy, policy_before, policy_after, from_digest, to_digest, diff \
                          FROM policy_intent ORDER BY row LIMIT ?";
const FORGET_OLDER: &str =
    "DELETE FROM policy_intent WHERE row IN (SELECT row FROM policy_intent ORDER BY row LIMIT ?)";

/// A note: not of a change that has its record, and none twice.
const NOTE: &str = "
INSERT INTO policy_change_note (id, progress, run, at, caller, policy, policy_before, policy_after, from_digest, to_digest, diff)
SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11
WHERE NOT EXISTS (SELECT 1 FROM policy_recorded WHERE id = ?1) AND NOT EXISTS (SELECT 1 FROM policy_change_note WHERE id = ?1)";

/// What somebody went on from was made.
macro_rules! nobody_went_on {
    () => {
        "NOT EXISTS (SELECT 1 FROM policy_change_note AS later WHERE later.row > policy_change_note.row \
         AND later.from_digest = policy_change_note.to_digest)"
    };
}

/// Takes away the notes of what its caller tried before and of which nothing has been heard.
const FORGET_TRIED: &str = concat!(
    "DELETE FROM policy_change_note WHERE run = ? AND caller = ? AND policy = ? AND from_digest = ? AND to_digest = ? \
     AND progress = 0 AND ",
    nobody_went_on!()
);

/// Takes away the older notes of what was to be made of the same policy as the one with that id found it: it was not made, and after
/// that one it will not be.
const FORGET_OVERTAKEN: &str = concat!(
    "DELETE FROM policy_change_note WHERE progress <> 2 AND EXISTS (SELECT 1 FROM policy_change_note AS made WHERE made.id = ? \
     AND made.row > policy_change_note.row AND made.policy = policy_change_note.policy \
     AND made.policy_before IS policy_change_note.policy_before) AND ",
    nobody_went_on!()
);

/// A row, in the order of [`READ`].
type Row = (
    Option<Vec<u8>>,
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
    /// on from. When this returns, the note survives a crash of the machine. A change that has a record is not noted.
    pub async fn note_intent(&self, intent: &Intent) -> Result<(), StoreError> {
        let noting = || async move { note(&mut self.writing().await?.connection, intent).await };
        self.or_anew(noting).await?;
        self.synced().await
    }

    /// Marks how far a change has come, if it is noted. When this returns, that survives a crash of the machine.
    pub async fn mark_intent(&self, id: Uuid, progress: Progress) -> Result<(), StoreError> {
        mark(&mut self.writing().await?.connection, id, progress).await?;
        self.synced().await
    }

    /// What was noted and is not recorded, the oldest first.
    pub async fn intents(&self) -> Result<Vec<Intent>, StoreError> {
        intents(&mut *self.house.acquire().await?).await
    }

    /// Forgets a change that was not made, whether it was noted or not.
    pub async fn forget_intent(&self, id: Uuid) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM policy_change_note WHERE id = ?")
            .bind(id.as_bytes().to_vec())
            .execute(&mut self.writing().await?.connection)
            .await?;
        Ok(())
    }

    /// Returns when what was written before is on disk.
    async fn synced(&self) -> Result<(), StoreError> {
        if let Some(syncer) = &self.syncer {
            syncer.written();
        }
        self.sync().await
    }
}

/// Makes the tables where they are missing, and takes over what an agent before this one has noted, all of it or nothing: each gets
/// its id once.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::raw_sql(TABLE).execute(&mut *connection).await?;
    let is_older: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM policy_intent)")
        .fetch_one(&mut *connection)
        .await?;
    if !is_older {
        return Ok(());
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    loop {
        // Another process may have done it meanwhile.
        let noted = older(&mut transaction).await?;
        if noted.is_empty() {
            break;
        }
        for intent in &noted {
            insert(&mut transaction, intent).await?;
        }
        sqlx::query(FORGET_OLDER)
            .bind(MOST)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// What the file says was noted and is not recorded, the oldest first, at most [`MOST`].
pub(super) async fn intents(connection: &mut SqliteConnection) -> Result<Vec<Intent>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(READ).bind(MOST).fetch_all(connection).await?;
    Ok(rows.into_iter().filter_map(read).collect())
}

/// What an agent before this one noted in the file, the oldest first, at most [`MOST`]. Each gets another id whenever it is read.
pub(super) async fn older(connection: &mut SqliteConnection) -> Result<Vec<Intent>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(READ_OLDER)
        .bind(MOST)
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().filter_map(read).collect())
}

/// A note; `None` where its id cannot be read, by which alone it could go.
fn read((id, progress, run, at, caller, policy, before, after, from, to, diff): Row) -> Option<Intent> {
    let id = match id.map(|id| Uuid::from_slice(&id)) {
        Some(Ok(id)) => id,
        Some(Err(error)) => {
            tracing::warn!(%error, %caller, policy, "the note of a change of policy has no id that can be read, and is left out");
            return None;
        }
        None => Uuid::now_v7(),
    };
    let diff = serde_json::from_str(&diff).unwrap_or_else(|error| {
        tracing::warn!(%error, policy, "the difference that a change of policy was to make cannot be read");
        serde_json::Value::Null
    });
    Some(Intent {
        id,
        progress: Progress::of(progress),
        run,
        at: Timestamp(at),
        caller: Arc::from(caller),
        policy,
        before,
        after,
        from,
        to,
        diff,
    })
}

async fn note(connection: &mut SqliteConnection, intent: &Intent) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query(FORGET_TRIED)
        .bind(intent.run)
        .bind(&*intent.caller)
        .bind(&intent.policy)
        .bind(&intent.from)
        .bind(&intent.to)
        .execute(&mut *transaction)
        .await?;
    insert(&mut transaction, intent).await?;
    transaction.commit().await?;
    Ok(())
}

async fn mark(connection: &mut SqliteConnection, id: Uuid, progress: Progress) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("UPDATE policy_change_note SET progress = ? WHERE id = ?")
        .bind(progress.number())
        .bind(id.as_bytes().to_vec())
        .execute(&mut *transaction)
        .await?;
    if progress == Progress::Made {
        sqlx::query(FORGET_OVERTAKEN)
            .bind(id.as_bytes().to_vec())
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Keeps a note, as one that comes from a damaged file, which may have it twice.
pub(super) async fn insert(connection: &mut SqliteConnection, intent: &Intent) -> Result<(), StoreError> {
    sqlx::query(NOTE)
        .bind(intent.id.as_bytes().to_vec())
        .bind(intent.progress.number())
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
    Ok(())
}

/// The entries without those changes of policy that have a record, or that are there twice; `None` where these are none. What is
/// handed over again, since nobody knew what became of it, is so kept once.
pub(super) async fn unrecorded(
    connection: &mut SqliteConnection,
    entries: &[Entry],
) -> Result<Option<Vec<Entry>>, StoreError> {
    let (mut ids, mut again) = (HashSet::new(), HashSet::new());
    for (place, entry) in entries.iter().enumerate() {
        let Entry::PolicyChange(change) = entry else {
            continue;
        };
        if !ids.insert(change.id) || is_recorded(connection, change.id).await? {
            tracing::info!(id = %change.id, "a change of policy has its record, and gets no second one");
            again.insert(place);
        }
    }
    if again.is_empty() {
        return Ok(None);
    }
    let others = entries.iter().enumerate();
    let others = others.filter(|(place, _)| !again.contains(place));
    Ok(Some(others.map(|(_, entry)| entry.clone()).collect()))
}

async fn is_recorded(connection: &mut SqliteConnection, id: Uuid) -> Result<bool, StoreError> {
    let found: Option<i64> = sqlx::query_scalar("SELECT row FROM policy_recorded WHERE id = ?")
        .bind(id.as_bytes().to_vec())
        .fetch_optional(connection)
        .await?;
    Ok(found.is_some())
}

/// Takes away the notes of the changes that these entries are the records of, or name as begun, and keeps that they have one, in the
/// transaction that keeps them.
pub(super) async fn recorded(connection: &mut SqliteConnection, entries: &[Entry]) -> Result<(), StoreError> {
    for entry in entries {
        let Entry::PolicyChange(change) = entry else {
            continue;
        };
        let named = change.change["begun"].as_array().into_iter().flatten();
        let named = named.filter_map(|begun| begun["id"].as_str()?.parse::<Uuid>().ok());
        let ids: BTreeSet<Uuid> = named.chain([change.id]).collect();
        for id in ids {
            sqlx::query("DELETE FROM policy_change_note WHERE id = ?")
                .bind(id.as_bytes().to_vec())
                .execute(&mut *connection)
                .await?;
            remember(connection, id).await?;
        }
    }
    Ok(())
}

/// Keeps that a change has its record.
pub(super) async fn remember(connection: &mut SqliteConnection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query("INSERT OR IGNORE INTO policy_recorded (id) VALUES (?)")
        .bind(id.as_bytes().to_vec())
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM policy_recorded WHERE row <= (SELECT max(row) FROM policy_recorded) - ?")
        .bind(MOST_RECORDED)
        .execute(connection)
        .await?;
    Ok(())
}

/// The changes of which the file says that they have a record, the oldest first.
pub(super) async fn remembered(connection: &mut SqliteConnection) -> Result<Vec<Uuid>, StoreError> {
    let ids: Vec<Vec<u8>> = sqlx::query_scalar("SELECT id FROM policy_recorded ORDER BY row LIMIT ?")
        .bind(MOST_RECORDED)
        .fetch_all(connection)
        .await?;
    Ok(ids.iter().filter_map(|id| Uuid::from_slice(id).ok()).collect())
}
