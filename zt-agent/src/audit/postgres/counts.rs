// SPDX-License-Identifier: Apache-2.0
//! What queries and the graph go by, beside what the records say. The server counts the records of one day after the
//! other anew, on its disk where they are many.

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::{DAY, PgError};
use crate::audit::query::HOUR;
use crate::audit::record::{Protocol, Timestamp};
use crate::audit::store::{Miscount, Tally};

/// Days since 1970 in which there can be a record: times of later ones run over.
const DAYS: std::ops::Range<i64> = 0..106_000;
/// Miscounts of one day that are told.
const MOST: i64 = 1000;

/// The next day from one on that has a record or a count.
const NEXT: &str = "
SELECT least(
    (SELECT min(time) FROM zt_audit.record WHERE time >= $1::bigint * 86400000000000) / 86400000000000,
    (SELECT min(hour) FROM zt_audit.bucket WHERE hour >= $1 * 24) / 24)";

/// The counts of a day that are not those of its records, and those that are not there.
const WRONG: &str = "
SELECT x.shape, x.hour, x.login, x.kept, x.kept_connections, x.kept_first, x.kept_last,
       x.counted, x.counted_connections, x.counted_first, x.counted_last,
       s.type, s.source, s.destination, s.protocol, s.port, s.decision, s.rule
FROM (
    SELECT coalesce(b.shape, r.shape) AS shape, coalesce(b.hour, r.hour) AS hour, coalesce(b.login, r.login) AS login,
           b.records AS kept, b.connections AS kept_connections, b.first_seen AS kept_first, b.last_seen AS kept_last,
           r.records AS counted, r.connections AS counted_connections, r.first_seen AS counted_first,
           r.last_seen AS counted_last
    FROM (SELECT * FROM zt_audit.bucket WHERE hour BETWEEN $1::bigint * 24 AND $1 * 24 + 23) b
    FULL JOIN (
        SELECT shape, time / 3600000000000 AS hour, login, count(*) AS records,
               least(sum(count), 9223372036854775807)::bigint AS connections, min(time) AS first_seen,
               max(time) AS last_seen
        FROM zt_audit.record WHERE time >= $1 * 86400000000000 AND time < ($1 + 1) * 86400000000000 GROUP BY 1, 2, 3
    ) r ON r.shape = b.shape AND r.hour = b.hour AND r.login = b.login
    WHERE (b.records, b.connections, b.first_seen, b.last_seen)
          IS DISTINCT FROM (r.records, r.connections, r.first_seen, r.last_seen)
    LIMIT $2
) x
LEFT JOIN zt_audit.shape s ON s.day = $1 AND s.id = x.shape AND s.login = x.login
ORDER BY x.hour, x.shape, x.login";

/// Counts of hours in which nothing can be.
const BEYOND: &str = "
SELECT shape, hour, login FROM zt_audit.bucket WHERE hour < $1 OR hour >= $2 ORDER BY hour LIMIT $3";

/// The comparison of one server.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// The first day that was not looked at.
    day: i64,
}

impl Counts {
    /// The next day; `None` when all is done.
    pub(super) async fn next(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<Option<Vec<Miscount>>, PgError> {
        if !DAYS.contains(&self.day) {
            return Ok(None);
        }
        let next: Option<i64> = sqlx::query_scalar(NEXT)
            .bind(self.day)
            .fetch_one(&mut *connection)
            .await?;
        let Some(day) = next.filter(|day| DAYS.contains(day)) else {
            self.day = DAYS.end;
            return Ok(Some(beyond(connection).await?));
        };
        self.day = day + 1;
        let rows = sqlx::query(WRONG)
            .bind(day)
            .bind(MOST)
            .fetch_all(connection)
            .await?;
        Ok(Some(rows.iter().map(miscount).collect::<Result<_, _>>()?))
    }
}

async fn beyond(connection: &mut PgConnection) -> Result<Vec<Miscount>, PgError> {
    let rows: Vec<(Uuid, i64, String)> = sqlx::query_as(BEYOND)
        .bind(DAYS.start * 24)
        .bind(DAYS.end * 24)
        .bind(MOST)
        .fetch_all(connection)
        .await?;
    let told = |(shape, hour, login): (Uuid, i64, String)| Miscount {
        what: format!("the count of the shape {shape} in the hour {hour} since 1970, of {login}"),
        kept: "something".to_owned(),
        counted: "nothing".to_owned(),
    };
    Ok(rows.into_iter().map(told).collect())
}

fn miscount(row: &PgRow) -> Result<Miscount, sqlx::Error> {
    let tally = |[records, connections, first, last]: [&str; 4]| -> Result<Option<Tally>, sqlx::Error> {
        let records: Option<i64> = row.try_get(records)?;
        let number = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.unwrap_or(0));
        let (connections, first, last) = (number(connections)?, number(first)?, number(last)?);
        Ok(records.map(|records| Tally {
            records: Some(records),
            connections,
            first: Timestamp(first),
            last: Timestamp(last),
        }))
    };
    let edge = format!(
        "{}, inserted by {},",
        edge(row)?,
        row.try_get::<&str, _>("login")?
    );
    Ok(Miscount::of(
        Miscount::hour(row.try_get("hour")?, &edge),
        tally(["kept", "kept_connections", "kept_first", "kept_last"])?,
        tally(["counted", "counted_connections", "counted_first", "counted_last"])?,
    ))
}

/// What a shape says, for people.
fn edge(row: &PgRow) -> Result<String, sqlx::Error> {
    let shape: Uuid = row.try_get("shape")?;
    let text = |column| row.try_get::<Option<&str>, _>(column);
    let Some(kind) = text("type")? else {
        return Ok(format!("shape {shape}, which is not there"));
    };
    let Some(decision) = text("decision")? else {
        return Ok(format!("{kind} (shape {shape})"));
    };
    let protocol: Option<i16> = row.try_get("protocol")?;
    let protocol = protocol.and_then(|number| u8::try_from(number).ok());
    Ok(format!(
        "{} → {} {}/{} {decision} by {} (shape {shape})",
        text("source")?.unwrap_or("?"),
        text("destination")?.unwrap_or("?"),
        protocol.map_or_else(|| "?".to_owned(), |number| Protocol(number).to_string()),
        row.try_get::<Option<i32>, _>("port")?.unwrap_or(0),
        text("rule")?.unwrap_or("no rule"),
    ))
}

// The statements above name the widths.
const _: () = assert!(DAY == 86_400_000_000_000 && HOUR == 3_600_000_000_000);
