// SPDX-License-Identifier: Apache-2.0
//! The graph: the counts of days that are added up, and of the hours of all others.

use std::sync::Arc;

use futures::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::PgError;
use crate::audit::query::{Adding, Connections, Graph, GraphFilter};
use crate::audit::record::{Outcome, Part, Timestamp};

/// Hours of a day.
const HOURS: i64 = 24;

/// The first and last hour with a count.
const ENDS: &str = "SELECT min(hour), max(hour) FROM zt_audit.bucket";

/// The days that are added up.
const DAYS: &str = "SELECT day FROM zt_audit.whole_day WHERE day BETWEEN $1 AND $2 ORDER BY day";

/// Each shape is added up before it is looked at what it says: its counts are many. It says the same on each of its days, for
/// its id is a hash of that. Then nodes, rules and logins are.
macro_rules! added_up {
    ($counted:literal) => {
        concat!(
            $counted,
            ", summed AS MATERIALIZED (
                SELECT login, shape, max(day) AS day, sum(connections) AS connections, min(first_seen) AS first_seen,
                       max(last_seen) AS last_seen
                FROM counted GROUP BY 1, 2
            )
            SELECT s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced,
                   least(sum(b.connections), 9223372036854775807)::bigint, min(b.first_seen), max(b.last_seen)
            FROM summed b
            CROSS JOIN LATERAL (
                SELECT * FROM zt_audit.shape s WHERE s.day = b.day AND s.id = b.shape AND s.login = b.login OFFSET 0
            ) s
            WHERE s.part <> $1
            GROUP BY 1, 2, 3, 4, 5, 6, 7"
        )
    };
}

/// Parameters: 1 what is no connection, 2 the days, 3 and 4 the first and last hour of each span of hours beside them.
const SQL: &str = added_up!(
    "
WITH counted AS (
    SELECT login, shape, day, connections, first_seen, last_seen FROM zt_audit.bucket_day WHERE day = ANY ($2)
    UNION ALL
    SELECT b.login, b.shape, (b.hour / 24)::integer, b.connections, b.first_seen, b.last_seen
    FROM unnest($3::bigint[], $4::bigint[]) AS r (first, last)
    CROSS JOIN LATERAL (SELECT * FROM zt_audit.bucket WHERE hour BETWEEN r.first AND r.last OFFSET 0) b
)"
);

/// The same of what has one end in a namespace, parameter 5: few shapes, whose counts are then looked up. It may find more
/// than that, where the namespace has no name. Parameters 6 and 7 are the first and the last day.
const OF_NAMESPACE: &str = added_up!(
    "
WITH s AS MATERIALIZED (
    SELECT day, id, login FROM zt_audit.shape
    WHERE day BETWEEN $6 AND $7
      AND (source LIKE 'spiffe://%' AND split_part(source, '/', 5) = $5
           OR destination LIKE 'spiffe://%' AND split_part(destination, '/', 5) = $5)
), counted AS (
    SELECT b.login, b.shape, b.day, b.connections, b.first_seen, b.last_seen
    FROM s JOIN zt_audit.bucket_day b ON b.day = s.day AND b.shape = s.id AND b.login = s.login
    WHERE s.day = ANY ($2)
    UNION ALL
    SELECT b.login, b.shape, s.day, b.connections, b.first_seen, b.last_seen
    FROM unnest($3::bigint[], $4::bigint[]) AS r (first, last)
    JOIN s ON s.day BETWEEN r.first / 24 AND r.last / 24
    JOIN zt_audit.bucket b ON b.shape = s.id AND b.login = s.login AND b.hour BETWEEN r.first AND r.last
                          AND b.hour BETWEEN s.day::bigint * 24 AND s.day::bigint * 24 + 23
)"
);

/// Adds up who talks to whom.
pub(super) async fn graph(connection: &mut PgConnection, filter: &GraphFilter) -> Result<Graph, PgError> {
    let mut adding = Adding::new(filter);
    let sql = match filter.namespace.as_deref() {
        // No text in PostgreSQL has a NUL, and the server would refuse the question.
        Some(namespace) if namespace.contains('\0') => return Ok(adding.done()),
        Some(_) => OF_NAMESPACE,
        None => SQL,
    };
    let (Some(oldest), Some(latest)) = sqlx::query_as(ENDS).fetch_one(&mut *connection).await? else {
        return Ok(adding.done());
    };
    let (first, last) = filter.hours();
    let hours = (i64::max(first, oldest), i64::min(last, latest));
    let (from, to) = whole_days(hours);
    let days: Vec<i32> = sqlx::query_scalar(DAYS)
        .bind(from)
        .bind(to)
        .fetch_all(&mut *connection)
        .await?;
    let (firsts, lasts): (Vec<i64>, Vec<i64>) = beside(hours, &days).into_iter().unzip();
    let mut query = sqlx::query(sql)
        .bind(Part::Aside.number())
        .bind(days)
        .bind(firsts)
        .bind(lasts);
    if let Some(namespace) = filter.namespace.as_deref() {
        let (from, to) = (hours.0.div_euclid(HOURS), hours.1.div_euclid(HOURS));
        query = query.bind(namespace).bind(from).bind(to);
    }
    let mut rows = query.fetch(connection);
    while let Some(row) = rows.try_next().await? {
        adding.take(&connections(&row)?)?;
    }
    Ok(adding.done())
}

/// The first and last day that lie between two hours as a whole.
fn whole_days((first, last): (i64, i64)) -> (i64, i64) {
    let begun = i64::from(first.rem_euclid(HOURS) != 0);
    (
        first.div_euclid(HOURS) + begun,
        last.saturating_add(1).div_euclid(HOURS) - 1,
    )
}

/// The spans of hours between two that lie in none of these days, which are in order.
fn beside((first, last): (i64, i64), days: &[i32]) -> Vec<(i64, i64)> {
    let (mut spans, mut next) = (Vec::new(), first);
    for day in days {
        let begin = i64::from(*day) * HOURS;
        if next < begin {
            spans.push((next, begin - 1));
        }
        next = begin + HOURS;
    }
    if next <= last {
        spans.push((next, last));
    }
    spans
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_day_is_whole_when_all_its_hours_are_asked_for() {
        assert_eq!(whole_days((24, 71)), (1, 2));
        assert_eq!(whole_days((25, 70)), (2, 1));
        assert_eq!(whole_days((-24, -1)), (-1, -1));
        assert_eq!(
            beside((25, 100), &[2]),
            [(25, 47), (72, 100)],
            "what is left of it is read by the hour"
        );
        assert_eq!(beside((24, 71), &[1, 2]), []);
    }

    proptest! {
        #[test]
        fn every_hour_is_read_once(first in 0_i64..500, length in 0_i64..500, days: BTreeSet<u8>) {
            let hours = (first, first + length);
            let (from, to) = whole_days(hours);
            let days: Vec<i32> = days.into_iter().map(i32::from).filter(|day| (from..=to).contains(&i64::from(*day))).collect();
            let mut read: Vec<i64> = days.iter().flat_map(|day| (0..HOURS).map(move |hour| i64::from(*day) * HOURS + hour)).collect();
            read.extend(beside(hours, &days).into_iter().flat_map(|(first, last)| first..=last));
            read.sort_unstable();
            prop_assert_eq!(read, (hours.0..=hours.1).collect::<Vec<_>>());
        }
    }
}
