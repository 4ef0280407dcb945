// SPDX-License-Identifier: Apache-2.0
//! The graph: who talks to whom, from the counts.

use super::PgError;
use super::sums::{self, Sums, added_up, added_up_of_day, counted};
use crate::audit::query::{Adding, Graph, GraphFilter};

macro_rules! columns {
    () => {
        "s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced, b.connections, b.first_seen, b.last_seen"
    };
}

const COUNTED: &str = added_up!(counted!(), columns!(), "");
const COUNTED_OF_DAY: &str = added_up_of_day!(columns!());

/// The same of what has one end in a namespace, parameter 6: few shapes, whose counts are then looked up. It may find more
/// than that, where the namespace has no name. Parameters 7 and 8 are the first and the last hour.
const OF_NAMESPACE: &str = added_up!(
    "s AS MATERIALIZED (
        SELECT day, id, login FROM zt_audit.shape
        WHERE day BETWEEN $7::bigint / 24 AND $8::bigint / 24 AND ($4::uuid IS NULL OR id BETWEEN $4 AND $5)
          AND (source LIKE 'spiffe://%' AND split_part(source, '/', 5) = $6
               OR destination LIKE 'spiffe://%' AND split_part(destination, '/', 5) = $6)
    ), counted AS (
        SELECT b.login, b.shape, b.day, b.connections, b.first_seen, b.last_seen
        FROM s JOIN zt_audit.bucket_day b ON b.day = s.day AND b.shape = s.id AND b.login = s.login
        WHERE s.day = ANY ($2)
        UNION ALL
        SELECT b.login, b.shape, s.day, b.connections, b.first_seen, b.last_seen
        FROM s JOIN zt_audit.bucket b ON b.shape = s.id AND b.login = s.login
                                     AND b.hour BETWEEN s.day::bigint * 24 AND s.day::bigint * 24 + 23
        WHERE s.day IN (SELECT (hour / 24)::integer FROM unnest($3::bigint[]) hour) AND b.hour BETWEEN $7 AND $8
    )",
    columns!(),
    ""
);

/// Adds up who talks to whom.
pub(super) async fn graph(mut sums: Sums, filter: &GraphFilter) -> Result<Graph, PgError> {
    let mut adding = Adding::new(filter);
    // No text in PostgreSQL has a NUL, and the server would refuse the question.
    if filter
        .namespace
        .as_deref()
        .is_some_and(|namespace| namespace.contains('\0'))
    {
        return Ok(adding.done());
    }
    for span in sums.spans() {
        let statement = match filter.namespace.clone() {
            None => span.asked_by_day(COUNTED, COUNTED_OF_DAY),
            Some(namespace) => {
                let (first, last) = span.ends;
                span.asked(OF_NAMESPACE).bind(namespace).bind(first).bind(last)
            }
        };
        sums.each(statement, |row| Ok(adding.take(&sums::connections(row)?)?))
            .await?;
    }
    Ok(adding.done())
}
