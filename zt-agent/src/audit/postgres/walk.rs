// SPDX-License-Identifier: Apache-2.0
//! The whole trail at one moment, each writer's records in the order of their numbers: for those who check it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::connect::{Role, Target};
use super::counts::Counts;
use super::rows::{self, columns};
use super::shape::Shape;
use super::{DAY, PgError};
use crate::audit::seal::{Checkpoint, Gap, KeyRecord};
use crate::audit::store::{Found, Miscount, Statement, Told, Trail};

/// Records read at a time, and statements.
const ROWS: usize = 2048;
/// Bytes of details that are handed over at a time at most.
const MOST_BYTES: i64 = 32 << 20;
/// Details of more bytes are read one by one: thousands of the largest are more than this machine's memory may hold.
const LARGE: i64 = 65_536;
/// Shapes that are told one by one where they are not what their entries say.
const MOST_SHAPES: usize = 1000;

/// Every record there is, and not only those that some batch or shape leads to: one without its shape is unreadable, not
/// gone.
const RECORDS: &str = concat!(
    "DECLARE records NO SCROLL CURSOR FOR SELECT ",
    columns!("CASE WHEN octet_length(r.detail) <= 65536 THEN r.detail END"),
    " FROM zt_audit.record r
      LEFT JOIN zt_audit.shape s
             ON s.day = (r.time / 86400000000000)::integer AND s.id = r.shape AND s.login = r.login
      ORDER BY r.writer, r.seq, r.time, r.id, r.login"
);

/// One record, with the whole of its detail.
const WHOLE: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM zt_audit.record r
      LEFT JOIN zt_audit.shape s
             ON s.day = (r.time / 86400000000000)::integer AND s.id = r.shape AND s.login = r.login
      WHERE r.time = $1 AND r.id = $2 AND r.login = $3"
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
    /// Read and not handed over.
    rows: VecDeque<PgRow>,
    /// The login of the last row: as a rule it is that of the next one too.
    login: Arc<str>,
    /// Shapes that are not what their entries say, and those that would be.
    misfiled: BTreeMap<Uuid, Uuid>,
    counts: Option<Counts>,
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
        Ok(Self {
            connection,
            rows: VecDeque::new(),
            login: Arc::from(""),
            misfiled: BTreeMap::new(),
            counts: None,
        })
    }

    /// What a row says whose detail is large.
    async fn whole(&mut self, row: &PgRow) -> Result<Found, PgError> {
        let place = rows::place(row)?;
        let row = sqlx::query(WHOLE)
            .bind(place.time)
            .bind(place.id)
            .bind(row.try_get::<&str, _>("login")?)
            .fetch_one(&mut self.connection)
            .await?;
        Ok(self.found(&row)?)
    }

    fn found(&mut self, row: &PgRow) -> Result<Found, sqlx::Error> {
        let login: &str = row.try_get("login")?;
        if *self.login != *login {
            self.login = Arc::from(login);
        }
        let kept = match rows::kept(row) {
            Ok(kept) => {
                let (shape, said): (Uuid, Uuid) = (row.try_get("shape")?, Shape::of(&kept.entry).id());
                if shape != said && self.misfiled.len() < MOST_SHAPES {
                    self.misfiled.insert(shape, said);
                }
                Ok(kept)
            }
            Err(error) => Err(format!("{error}; {login} inserted it")),
        };
        Ok(Found {
            writer: row.try_get("writer")?,
            seq: row.try_get::<i64, _>("seq")?.cast_unsigned(),
            login: Some(Arc::clone(&self.login)),
            kept,
        })
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
        if self.rows.is_empty() {
            self.rows = self.fetch("records").await?.into();
        }
        let (mut entries, mut bytes) = (Vec::with_capacity(self.rows.len()), 0);
        while let Some(row) = self.rows.pop_front() {
            let size = row
                .try_get::<Option<i32>, _>("detail_bytes")?
                .map_or(0, i64::from);
            bytes += size;
            if bytes > MOST_BYTES && !entries.is_empty() {
                self.rows.push_front(row);
                break;
            }
            entries.push(if size > LARGE {
                self.whole(&row).await?
            } else {
                self.found(&row)?
            });
        }
        Ok(entries)
    }

    async fn miscounts(&mut self) -> Result<Option<Vec<Miscount>>, PgError> {
        if let Some(counts) = &mut self.counts {
            return counts.next(&mut self.connection).await;
        }
        self.counts = Some(Counts::default());
        let misfiled = std::mem::take(&mut self.misfiled).into_iter();
        let told = misfiled.map(|(shape, said)| Miscount {
            what: format!("what is counted of the shape {shape}"),
            kept: "what is not its hash".to_owned(),
            counted: format!("that it is the shape {said}"),
        });
        Ok(Some(told.collect()))
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

// The statements above name the width of a day and what is large.
const _: () = assert!(DAY == 86_400_000_000_000 && LARGE == 65_536);
