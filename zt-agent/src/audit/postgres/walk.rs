// SPDX-License-Identifier: Apache-2.0
//! The whole trail at one moment, each writer's records in the order of their numbers: for those who check it.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::connect::{Role, Target};
use super::rows::{self, columns};
use super::{DAY, PgError};
use crate::audit::seal::{Checkpoint, Gap, KeyRecord};
use crate::audit::store::{Found, Statement, Told, Trail};

/// Records read at a time, and statements.
const ROWS: usize = 2048;

/// Every record there is, and not only those that some batch or shape leads to: one without its shape is unreadable, not
/// gone.
const RECORDS: &str = concat!(
    "DECLARE records NO SCROLL CURSOR FOR SELECT ",
    columns!(),
    " FROM zt_audit.record r
      LEFT JOIN zt_audit.shape s ON s.day = (r.time / 86400000000000)::integer AND s.id = r.shape
      ORDER BY r.writer, r.seq, r.time, r.id"
);

const STATEMENTS: &str = "
DECLARE statements NO SCROLL CURSOR FOR
SELECT writer, seq AS first, time AS last, false AS gap, text FROM zt_audit.checkpoint
UNION ALL SELECT writer, first, last, true, text FROM zt_audit.gap
ORDER BY writer, first, last, gap, text";

/// A walk through the trail. The server sorts it, on disk where it is large; here there is never more than a page of it.
#[derive(Debug)]
pub struct Walk {
    connection: PgConnection,
}

impl Walk {
    /// Begins a walk.
    pub async fn begin(target: &Target) -> Result<Self, PgError> {
        let mut connection = target.connect(Role::Reader).await?;
        let settings = "SET statement_timeout = 0; SET work_mem = '64MB'; SET cursor_tuple_fraction = 1; \
                        BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        for sql in [settings, STATEMENTS, RECORDS] {
            sqlx::raw_sql(sql).execute(&mut connection).await?;
        }
        Ok(Self { connection })
    }

    async fn fetch(&mut self, cursor: &str) -> Result<Vec<PgRow>, PgError> {
        let fetch = AssertSqlSafe(format!("FETCH {ROWS} FROM {cursor}"));
        Ok(sqlx::query(fetch).fetch_all(&mut self.connection).await?)
    }
}

impl Trail for Walk {
    type Error = PgError;

    async fn keys(&mut self) -> Result<Vec<Told<KeyRecord>>, PgError> {
        let rows: Vec<(i64, String)> =
            sqlx::query_as("SELECT created, text FROM zt_audit.signing_key ORDER BY created, text")
                .fetch_all(&mut self.connection)
                .await?;
        let told = |(created, text): (i64, String)| {
            let what = format!("a key in zt_audit.signing_key (created {created})");
            Told::text(what, &text, |key: &KeyRecord| key.created.0 == created)
        };
        Ok(rows.into_iter().map(told).collect())
    }

    async fn statements(&mut self) -> Result<Vec<Told<Statement>>, PgError> {
        let rows = self.fetch("statements").await?;
        Ok(rows.iter().map(told).collect::<Result<_, _>>()?)
    }

    async fn more(&mut self) -> Result<Vec<Found>, PgError> {
        let rows = self.fetch("records").await?;
        Ok(rows.iter().map(found).collect::<Result<_, _>>()?)
    }
}

fn told(row: &PgRow) -> Result<Told<Statement>, sqlx::Error> {
    let (writer, text): (Uuid, &str) = (row.try_get("writer")?, row.try_get("text")?);
    let (first, last): (i64, i64) = (row.try_get("first")?, row.try_get("last")?);
    let seq = first.cast_unsigned();
    Ok(if row.try_get("gap")? {
        let what = format!("the statement that entries {first} to {last} of {writer} are not there");
        let same = |gap: &Gap| (gap.writer, gap.first, gap.last) == (writer, seq, last.cast_unsigned());
        Told::text(what, text, same).map(Statement::Gap)
    } else {
        let what = format!("the checkpoint of {writer} at entry {first}");
        let same = |told: &Checkpoint| (told.writer, told.seq, told.time.0) == (writer, seq, last);
        Told::text(what, text, same).map(Statement::Checkpoint)
    })
}

fn found(row: &PgRow) -> Result<Found, sqlx::Error> {
    Ok(Found {
        writer: row.try_get("writer")?,
        seq: row.try_get::<i64, _>("seq")?.cast_unsigned(),
        kept: rows::kept(row).map_err(|error| error.to_string()),
    })
}

// The statement above names the width of a day.
const _: () = assert!(DAY == 86_400_000_000_000);
