// SPDX-License-Identifier: Apache-2.0
//! The graph: the hourly counts, added up.

use std::sync::Arc;

use futures::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::PgError;
use crate::audit::query::{Adding, Connections, Graph, GraphFilter};
use crate::audit::record::{Outcome, Part, Timestamp};

/// The hours of each day are added up before it is looked at what the shape says: they are many. Then days, nodes, rules
/// and logins are.
const SQL: &str = "
SELECT s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced,
       least(sum(b.connections), 9223372036854775807)::bigint, min(b.first_seen), max(b.last_seen)
FROM (SELECT login, shape, (hour / 24)::integer AS day, sum(connections) AS connections, min(first_seen) AS first_seen,
             max(last_seen) AS last_seen
      FROM zt_audit.bucket WHERE hour BETWEEN $2 AND $3 GROUP BY 1, 2, 3) b
JOIN zt_audit.shape s ON s.day = b.day AND s.id = b.shape AND s.login = b.login
WHERE s.part <> $1
GROUP BY 1, 2, 3, 4, 5, 6, 7";

/// The same of what has one end in a namespace, parameter 4: few shapes, whose hours are then looked up. It may find more
/// than that, where the namespace has no name.
const OF_NAMESPACE: &str = "
WITH s AS MATERIALIZED (
    SELECT day, id, login, source, destination, protocol, port, part, decision, enforced FROM zt_audit.shape
    WHERE part <> $1 AND day BETWEEN $2::bigint / 24 AND $3::bigint / 24
      AND (source LIKE 'spiffe://%' AND split_part(source, '/', 5) = $4
           OR destination LIKE 'spiffe://%' AND split_part(destination, '/', 5) = $4)
)
SELECT s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced,
       least(sum(b.connections), 9223372036854775807)::bigint, min(b.first_seen), max(b.last_seen)
FROM s JOIN zt_audit.bucket b ON b.shape = s.id AND b.login = s.login
                             AND b.hour BETWEEN s.day::bigint * 24 AND s.day::bigint * 24 + 23
WHERE b.hour BETWEEN $2 AND $3
GROUP BY 1, 2, 3, 4, 5, 6, 7";

/// Adds up who talks to whom.
pub(super) async fn graph(connection: &mut PgConnection, filter: &GraphFilter) -> Result<Graph, PgError> {
    let mut adding = Adding::new(filter);
    let sql = match filter.namespace.as_deref() {
        // No text in PostgreSQL has a NUL, and the server would refuse the question.
        Some(namespace) if namespace.contains('\0') => return Ok(adding.done()),
        Some(_) => OF_NAMESPACE,
        None => SQL,
    };
    let (first, last) = filter.hours();
    let mut query = sqlx::query(sql).bind(Part::Aside.number()).bind(first).bind(last);
    if let Some(namespace) = filter.namespace.as_deref() {
        query = query.bind(namespace);
    }
    let mut rows = query.fetch(connection);
    while let Some(row) = rows.try_next().await? {
        adding.take(&connections(&row)?)?;
    }
    Ok(adding.done())
}

fn connections(row: &PgRow) -> Result<Connections, sqlx::Error> {
    Ok(Connections {
        source: Arc::from(row.try_get::<&str, _>(0)?),
        destination: Arc::from(row.try_get::<&str, _>(1)?),
        // The table takes only numbers that fit.
        protocol: row.try_get::<i16, _>(2)? as u8,
        port: row.try_get::<i32, _>(3)? as u16,
        corrects: i64::from(row.try_get::<i16, _>(4)?) == Part::Corrects.number(),
        denied: row.try_get::<&str, _>(5)? == Outcome::Deny.name(),
        enforced: row.try_get(6)?,
        count: row.try_get::<i64, _>(7)?.cast_unsigned(),
        first_seen: Timestamp(row.try_get(8)?),
        last_seen: Timestamp(row.try_get(9)?),
    })
}
