// SPDX-License-Identifier: Apache-2.0
//! The whole trail, from the oldest entry on: for those who check it and for exports. Nothing is written, and an agent
//! that writes is not disturbed.

use std::path::Path;

use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions as _, Row};
use uuid::Uuid;

use super::append::head;
use super::{StoreError, dsn, reading, rows, schema};
use crate::audit::seal::{Checkpoint, KeyRecord};
use crate::audit::store::{Found, Trail};

/// Entries read at a time.
const ROWS: i64 = 2048;

/// A file, at one moment.
#[derive(Debug)]
pub struct Reader {
    connection: SqliteConnection,
    writer: Uuid,
    /// The first row that was not read yet.
    next: i64,
}

impl Reader {
    /// Opens the file of a DSN, which must be there and of this layout.
    pub async fn open(dsn: &str) -> Result<Self, StoreError> {
        let path = dsn::path(dsn)?;
        let open = |source| StoreError::Open {
            path: path.clone(),
            source,
        };
        let mut connection = reading(&path).connect().await.map_err(open)?;
        schema::check(&mut connection, &path).await?;
        // All that is read is of one moment.
        sqlx::raw_sql("BEGIN").execute(&mut connection).await?;
        let writer = head(&mut connection).await?.writer;
        Ok(Self {
            connection,
            writer,
            next: 0,
        })
    }

    /// The file that a DSN names.
    pub fn path(dsn: &str) -> Result<std::path::PathBuf, StoreError> {
        dsn::path(dsn)
    }

    async fn texts<T: serde::de::DeserializeOwned>(
        &mut self,
        sql: &'static str,
    ) -> Result<Vec<T>, StoreError> {
        let texts: Vec<(i64, String)> = sqlx::query_as(sql).fetch_all(&mut self.connection).await?;
        let parsed = texts.into_iter().map(|(row, text)| {
            serde_json::from_str(&text).map_err(|_| StoreError::Damaged {
                row,
                column: "text of a checkpoint or key",
                found: text,
            })
        });
        parsed.collect()
    }
}

/// Where the keys are when the configuration does not say: beside the directory's data, in one of their own.
pub fn default_keys(path: &Path) -> std::path::PathBuf {
    path.parent().unwrap_or(Path::new("/")).join("keys")
}

impl Trail for Reader {
    type Error = StoreError;

    async fn keys(&mut self) -> Result<Vec<KeyRecord>, StoreError> {
        self.texts("SELECT row, text FROM signing_key ORDER BY row").await
    }

    async fn checkpoints(&mut self) -> Result<Vec<Checkpoint>, StoreError> {
        self.texts("SELECT row, text FROM checkpoint ORDER BY row").await
    }

    async fn more(&mut self) -> Result<Vec<Found>, StoreError> {
        let rows = sqlx::query(rows::FROM)
            .bind(self.next)
            .bind(ROWS)
            .fetch_all(&mut self.connection)
            .await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let number: i64 = row.try_get("row")?;
            self.next = number + 1;
            found.push(Found {
                writer: self.writer,
                seq: number.cast_unsigned(),
                kept: rows::kept(row).map_err(|error| error.to_string()),
            });
        }
        Ok(found)
    }
}
