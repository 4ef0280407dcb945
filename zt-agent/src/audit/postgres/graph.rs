// SPDX-License-Identifier: Apache-2.0
//! The graph: the hourly counts, added up.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::PgError;
use super::shape::part_number;
use crate::audit::query::{Edge, Graph, GraphFilter};
use crate::audit::record::{Outcome, Part, Protocol, Timestamp};

/// What counts comes before what corrects.
const SQL: &str = "
SELECT s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced,
       sum(b.connections)::bigint, min(b.first_seen), max(b.last_seen)
FROM zt_audit.bucket b JOIN zt_audit.shape s ON s.day = (b.hour / 24)::integer AND s.id = b.shape
WHERE s.part <> $1 AND b.hour BETWEEN $2 AND $3
GROUP BY 1, 2, 3, 4, 5, 6, 7
ORDER BY 5";

/// Edges by source, destination, protocol and port.
type Edges = HashMap<(Arc<str>, Arc<str>, u8, u16), Edge>;

/// Adds up who talks to whom.
pub(super) async fn graph(connection: &mut PgConnection, filter: &GraphFilter) -> Result<Graph, PgError> {
    let (first, last) = filter.hours();
    let rows = sqlx::query(SQL)
        .bind(part_number(Part::Aside))
        .bind(first)
        .bind(last)
        .fetch_all(connection)
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

fn add(edges: &mut Edges, row: &PgRow) -> Result<(), sqlx::Error> {
    let (source, destination) = (
        Arc::<str>::from(row.try_get::<&str, _>(0)?),
        Arc::<str>::from(row.try_get::<&str, _>(1)?),
    );
    // Both are what a writer put there as an unsigned number of that width.
    let (protocol, target) = (row.try_get::<i16, _>(2)? as u8, row.try_get::<i32, _>(3)? as u16);
    let (part, decision, enforced): (i16, &str, bool) = (row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
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
