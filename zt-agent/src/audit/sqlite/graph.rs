// SPDX-License-Identifier: Apache-2.0
//! The graph: the hourly counts, added up.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::StoreError;
use super::shapes::part_number;
use crate::audit::query::{Edge, Graph, GraphFilter};
use crate::audit::record::{Outcome, Part, Protocol, Timestamp};

const SQL: &str = "
SELECT source.text, destination.text, s.protocol, s.port, s.part, s.decision, s.enforced,
       sum(b.connections), min(b.first_seen), max(b.last_seen)
FROM shape s JOIN bucket b ON b.shape = s.id
     JOIN name source ON source.id = s.source JOIN name destination ON destination.id = s.destination
WHERE s.part <> ? AND b.hour BETWEEN ? AND ?
GROUP BY s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced
ORDER BY s.part";

/// Edges by source, destination, protocol and port.
type Edges = HashMap<(Arc<str>, Arc<str>, u8, u16), Edge>;

/// Adds up who talks to whom. What counts comes before what corrects, by the order of the query.
pub(super) async fn graph(readers: &SqlitePool, filter: &GraphFilter) -> Result<Graph, StoreError> {
    let (first, last) = filter.hours();
    let rows = sqlx::query(SQL)
        .bind(part_number(Part::Aside))
        .bind(first)
        .bind(last)
        .fetch_all(readers)
        .await?;
    let mut edges: Edges = HashMap::new();
    for row in &rows {
        add(&mut edges, row)?;
    }
    let edges = edges.into_values();
    Ok(Graph::of(
        edges
            .filter(|edge| filter.takes(&edge.source, &edge.destination))
            .collect(),
    ))
}

fn add(edges: &mut Edges, row: &SqliteRow) -> Result<(), sqlx::Error> {
    let (source, destination) = (
        Arc::<str>::from(row.try_get::<&str, _>(0)?),
        Arc::<str>::from(row.try_get::<&str, _>(1)?),
    );
    let (protocol, target) = (row.try_get(2)?, row.try_get(3)?);
    let (part, decision, enforced): (i64, &str, bool) = (row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
    let connections = row.try_get::<i64, _>(7)?.cast_unsigned();
    let (first_seen, last_seen) = (Timestamp(row.try_get(8)?), Timestamp(row.try_get(9)?));
    let edge = edges
        .entry((Arc::clone(&source), Arc::clone(&destination), protocol, target))
        .or_insert_with(|| Edge {
            source,
            destination,
            protocol: Protocol(protocol),
            port: target,
            allowed: 0,
            denied: 0,
            would_deny: 0,
            first_seen,
            last_seen,
        });
    edge.first_seen = edge.first_seen.min(first_seen);
    edge.last_seen = edge.last_seen.max(last_seen);
    let denied = decision == Outcome::Deny.name();
    if part == part_number(Part::Corrects) {
        if denied && enforced {
            edge.correct(connections);
        }
    } else if !denied {
        edge.allowed += connections;
    } else if enforced {
        edge.denied += connections;
    } else {
        edge.would_deny += connections;
    }
    Ok(())
}
