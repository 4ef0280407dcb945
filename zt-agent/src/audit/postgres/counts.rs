// SPDX-License-Identifier: Apache-2.0
//! What queries and the graph go by, beside what the records say. The server counts the records of one day after the
//! other anew, on its disk where they are many.

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::shape::Shape;
use super::{DAY, PgError};
use crate::audit::query::HOUR;
use crate::audit::record::{Protocol, Timestamp};
use crate::audit::store::{Miscount, Tally};

/// Days since 1970 in which there can be a record: times of later ones run over.
const DAYS: std::ops::Range<i64> = 0..106_000;
/// Miscounts of one day that are told.
const MOST: i64 = 1000;

/// Shapes looked at at a time.
const SHAPES_AT_A_TIME: i64 = 2048;

/// The next shapes behind one.
const SHAPES: &str = "
SELECT day, id, login, type, source, destination, protocol, port, rule, source_node, destination_node, cluster, decision,
       enforced, mode, observer, hook, reason, proof, part
FROM zt_audit.shape WHERE (day, id, login) > ($1, $2, $3) ORDER BY day, id, login LIMIT $4";

/// The next day from one on that has a record or a count.
const NEXT: &str = "
SELECT least(
    (SELECT min(time) FROM zt_audit.record WHERE time >= $1::bigint * 86400000000000) / 86400000000000,
    (SELECT min(hour) FROM zt_audit.bucket WHERE hour >= $1 * 24) / 24,
    (SELECT min(day) FROM zt_audit.bucket_day WHERE day >= $1))";

/// The counts of the hours of a day that are not those of its records, and those that are not there.
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

/// The sums of a day that are not those of its hours, and those that are not there. Of a day that is not added up there is
/// none.
const WRONG_DAY: &str = "
SELECT x.*, s.type, s.source, s.destination, s.protocol, s.port, s.decision, s.rule
FROM (
    SELECT coalesce(d.shape, h.shape) AS shape, coalesce(d.login, h.login) AS login,
           d.connections AS kept_connections, d.first_seen AS kept_first, d.last_seen AS kept_last,
           h.connections AS counted_connections, h.first_seen AS counted_first, h.last_seen AS counted_last
    FROM (SELECT * FROM zt_audit.bucket_day WHERE day = $1::integer) d
    FULL JOIN (
        SELECT shape, login, least(sum(connections), 9223372036854775807)::bigint AS connections,
               min(first_seen) AS first_seen, max(last_seen) AS last_seen
        FROM zt_audit.bucket
        WHERE hour BETWEEN $1::bigint * 24 AND $1::bigint * 24 + 23
          AND EXISTS (SELECT FROM zt_audit.whole_day w WHERE w.day = $1::integer)
        GROUP BY 1, 2
    ) h ON h.shape = d.shape AND h.login = d.login
    WHERE (d.connections, d.first_seen, d.last_seen) IS DISTINCT FROM (h.connections, h.first_seen, h.last_seen)
    LIMIT $2
) x
LEFT JOIN zt_audit.shape s ON s.day = $1::integer AND s.id = x.shape AND s.login = x.login
ORDER BY x.shape, x.login";

/// Counts of hours and days in which nothing can be.
const BEYOND: &str = "
(SELECT shape, 'hour ' || hour, login FROM zt_audit.bucket WHERE hour < $1 OR hour >= $2 ORDER BY hour LIMIT $3)
UNION ALL
(SELECT shape, 'day ' || day, login FROM zt_audit.bucket_day WHERE day < $1 / 24 OR day >= $2 / 24 ORDER BY day LIMIT $3)";

/// Names that shapes have and that no pattern is compared with.
const UNNAMED: &str = "
SELECT s.name, s.login FROM (
    SELECT source AS name, login FROM zt_audit.shape WHERE source >= 'spiffe://' AND source < 'spiffe:/0'
    UNION
    SELECT destination, login FROM zt_audit.shape WHERE destination >= 'spiffe://' AND destination < 'spiffe:/0'
) s
WHERE NOT EXISTS (SELECT FROM zt_audit.name n WHERE n.name = s.name AND n.login = s.login)
ORDER BY s.name, s.login LIMIT $1";

/// Facets that shapes have and that questions are not compared with as they are.
const UNFACETED: &str = "
SELECT DISTINCT s.type || coalesce(' ' || s.decision, '') || coalesce(' at port ' || s.port, ''), s.login
FROM zt_audit.shape s
WHERE NOT EXISTS (
    SELECT FROM zt_audit.facet f
    WHERE f.id = s.facet AND f.login = s.login AND f.type = s.type AND f.decision IS NOT DISTINCT FROM s.decision
      AND f.enforced IS NOT DISTINCT FROM s.enforced AND f.port IS NOT DISTINCT FROM s.port
      AND f.policy IS NOT DISTINCT FROM split_part(s.rule, '/', 1)
)
ORDER BY 1, 2 LIMIT $1";

/// Makes a finding of a row of a day.
type Tell = fn(&PgRow, i32) -> Result<Miscount, sqlx::Error>;

/// The comparison of one server.
#[derive(Debug)]
pub(super) struct Counts {
    /// The last shape that was looked at; `None` when that is done.
    shape: Option<(i32, Uuid, String)>,
    /// The first day that was not looked at.
    day: i64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            shape: Some((i32::MIN, Uuid::nil(), String::new())),
            day: DAYS.start,
        }
    }
}

impl Counts {
    /// The next day; `None` when all is done.
    pub(super) async fn next(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<Option<Vec<Miscount>>, PgError> {
        if let Some(shape) = self.shape.take() {
            return Ok(Some(self.shapes(connection, shape).await?));
        }
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
        // Within `DAYS`.
        let day = day as i32;
        let mut wrong = Vec::new();
        for (sql, told) in [(WRONG, of_hour as Tell), (WRONG_DAY, of_day as Tell)] {
            let rows = sqlx::query(sql)
                .bind(day)
                .bind(MOST)
                .fetch_all(&mut *connection)
                .await?;
            for row in &rows {
                wrong.push(told(row, day)?);
            }
        }
        Ok(Some(wrong))
    }

    /// The next shapes that are not what their ids are the hashes of: filters and the graph go by their columns.
    async fn shapes(
        &mut self,
        connection: &mut PgConnection,
        (day, id, login): (i32, Uuid, String),
    ) -> Result<Vec<Miscount>, PgError> {
        let rows = sqlx::query(SHAPES)
            .bind(day)
            .bind(id)
            .bind(login)
            .bind(SHAPES_AT_A_TIME)
            .fetch_all(connection)
            .await?;
        let mut wrong = Vec::new();
        for row in &rows {
            let (day, id, login): (i32, Uuid, &str) =
                (row.try_get("day")?, row.try_get("id")?, row.try_get("login")?);
            let said = Shape::of_row(row)?.map(|shape| shape.id());
            if said != Some(id) {
                let begin = Timestamp(i64::from(day).saturating_mul(DAY));
                wrong.push(Miscount {
                    what: format!("the shape {id} of the day from {begin}, inserted by {login},"),
                    kept: said.map_or_else(
                        || "what no record says".to_owned(),
                        |said| format!("what is of the shape {said}"),
                    ),
                    counted: "what its id is the hash of".to_owned(),
                });
            }
            self.shape = Some((day, id, login.to_owned()));
        }
        Ok(wrong)
    }
}

/// Counts of times in which nothing can be, and names and facets that are not listed.
async fn beyond(connection: &mut PgConnection) -> Result<Vec<Miscount>, PgError> {
    let rows: Vec<(Uuid, String, String)> = sqlx::query_as(BEYOND)
        .bind(DAYS.start * 24)
        .bind(DAYS.end * 24)
        .bind(MOST)
        .fetch_all(&mut *connection)
        .await?;
    let told = |(shape, time, login): (Uuid, String, String)| Miscount {
        what: format!("the count of the shape {shape} in the {time} since 1970, of {login}"),
        kept: "something".to_owned(),
        counted: "nothing".to_owned(),
    };
    let mut wrong: Vec<Miscount> = rows.into_iter().map(told).collect();
    for (sql, list) in [
        (UNNAMED, "names that patterns are compared with"),
        (UNFACETED, "facets that filters are compared with"),
    ] {
        let unlisted: Vec<(String, String)> =
            sqlx::query_as(sql).bind(MOST).fetch_all(&mut *connection).await?;
        wrong.extend(unlisted.into_iter().map(|(what, login)| Miscount {
            what: format!("the list of {list}, of {what}, inserted by {login},"),
            kept: "nothing".to_owned(),
            counted: "that it is there".to_owned(),
        }));
    }
    Ok(wrong)
}

fn of_hour(row: &PgRow, _: i32) -> Result<Miscount, sqlx::Error> {
    let records = |column| row.try_get::<Option<i64>, _>(column);
    Ok(Miscount::of(
        Miscount::hour(row.try_get("hour")?, &inserted(row)?),
        tally(
            row,
            ["kept_connections", "kept_first", "kept_last"],
            records("kept")?,
        )?,
        tally(
            row,
            ["counted_connections", "counted_first", "counted_last"],
            records("counted")?,
        )?,
    ))
}

fn of_day(row: &PgRow, day: i32) -> Result<Miscount, sqlx::Error> {
    Ok(Miscount::of(
        Miscount::day(day, &inserted(row)?),
        tally(row, ["kept_connections", "kept_first", "kept_last"], None)?,
        tally(
            row,
            ["counted_connections", "counted_first", "counted_last"],
            None,
        )?,
    ))
}

/// What is said in these columns; `None` where there is nothing.
fn tally(row: &PgRow, columns: [&str; 3], records: Option<i64>) -> Result<Option<Tally>, sqlx::Error> {
    let [connections, first, last] = columns.map(|column| row.try_get::<Option<i64>, _>(column));
    let (first, last) = (first?.unwrap_or(0), last?.unwrap_or(0));
    Ok(connections?.map(|connections| Tally {
        records,
        connections,
        first: Timestamp(first),
        last: Timestamp(last),
    }))
}

/// What is counted, with who inserted it.
fn inserted(row: &PgRow) -> Result<String, sqlx::Error> {
    Ok(format!(
        "{}, inserted by {},",
        edge(row)?,
        row.try_get::<&str, _>("login")?
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
