// SPDX-License-Identifier: Apache-2.0
//! Names that nothing refers to any more go: pods come and go for as long as a node lives. They go in small steps, each of which is
//! whole or not at all, and none of which reads the trail anew.
//!
//! A name is of use as long as a record refers to it, or a shape. Which record was the last to do so is noted here and not by who
//! appends: each record is looked at once, in the order of the chain, when others have gone. When all that are there were looked at,
//! a name goes whose last record is older than the oldest of them. So it does not matter who removed the records, nor whether
//! that was a version which knows nothing of this.
//!
//! The names of shapes go only where no shape has them any more. In a trail of very many shapes, where to read these each time would hold
//! up who records, that is concluded: a shape goes in the transaction in which its last record does ([`super::rollup`]).
//!
//! Only the process that records removes names, for it alone remembers their ids. The newest name stays: `SQLite` would give its id
//! again, and so no id ever stands for two.

use std::time::{Duration, Instant};

use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;

use super::carried::NAMES;
use super::{Store, StoreError, Writer, rows};

/// Records and names that are looked at in one step: some 30 ms.
const AT_A_TIME: i64 = 16_384;
/// Most shapes of a trail whose names are read in each step that removes some: another 30 ms.
const SHAPES: i64 = 16_384;
/// Names that go in one step, and numbers.
const MOST: i64 = 4096;
/// After a step it is rested for so many times as long as it took, so that looking takes a twentieth of the time.
const REST: u32 = 20;
/// And for so long when nothing is left to be done, or something failed.
const BETWEEN: Duration = Duration::from_secs(10);

/// Of each name that was looked at the last record that refers to it, 0 where none does. Up to which record and which name was looked.
/// Names of shapes, full as long as a step takes.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS name_use (
    id INTEGER PRIMARY KEY,
    row INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS name_use_by_row ON name_use (row);
CREATE TABLE IF NOT EXISTS name_seen (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    row INTEGER NOT NULL,
    id INTEGER NOT NULL
) STRICT;
CREATE TEMP TABLE IF NOT EXISTS shaped (id INTEGER PRIMARY KEY) STRICT;
";

/// The oldest record, or the next where there is none; the next; and whether there are more numbers than are kept.
const THERE: &str = "
SELECT coalesce((SELECT min(row) FROM record), next_row), next_row,
       coalesce((SELECT min(row) FROM number) <= (SELECT max(row) FROM number) - ?, 0)
FROM trail";

/// The names that some records have by themselves. Parameters: the first and the last of these.
const OF_RECORDS: &str = "
INSERT INTO name_use (id, row)
SELECT r.pod, max(r.row) FROM (
    SELECT source_pod AS pod, row FROM record WHERE row BETWEEN ?1 AND ?2
    UNION ALL SELECT destination_pod, row FROM record WHERE row BETWEEN ?1 AND ?2
) r WHERE r.pod IS NOT NULL GROUP BY r.pod
ON CONFLICT (id) DO UPDATE SET row = max(name_use.row, excluded.row)";

/// Those that they have by their shapes.
const OF_THEIR_SHAPES: &str = "
INSERT INTO name_use (id, row)
SELECT n.value, max(r.latest) FROM (
    SELECT shape, max(row) AS latest FROM record WHERE row BETWEEN ?1 AND ?2 GROUP BY shape
) r CROSS JOIN shape s ON s.id = r.shape
    CROSS JOIN json_each(json_array(s.source, s.destination, s.rule, s.source_node, s.destination_node, s.cluster)) n
WHERE n.value <> 0 GROUP BY n.value
ON CONFLICT (id) DO UPDATE SET row = max(name_use.row, excluded.row)";

/// Names behind an id, of which no record is known.
const NEW: &str = "INSERT OR IGNORE INTO name_use SELECT id, 0 FROM name WHERE id > ?1 ORDER BY id LIMIT ?2";
/// The last of these, and how many they are.
const NEWEST: &str = "
SELECT coalesce(max(id), ?1), count(*) FROM (SELECT id FROM name WHERE id > ?1 ORDER BY id LIMIT ?2)";

/// The names of all shapes.
const SHAPED: &str = "
INSERT INTO temp.shaped
SELECT source FROM shape UNION SELECT destination FROM shape UNION SELECT rule FROM shape
UNION SELECT source_node FROM shape UNION SELECT destination_node FROM shape UNION SELECT cluster FROM shape";

/// Whether the names of shapes are to be read: the file is a spool, where shapes outlive their records, or there are no more than so
/// many shapes.
const ASKED: &str = "
SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'shipping')
    OR NOT EXISTS (SELECT 1 FROM shape LIMIT 1 OFFSET ?)";

/// Removes names that nothing refers to. Parameters: the oldest record, and how many.
const UNUSED: &str = "
DELETE FROM name WHERE id IN (
    SELECT id FROM name_use WHERE row < ?1 AND id < (SELECT max(id) FROM name) AND id NOT IN (SELECT id FROM temp.shaped)
    ORDER BY row LIMIT ?2
) RETURNING id";

/// Removes what numbers stand for, where so many were noted later. Parameters: how many stay, how many go.
const NUMBERS: &str = "
DELETE FROM number WHERE row IN (
    SELECT row FROM number WHERE row <= (SELECT max(row) FROM number) - ?1 ORDER BY row LIMIT ?2
)";

/// How far the process that records is with this.
#[derive(Debug)]
pub(super) struct Progress {
    /// The oldest record when nothing was left to be done; `None` where something is.
    done: Option<i64>,
    /// Until then it is rested.
    rests: Option<Instant>,
    /// The last step failed, and that was told.
    failed: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            // From a chain whose first entry is there nothing has gone.
            done: Some(1),
            rests: None,
            failed: false,
        }
    }
}

impl Store {
    /// Removes some of the names that nothing refers to, when it is time to look for them. What fails is told, and tried again later:
    /// no file is given up for it.
    pub(in crate::audit) async fn forget_names(&self) {
        // Else another process may record, and remember them.
        if self.alone.is_none() {
            return;
        }
        // Why there is none is told to who has something to store.
        let Ok(mut writer) = self.writing().await else {
            return;
        };
        if writer.unused.rests.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let begun = Instant::now();
        let rest = match advance(&mut writer).await {
            // That took nothing worth a rest.
            Ok(None) => return,
            Ok(Some(done)) => {
                writer.unused.failed = false;
                let rest = begun.elapsed() * REST;
                if done { rest.max(BETWEEN) } else { rest }
            }
            Err(error) => {
                if !std::mem::replace(&mut writer.unused.failed, true) {
                    tracing::warn!(%error, "names that nothing refers to any more stay in the audit store: it is tried again");
                }
                BETWEEN
            }
        };
        writer.unused.rests = Some(Instant::now() + rest);
    }
}

/// Goes a step where something has gone since all was done. Says whether nothing is left, and `None` where nothing was done.
async fn advance(writer: &mut Writer) -> Result<Option<bool>, StoreError> {
    let (oldest, _, numbers) = there(&mut writer.connection).await?;
    if writer.unused.done == Some(oldest) && !numbers {
        return Ok(None);
    }
    let done = step(writer).await?;
    writer.unused.done = done.then_some(oldest);
    Ok(Some(done))
}

/// One step; says whether nothing is left to be done.
pub(super) async fn step(writer: &mut Writer) -> Result<bool, StoreError> {
    let mut transaction = writer.connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(TABLES).execute(&mut *transaction).await?;
    let oldest = look(&mut transaction).await?;
    let gone = match oldest {
        Some(oldest) => remove(&mut transaction, oldest).await?,
        None => Vec::new(),
    };
    let numbers = sqlx::query(NUMBERS)
        .bind(NAMES as i64)
        .bind(MOST)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
    // Who gives up half-way does not know what became of it. So what is known is taken out, and only a commit puts it back.
    let mut known = std::mem::take(&mut writer.known);
    transaction.commit().await?;
    known.forget(&gone);
    writer.known = known;
    let most = MOST as usize;
    Ok(oldest.is_some() && gone.len() < most && numbers < MOST.cast_unsigned())
}

/// As [`THERE`].
async fn there(connection: &mut SqliteConnection) -> Result<(i64, i64, bool), StoreError> {
    Ok(sqlx::query_as(THERE)
        .bind(NAMES as i64)
        .fetch_one(connection)
        .await?)
}

/// Looks at records and names that were not looked at before. Returns the oldest record when none of either is left.
async fn look(connection: &mut SqliteConnection) -> Result<Option<i64>, StoreError> {
    let (oldest, next, _) = there(connection).await?;
    let (seen, newest): (i64, i64) = sqlx::query_as("SELECT row, id FROM name_seen")
        .fetch_optional(&mut *connection)
        .await?
        .unwrap_or_default();
    let first = oldest.max(seen + 1);
    let last = (next - 1).min(first + AT_A_TIME - 1);
    for sql in [OF_RECORDS, OF_THEIR_SHAPES] {
        sqlx::query(sql)
            .bind(first)
            .bind(last)
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query(NEW)
        .bind(newest)
        .bind(AT_A_TIME)
        .execute(&mut *connection)
        .await?;
    let (newest, names): (i64, i64) = sqlx::query_as(NEWEST)
        .bind(newest)
        .bind(AT_A_TIME)
        .fetch_one(&mut *connection)
        .await?;
    sqlx::query("INSERT OR REPLACE INTO name_seen VALUES (1, ?, ?)")
        .bind(last.max(seen))
        .bind(newest)
        .execute(connection)
        .await?;
    Ok((last >= next - 1 && names < AT_A_TIME).then_some(oldest))
}

/// Removes names whose last record is older than the oldest, and returns their ids. All records were looked at.
async fn remove(connection: &mut SqliteConnection, oldest: i64) -> Result<Vec<i64>, StoreError> {
    let asked: bool = sqlx::query_scalar(ASKED)
        .bind(SHAPES)
        .fetch_one(&mut *connection)
        .await?;
    if asked {
        sqlx::query(SHAPED).execute(&mut *connection).await?;
    }
    let gone: Vec<i64> = sqlx::query_scalar(UNUSED)
        .bind(oldest)
        .bind(MOST)
        .fetch_all(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM name_use WHERE id IN (SELECT value FROM json_each(?))")
        .bind(rows::json(&gone))
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM temp.shaped").execute(connection).await?;
    Ok(gone)
}
