// SPDX-License-Identifier: Apache-2.0
//! The graph: the hourly counts, added up.

use std::sync::Arc;

use futures::TryStreamExt as _;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::StoreError;
use crate::audit::query::{Adding, Connections, Graph, GraphFilter};
use crate::audit::record::{Outcome, Part, Timestamp};

/// The hours of each shape are added up before it is looked at what the shape says: they lie together, and are many.
const SQL: &str = "
SELECT source.text, destination.text, s.protocol, s.port, s.part, s.decision, s.enforced,
       c.connections, c.first_seen, c.last_seen
FROM (SELECT t.id, sum(b.connections) AS connections, min(b.first_seen) AS first_seen, max(b.last_seen) AS last_seen
      FROM shape t CROSS JOIN bucket b ON b.shape = t.id AND b.hour BETWEEN ?2 AND ?3
      WHERE t.part <> ?1 GROUP BY t.id) c
     JOIN shape s ON s.id = c.id
     JOIN name source ON source.id = s.source JOIN name destination ON destination.id = s.destination";

/// Adds up who talks to whom.
pub(super) async fn graph(readers: &SqlitePool, filter: &GraphFilter) -> Result<Graph, StoreError> {
    let (first, last) = filter.hours();
    let mut rows = sqlx::query(SQL)
        .bind(Part::Aside.number())
        .bind(first)
        .bind(last)
        .fetch(readers);
    let mut adding = Adding::new(filter);
    while let Some(row) = rows.try_next().await? {
        adding.take(&connections(&row)?)?;
    }
    Ok(adding.done())
}

fn connections(row: &SqliteRow) -> Result<Connections, sqlx::Error> {
    Ok(Connections {
        source: Arc::from(row.try_get::<&str, _>(0)?),
        destination: Arc::from(row.try_get::<&str, _>(1)?),
        protocol: row.try_get(2)?,
        port: row.try_get(3)?,
        corrects: row.try_get::<i64, _>(4)? == Part::Corrects.number(),
        denied: row.try_get::<&str, _>(5)? == Outcome::Deny.name(),
        enforced: row.try_get(6)?,
        count: row.try_get::<i64, _>(7)?.cast_unsigned(),
        first_seen: Timestamp(row.try_get(8)?),
        last_seen: Timestamp(row.try_get(9)?),
    })
}
