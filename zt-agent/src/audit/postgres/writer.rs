// SPDX-License-Identifier: Apache-2.0
//! The one who inserts.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::batch::{self, Batch, Prepared};
use super::connect::{Role, Target};
use super::{DAY, PgError, statements};
use crate::audit::clock;
use crate::audit::seal::{Checkpoint, Gap, KeyRecord};

/// How long a batch may take; longer than the server's own limit for a statement, and shorter than a dead connection.
const BATCH_TIME: Duration = Duration::from_secs(90);
/// Shapes that are known to be there. When there are more all are forgotten, and sent again as they come.
const MAX_KNOWN: usize = 65_536;

/// Ships batches over one connection, which it opens when it is needed and again when it was lost.
#[derive(Debug)]
pub struct Writer {
    target: Target,
    connection: Option<PgConnection>,
    known: HashSet<(i32, Uuid)>,
}

impl Writer {
    /// A writer that is not connected yet.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            connection: None,
            known: HashSet::new(),
        }
    }

    /// Keeps a batch, whole or not at all; again, if it is not known whether it was kept. False where this login has kept it
    /// before.
    pub async fn ship(&mut self, batch: &Batch) -> Result<bool, PgError> {
        self.send(batch, None).await
    }

    /// As [`Writer::ship`], with what was made of this batch before, if anything was.
    pub async fn send(&mut self, batch: &Batch, prepared: Option<Prepared>) -> Result<bool, PgError> {
        possible(batch)?;
        match self.attempt(batch, prepared, false).await {
            // The batch is not there and some of its records are: nobody saw it arrive as a part of another one.
            Err(PgError::Database { source }) if is_there_already(&source) => {
                self.attempt(batch, None, true).await
            }
            sent => sent,
        }
    }

    /// Sends a batch. Records that are there already fail it, unless the batch is known or they `may_be_there`.
    async fn attempt(
        &mut self,
        batch: &Batch,
        prepared: Option<Prepared>,
        may_be_there: bool,
    ) -> Result<bool, PgError> {
        let Prepared { records, shapes } = match prepared {
            Some(prepared) => prepared,
            None => Prepared::of(batch)?,
        };
        // Taken out: a connection that is given up half-way, or fails, is not used again.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let is_new = |(day, id, _): &(i32, Uuid, usize)| !self.known.contains(&(*day, *id));
        let new: Vec<_> = shapes.into_iter().filter(is_new).collect();
        let sending = async {
            let mut transaction = connection.begin().await?;
            batch::insert_shapes(&mut transaction, batch, &new).await?;
            let first = batch::insert_batch(&mut transaction, batch).await?;
            // Last: the counts that it changes are locked until the commit.
            batch::insert_records(&mut transaction, records, first && !may_be_there).await?;
            transaction.commit().await?;
            Ok::<bool, sqlx::Error>(first)
        };
        let Ok(sent) = tokio::time::timeout(BATCH_TIME, sending).await else {
            return Err(PgError::Slow {
                seconds: BATCH_TIME.as_secs(),
            });
        };
        let first = sent?;
        self.connection = Some(connection);
        if self.known.len() > MAX_KNOWN {
            self.known.clear();
        }
        self.known.extend(new.iter().map(|(day, id, _)| (*day, *id)));
        Ok(first)
    }

    /// Keeps what was signed, and the keys that signed it. What was kept before stays as it is.
    pub async fn seal(
        &mut self,
        keys: &[KeyRecord],
        checkpoints: &[Checkpoint],
        gaps: &[Gap],
    ) -> Result<(), PgError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let sending = async {
            statements::insert_keys(&mut connection, keys).await?;
            statements::insert_gaps(&mut connection, gaps).await?;
            statements::insert_checkpoints(&mut connection, checkpoints).await
        };
        let Ok(sent) = tokio::time::timeout(BATCH_TIME, sending).await else {
            return Err(PgError::Slow {
                seconds: BATCH_TIME.as_secs(),
            });
        };
        sent?;
        self.connection = Some(connection);
        Ok(())
    }

    async fn connect(&mut self) -> Result<PgConnection, PgError> {
        // It may be another database by now: one that was restored, one that took over. Or the shapes of a day have gone
        // with its records.
        self.known.clear();
        self.target.connect(Role::Writer).await
    }

    /// Closes the connection, so that the server need not find out.
    pub async fn close(self) {
        if let Some(connection) = self.connection {
            // What was shipped is committed; how the goodbye goes does not matter.
            let _ = tokio::time::timeout(Duration::from_secs(1), connection.close()).await;
        }
    }
}

/// Whether a record has the place of another one.
fn is_there_already(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    error.is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

/// Refuses a record that the server would never take: of a time that has not come, and not by the server's clock alone.
fn possible(batch: &Batch) -> Result<(), PgError> {
    let tomorrow = clock::now().saturating_add(DAY);
    match batch
        .records
        .iter()
        .find(|kept| kept.entry.timestamp().0 > tomorrow)
    {
        Some(kept) => Err(PgError::Ahead {
            id: kept.entry.id(),
            time: kept.entry.timestamp(),
        }),
        None => Ok(()),
    }
}
