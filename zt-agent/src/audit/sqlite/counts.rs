// SPDX-License-Identifier: Apache-2.0
//! What queries and the graph go by, beside what the entries say: hourly counts, segments, and which shapes a segment
//! has. The entries are counted anew, a segment at a time, into a temporary table, which lies on disk where it is large.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::StoreError;
use super::schema::SEGMENT_ROWS;
use crate::audit::query::HOUR;
use crate::audit::record::{Protocol, Timestamp};
use crate::audit::store::{Miscount, Tally};

/// Miscounts told at a time.
const MOST: i64 = 1000;

const TABLE: &str = "
CREATE TEMP TABLE counted (
    shape INTEGER NOT NULL, hour INTEGER NOT NULL, connections INTEGER NOT NULL, first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL, PRIMARY KEY (shape, hour)
) STRICT, WITHOUT ROWID";

/// Counts the entries of some rows. What a record says that was tampered with must not make the sum run over.
const COUNT: &str = "
INSERT INTO temp.counted
SELECT shape, time / ?3, sum(max(0, min(count, 4294967295))), min(time), max(time) FROM record
WHERE row >= ?1 AND row < ?2 GROUP BY 1, 2
ON CONFLICT (shape, hour) DO UPDATE SET connections = connections + excluded.connections,
    first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)";

/// Counts that are there and should say something else, or not be there. Where entries were removed, the first and the
/// last that are noted may be among them, in the same hour: entries are only nearly in the order of time.
const WRONG: &str = "
SELECT b.shape AS shape, b.hour AS hour, b.connections, b.first_seen, b.last_seen,
       c.connections AS counted, c.first_seen AS counted_first, c.last_seen AS counted_last
FROM bucket b LEFT JOIN temp.counted c ON c.shape = b.shape AND c.hour = b.hour
WHERE (b.shape, b.hour) > (?1, ?2)
  AND (c.shape IS NULL OR c.connections <> b.connections
       OR iif(?4, b.first_seen > c.first_seen OR b.first_seen / ?5 <> b.hour
                  OR b.last_seen < c.last_seen OR b.last_seen / ?5 <> b.hour,
              b.first_seen <> c.first_seen OR b.last_seen <> c.last_seen))
ORDER BY b.shape, b.hour LIMIT ?3";

/// Counts that are not there.
const LACKING: &str = "
SELECT c.shape AS shape, c.hour AS hour, NULL AS connections, NULL AS first_seen, NULL AS last_seen,
       c.connections AS counted, c.first_seen AS counted_first, c.last_seen AS counted_last
FROM temp.counted c LEFT JOIN bucket b ON b.shape = c.shape AND b.hour = c.hour
WHERE b.shape IS NULL AND (c.shape, c.hour) > (?1, ?2)
ORDER BY c.shape, c.hour LIMIT ?3";

const EDGE: &str = "
SELECT s.protocol, s.port, s.decision, s.hook,
       (SELECT text FROM name WHERE id = s.source) AS source,
       (SELECT text FROM name WHERE id = s.destination) AS destination,
       (SELECT text FROM name WHERE id = s.rule) AS rule
FROM shape s WHERE s.id = ?";

/// Where the comparison is.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Start,
    /// Segments with entries, from this row on.
    Segments(i64),
    /// Segments without any.
    Empty,
    /// Hourly counts behind a shape's hour.
    Wrong(i64, i64),
    Lacking(i64, i64),
    Done,
}

/// The comparison of one file.
#[derive(Debug, Default)]
pub(super) struct Counts {
    stage: Stage,
    /// The file is a spool: nobody asks it for the graph, and its counts are not kept when records leave it.
    spool: bool,
    /// Entries were removed.
    pruned: bool,
    /// The oldest segment that has entries.
    oldest: Option<i64>,
}

impl Counts {
    /// Whether the hourly counts are left out.
    pub(super) fn of(spool: bool) -> Self {
        Self {
            spool,
            ..Self::default()
        }
    }

    /// The next piece of work; `None` when all is done.
    pub(super) async fn next(
        &mut self,
        connection: &mut SqliteConnection,
    ) -> Result<Option<Vec<Miscount>>, StoreError> {
        let mut found = Vec::new();
        self.stage = match self.stage {
            Stage::Start => {
                sqlx::raw_sql(TABLE).execute(&mut *connection).await?;
                self.pruned = sqlx::query_scalar("SELECT pruned_row > 0 FROM trail")
                    .fetch_one(connection)
                    .await?;
                Stage::Segments(i64::MIN)
            }
            Stage::Segments(row) => match self.segment(connection, row, &mut found).await? {
                Some(next) => Stage::Segments(next),
                None => Stage::Empty,
            },
            Stage::Empty => {
                self.empty(connection, &mut found).await?;
                if self.spool {
                    Stage::Done
                } else {
                    Stage::Wrong(i64::MIN, i64::MIN)
                }
            }
            Stage::Wrong(shape, hour) => {
                match self.hours(connection, WRONG, (shape, hour), &mut found).await? {
                    Some((shape, hour)) => Stage::Wrong(shape, hour),
                    None => Stage::Lacking(i64::MIN, i64::MIN),
                }
            }
            Stage::Lacking(shape, hour) => {
                match self.hours(connection, LACKING, (shape, hour), &mut found).await? {
                    Some((shape, hour)) => Stage::Lacking(shape, hour),
                    None => Stage::Done,
                }
            }
            Stage::Done => return Ok(None),
        };
        Ok(Some(found))
    }

    /// Looks at the segment of the next row from one on. Returns the row behind it.
    async fn segment(
        &mut self,
        connection: &mut SqliteConnection,
        row: i64,
        found: &mut Vec<Miscount>,
    ) -> Result<Option<i64>, StoreError> {
        let first: Option<i64> = sqlx::query_scalar("SELECT min(row) FROM record WHERE row >= ?")
            .bind(row)
            .fetch_one(&mut *connection)
            .await?;
        let Some(first) = first else { return Ok(None) };
        let segment = first.div_euclid(SEGMENT_ROWS);
        let start = segment.saturating_mul(SEGMENT_ROWS);
        let end = start.saturating_add(SEGMENT_ROWS);
        if !self.spool {
            sqlx::query(COUNT)
                .bind(start)
                .bind(end)
                .bind(HOUR)
                .execute(&mut *connection)
                .await?;
        }
        let counted: (i64, i64) =
            sqlx::query_as("SELECT min(time), max(time) FROM record WHERE row >= ? AND row < ?")
                .bind(start)
                .bind(end)
                .fetch_one(&mut *connection)
                .await?;
        let kept: Option<(i64, i64)> =
            sqlx::query_as("SELECT min_time, max_time FROM segment WHERE segment = ?")
                .bind(segment)
                .fetch_optional(&mut *connection)
                .await?;
        // What stood at the beginning of the oldest may be gone: it says no less than what is left.
        let oldest = *self.oldest.get_or_insert(segment) == segment;
        let fits = |(min, max): (i64, i64)| {
            (min, max) == counted || (oldest && min <= counted.0 && max >= counted.1)
        };
        let what = format!("the segment of entries {start} to {}", end - 1);
        if !kept.is_some_and(fits) {
            let says = |(min, max)| format!("that they are from {} to {}", Timestamp(min), Timestamp(max));
            found.push(Miscount {
                what: what.clone(),
                kept: kept.map_or_else(|| "nothing".to_owned(), says),
                counted: says(counted),
            });
        }
        let lacking: Vec<i64> = sqlx::query_scalar(
            "SELECT DISTINCT shape FROM record WHERE row >= ? AND row < ?
             EXCEPT SELECT shape FROM span WHERE segment = ? ORDER BY 1 LIMIT ?",
        )
        .bind(start)
        .bind(end)
        .bind(segment)
        .bind(MOST)
        .fetch_all(&mut *connection)
        .await?;
        for shape in lacking {
            found.push(Miscount {
                what: what.clone(),
                kept: "nothing".to_owned(),
                counted: format!("that it has some of {}", edge(connection, shape).await?),
            });
        }
        if !oldest {
            let invented: Vec<i64> = sqlx::query_scalar(
                "SELECT shape FROM span WHERE segment = ?
                 EXCEPT SELECT shape FROM record WHERE row >= ? AND row < ? ORDER BY 1 LIMIT ?",
            )
            .bind(segment)
            .bind(start)
            .bind(end)
            .bind(MOST)
            .fetch_all(&mut *connection)
            .await?;
            for shape in invented {
                found.push(Miscount {
                    what: what.clone(),
                    kept: format!("that it has some of {}", edge(connection, shape).await?),
                    counted: "that it has none".to_owned(),
                });
            }
        }
        Ok(Some(end))
    }

    /// Segments that have no entries. The one in which the last entry was removed stays.
    async fn empty(
        &mut self,
        connection: &mut SqliteConnection,
        found: &mut Vec<Miscount>,
    ) -> Result<(), StoreError> {
        let Some(oldest) = self.oldest else { return Ok(()) };
        let empty: Vec<i64> = sqlx::query_scalar(
            "SELECT segment FROM segment g WHERE segment > ?1
             AND NOT EXISTS (SELECT 1 FROM record WHERE row >= g.segment * ?2 AND row < (g.segment + 1) * ?2)
             ORDER BY 1 LIMIT ?3",
        )
        .bind(oldest)
        .bind(SEGMENT_ROWS)
        .bind(MOST)
        .fetch_all(connection)
        .await?;
        found.extend(empty.into_iter().map(|segment| Miscount {
            what: format!("segment {segment}"),
            kept: "that it has entries".to_owned(),
            counted: "that it has none".to_owned(),
        }));
        Ok(())
    }

    /// Hourly counts behind a shape's hour that do not fit. Returns the last one, where there may be more.
    async fn hours(
        &self,
        connection: &mut SqliteConnection,
        sql: &'static str,
        (shape, hour): (i64, i64),
        found: &mut Vec<Miscount>,
    ) -> Result<Option<(i64, i64)>, StoreError> {
        let query = sqlx::query(sql).bind(shape).bind(hour).bind(MOST);
        let query = if sql == WRONG {
            query.bind(self.pruned).bind(HOUR)
        } else {
            query
        };
        let rows = query.fetch_all(&mut *connection).await?;
        let mut last = None;
        for row in &rows {
            let (shape, hour): (i64, i64) = (row.try_get("shape")?, row.try_get("hour")?);
            last = Some((shape, hour));
            let what = Miscount::hour(hour, &edge(connection, shape).await?);
            let kept = tally(row, ["connections", "first_seen", "last_seen"])?;
            let counted = tally(row, ["counted", "counted_first", "counted_last"])?;
            found.push(Miscount::of(what, kept, counted));
        }
        Ok(last.filter(|_| rows.len() as i64 == MOST))
    }
}

fn tally(row: &SqliteRow, [connections, first, last]: [&str; 3]) -> Result<Option<Tally>, sqlx::Error> {
    let connections: Option<i64> = row.try_get(connections)?;
    let (first, last): (Option<i64>, Option<i64>) = (row.try_get(first)?, row.try_get(last)?);
    Ok(connections.map(|connections| Tally {
        records: None,
        connections,
        first: Timestamp(first.unwrap_or(0)),
        last: Timestamp(last.unwrap_or(0)),
    }))
}

/// What a shape says, for people.
pub(super) async fn edge(connection: &mut SqliteConnection, shape: i64) -> Result<String, StoreError> {
    let row = sqlx::query(EDGE).bind(shape).fetch_optional(connection).await?;
    let Some(row) = row else {
        return Ok(format!("shape {shape}, which is not there"));
    };
    let (decision, hook): (&str, &str) = (row.try_get("decision")?, row.try_get("hook")?);
    if decision.is_empty() {
        return Ok(format!("{hook} (shape {shape})"));
    }
    let text = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<&str>, _>(column)?.unwrap_or("?"));
    let protocol: i64 = row.try_get("protocol")?;
    Ok(format!(
        "{} → {} {}/{} {decision} by {} (shape {shape})",
        text("source")?,
        text("destination")?,
        u8::try_from(protocol).map_or_else(|_| protocol.to_string(), |number| Protocol(number).to_string()),
        row.try_get::<i64, _>("port")?,
        row.try_get::<Option<&str>, _>("rule")?.unwrap_or("no rule"),
    ))
}
