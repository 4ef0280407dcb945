// SPDX-License-Identifier: Apache-2.0
//! The one connection that writes.

use std::path::Path;
use std::sync::Arc;

use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions as _, Connection as _};

use super::age::Age;
use super::connections::{again, writing};
use super::{Durability, StoreError, Use, Watched, append, place, schema, share, told, unused};
use crate::audit::chain::Head;
use crate::audit::store::RingMark;

/// The one connection that writes.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    pub(super) known: append::Known,
    pub(super) watched: Watched,
    /// Up to where the ring buffer is accounted for, as this connection wrote last.
    pub(super) mark: Option<RingMark>,
    pub(super) age: Age,
    pub(super) share: Arc<share::Share>,
    pub(super) sync: Durability,
    pub(super) unused: unused::Progress,
}

impl Writer {
    /// Opens a file that is there, and makes the tables that are missing. `alone`: nobody else may move the chain.
    pub(super) async fn open(
        path: &Path,
        (used_as, sync): (Use, Durability),
        alone: bool,
        share: &Arc<share::Share>,
    ) -> Result<Self, StoreError> {
        let options = writing(path, sync);
        let mut connection = options.connect().await.map_err(|source| StoreError::Open {
            path: path.to_owned(),
            source,
        })?;
        let at = match prepare(&mut connection, path, share).await {
            Ok(head) => alone.then_some(head),
            Err(error) => {
                // Nobody else may come to the file before this one has left it.
                let _ = connection.close().await;
                return Err(error);
            }
        };
        Ok(Self {
            connection,
            known: append::Known::default(),
            watched: Watched::new(path, used_as, at),
            mark: None,
            age: Age::new(),
            share: Arc::clone(share),
            sync,
            unused: unused::Progress::default(),
        })
    }

    /// Connects anew where a transaction that failed has left the connection of no use: `SQLite` ends one by itself where the disk
    /// is full, and what cannot be rolled back any more `sqlx` takes for one that still goes on, for ever.
    pub(super) async fn recover(&mut self) -> Result<(), StoreError> {
        if !self.connection.is_in_transaction() {
            return Ok(());
        }
        // One that was given up half-way may be about to be rolled back; an answer comes behind that.
        if self.connection.ping().await.is_ok() && !self.connection.is_in_transaction() {
            return Ok(());
        }
        // Whatever it still has begun would be in the way of the next one; mostly that is nothing, which is an error.
        let _ = sqlx::raw_sql("ROLLBACK").execute(&mut self.connection).await;
        let path = &self.watched.path;
        let opened = again(path, self.sync).connect().await;
        let new = opened.map_err(|source| StoreError::Open {
            path: path.clone(),
            source,
        })?;
        let old = std::mem::replace(&mut self.connection, new);
        self.known = append::Known::default();
        let _ = old.close().await;
        tracing::debug!("connected to the audit store anew: a transaction had failed");
        Ok(())
    }

    /// Writes all of the log back to the database, and both to the disk; false where somebody who reads is in the way.
    pub(super) async fn write_back(&mut self) -> Result<bool, StoreError> {
        let (busy, _, _): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&mut self.connection)
            .await?;
        Ok(busy == 0)
    }
}

async fn prepare(
    connection: &mut SqliteConnection,
    path: &Path,
    share: &share::Share,
) -> Result<Head, StoreError> {
    schema::migrate(connection, path).await?;
    share::prepare(connection).await?;
    told::prepare(connection).await?;
    share.count(connection).await?;
    place::head(connection).await
}
