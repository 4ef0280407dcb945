// SPDX-License-Identifier: Apache-2.0
//! The graph: the hourly counts, added up.

use futures::TryStreamExt as _;
use sqlx::sqlite::SqlitePool;

use super::StoreError;
use super::sums::{self, summed};
use crate::audit::query::{Adding, Graph, GraphFilter};

const SQL: &str = concat!(
    "SELECT source.text, destination.text, s.protocol, s.port, s.part, s.decision, s.enforced,
            c.connections, c.first_seen, c.last_seen
     FROM ",
    summed!(),
    " JOIN shape s ON s.id = c.id
      JOIN name source ON source.id = s.source JOIN name destination ON destination.id = s.destination"
);

/// Adds up who talks to whom.
pub(super) async fn graph(readers: &SqlitePool, filter: &GraphFilter) -> Result<Graph, StoreError> {
    let mut rows = sums::asked(SQL, filter).fetch(readers);
    let mut adding = Adding::new(filter);
    while let Some(row) = rows.try_next().await? {
        adding.take(&sums::connections(&row)?)?;
    }
    Ok(adding.done())
}
