// SPDX-License-Identifier: Apache-2.0
//! The whole trail at one moment, each writer's records in the order of their numbers: for those who check it.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row as _};

use super::connect::{Role, Target};
use super::rows::{self, columns};
use super::{DAY, PgError};
use crate::audit::seal::{Checkpoint, KeyRecord};
use crate::audit::store::{Found, Trail};

/// Records read at a time.
const ROWS: usize = 2048;

/// Every record there is, and not only those that some batch or shape leads to: one without its shape is unreadable, not
/// gone.
const CURSOR: &str = concat!(
    "DECLARE walk NO SCROLL CURSOR FOR SELECT ",
    columns!(),
    " FROM zt_audit.record r
      LEFT JOIN zt_audit.shape s ON s.day = (r.time / 86400000000000)::integer AND s.id = r.shape
      ORDER BY r.writer, r.seq, r.time, r.id"
);

/// A walk through the trail. The server sorts it, on disk where it is large.
#[derive(Debug)]
pub struct Walk {
    connection: PgConnection,
}

impl Walk {
    /// Begins a walk.
    pub async fn begin(target: &Target) -> Result<Self, PgError> {
        let mut connection = target.connect(Role::Reader).await?;
        let settings = "SET statement_timeout = 0; SET work_mem = '64MB'; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        sqlx::raw_sql(settings).execute(&mut connection).await?;
        sqlx::raw_sql(CURSOR).execute(&mut connection).await?;
        Ok(Self { connection })
    }

    async fn texts<T: serde::de::DeserializeOwned>(&mut self, sql: &'static str) -> Result<Vec<T>, PgError> {
        let texts: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut self.connection).await?;
        let parsed = texts.into_iter().map(|text| {
            serde_json::from_str(&text).map_err(|_| PgError::Damaged {
                id: uuid::Uuid::nil(),
                column: "text of a checkpoint or key",
                found: text,
            })
        });
        parsed.collect()
    }
}

impl Trail for Walk {
    type Error = PgError;

    async fn keys(&mut self) -> Result<Vec<KeyRecord>, PgError> {
        self.texts("SELECT text FROM zt_audit.signing_key ORDER BY created, text")
            .await
    }

    async fn checkpoints(&mut self) -> Result<Vec<Checkpoint>, PgError> {
        self.texts("SELECT text FROM zt_audit.checkpoint ORDER BY writer, seq, time, text")
            .await
    }

    async fn more(&mut self) -> Result<Vec<Found>, PgError> {
        let fetch = AssertSqlSafe(format!("FETCH {ROWS} FROM walk"));
        let rows = sqlx::query(fetch).fetch_all(&mut self.connection).await?;
        Ok(rows.iter().map(found).collect::<Result<_, _>>()?)
    }
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
