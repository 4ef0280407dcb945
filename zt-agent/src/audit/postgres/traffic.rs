// SPDX-License-Identifier: Apache-2.0
//! Recorded connections: the counts where both ends have names, the records where an end is known by its address.

use std::sync::Arc;

use futures::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::{DAY, PgError};
use crate::audit::query::{AddingSeen, Connections, Counted, GraphFilter, HOUR, Traffic, by_address};
use crate::audit::record::{Outcome, Part, Timestamp};

/// The first and last hour with a count.
const ENDS: &str = "SELECT min(hour), max(hour) FROM zt_audit.bucket";

/// Each shape is added up before it is looked at what it says. Parameters: 1 what is no connection, 2 and 3 the hours.
const NAMED: &str = concat!(
    "WITH summed AS MATERIALIZED (
         SELECT login, shape, max(hour / 24)::integer AS day, sum(connections) AS connections,
                min(first_seen) AS first_seen, max(last_seen) AS last_seen
         FROM zt_audit.bucket WHERE hour BETWEEN $2 AND $3 GROUP BY 1, 2
     )
     SELECT s.source, s.destination, s.protocol, s.port, s.part, s.decision, s.enforced, s.reason,
            least(sum(b.connections), 9223372036854775807)::bigint, min(b.first_seen), max(b.last_seen),
            NULL::inet, NULL::inet
     FROM summed b JOIN zt_audit.shape s ON s.day = b.day AND s.id = b.shape AND s.login = b.login
     WHERE s.part <> $1 AND NOT ",
    by_address!("s.source"),
    " AND NOT ",
    by_address!("s.destination"),
    " GROUP BY 1, 2, 3, 4, 5, 6, 7, 8"
);

/// The same of the others, an address each. Parameters: as above, 4 and 5 the days, 6 and 7 the times.
const BY_ADDRESS: &str = concat!(
    "WITH wanted AS MATERIALIZED (
         SELECT s.*, ",
    by_address!("s.source"),
    " AS by_source, ",
    by_address!("s.destination"),
    " AS by_destination
         FROM zt_audit.shape s
         WHERE s.day BETWEEN $4 AND $5 AND s.part <> $1 AND (",
    by_address!("s.source"),
    " OR ",
    by_address!("s.destination"),
    "))
     SELECT w.source, w.destination, w.protocol, w.port, w.part, w.decision, w.enforced, w.reason,
            least(sum(r.count), 9223372036854775807)::bigint, min(r.time), max(r.time),
            CASE WHEN w.by_source THEN r.source_address END, CASE WHEN w.by_destination THEN r.destination_address END
     FROM wanted w JOIN zt_audit.record r
          ON r.shape = w.id AND r.login = w.login AND (r.time / 86400000000000)::integer = w.day
     WHERE r.time BETWEEN $6 AND $7 AND $2::bigint <= $3::bigint
     GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 12, 13"
);

/// The connections of a range of hours, each counted once; at most so many different ones.
pub(super) async fn traffic(
    connection: &mut PgConnection,
    filter: &GraphFilter,
    most: usize,
) -> Result<Traffic, PgError> {
    let mut adding = AddingSeen::new(filter, most);
    let (Some(oldest), Some(latest)) = sqlx::query_as(ENDS).fetch_one(&mut *connection).await? else {
        return Ok(adding.done());
    };
    let (first, last) = filter.hours();
    let (first, last) = (i64::max(first, oldest), i64::min(last, latest));
    let begin = first.saturating_mul(HOUR);
    let end = last.saturating_mul(HOUR).saturating_add(HOUR - 1);
    let day = |time: i64| i32::try_from(time.div_euclid(DAY)).unwrap_or(i32::MAX);
    let named = sqlx::query(NAMED)
        .bind(Part::Aside.number())
        .bind(first)
        .bind(last);
    let by_address = sqlx::query(BY_ADDRESS)
        .bind(Part::Aside.number())
        .bind(first)
        .bind(last)
        .bind(day(begin))
        .bind(day(end))
        .bind(begin)
        .bind(end);
    for query in [named, by_address] {
        let mut rows = query.fetch(&mut *connection);
        while let Some(row) = rows.try_next().await? {
            adding.take(&counted(&row)?)?;
        }
    }
    Ok(adding.done())
}

fn counted(row: &PgRow) -> Result<Counted, sqlx::Error> {
    Ok(Counted {
        connections: Connections {
            source: Arc::from(row.try_get::<&str, _>(0)?),
            destination: Arc::from(row.try_get::<&str, _>(1)?),
            // The table takes only numbers that fit.
            protocol: row.try_get::<i16, _>(2)? as u8,
            port: row.try_get::<i32, _>(3)? as u16,
            corrects: i64::from(row.try_get::<i16, _>(4)?) == Part::Corrects.number(),
            denied: row.try_get::<&str, _>(5)? == Outcome::Deny.name(),
            enforced: row.try_get(6)?,
            count: row.try_get::<i64, _>(8)?.cast_unsigned(),
            first_seen: Timestamp(row.try_get(9)?),
            last_seen: Timestamp(row.try_get(10)?),
        },
        reason: row.try_get(7)?,
        source_address: row.try_get(11)?,
        destination_address: row.try_get(12)?,
    })
}
