// SPDX-License-Identifier: Apache-2.0
//! Finding records, newest first by time and id. Every value is a parameter; the statements are constants.
//!
//! Records lie in the order of arrival, which is nearly that of time. So the segments are visited from the one with the
//! latest record on, and the search ends when no segment that is left can hold a record as late as those found. What is
//! asked of parties, ports and verdicts is asked of the shapes, once, and the segments say which of those they hold: a
//! segment is read only for the sake of a record in it, so that hardly more of them are read than a page has records.
//! What cannot be read is on the page, as such.

use std::cmp::Reverse;

use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Row, query::Query};
use uuid::Uuid;

use super::StoreError;
use super::rows;
use super::schema::SEGMENT_ROWS;
use crate::audit::query::{Cursor, Filter, MAX_LIMIT, Page, PartyFilter};
use crate::audit::record::{Kind, Outcome};
use crate::spiffe_id::SpiffeId;

/// The shapes that are asked for: a table of each connection that answers, full as long as a question takes.
pub(super) const WANTED: &str = "CREATE TEMP TABLE wanted (shape INTEGER PRIMARY KEY) STRICT";

/// Which shapes are asked for.
const SHAPES: &str = "
INSERT INTO temp.wanted SELECT id FROM shape
WHERE (?1 IS NULL OR decision = ?1) AND (?2 IS NULL OR (decision <> '' AND enforced = ?2))
  AND (?3 IS NULL OR source IN (SELECT value FROM json_each(?3)))
  AND (?4 IS NULL OR destination IN (SELECT value FROM json_each(?4)))
  AND (?5 IS NULL OR (decision <> '' AND port = ?5))
  AND (?6 IS NULL OR rule IN (SELECT value FROM json_each(?6)))
  AND (?7 IS NULL OR source_node = ?7 OR destination_node = ?7)
  AND (?8 IS NULL OR CASE WHEN decision = '' THEN hook ELSE 'decision' END = ?8)";

/// The next segments that can hold an answer, from the latest on. The index gives the order: nothing is sorted, and a
/// segment is looked at only when the search has come to it. Parameters: 1 and 2 the times, 3 whether shapes are asked for,
/// 4 the cursor's time, 5 and 6 the latest time and the number of the segment before, 7 how many.
macro_rules! segments {
    ($spans:literal) => {
        concat!(
            "SELECT g.segment, g.max_time FROM segment g
             WHERE (?1 IS NULL OR g.max_time >= ?1) AND (?2 IS NULL OR g.min_time < ?2) AND g.min_time <= ?4
               AND (NOT ?3 OR EXISTS (SELECT 1 FROM ",
            $spans,
            "))
               AND g.max_time <= ?5 AND (g.max_time < ?5 OR g.segment < ?6)
             ORDER BY g.max_time DESC, g.segment DESC LIMIT ?7"
        )
    };
}

/// Each shape is looked for in the segment, where there are few, or each of the segment among those that are wanted.
const SEGMENTS_OF_FEW: &str =
    segments!("temp.wanted w CROSS JOIN span p ON p.segment = g.segment AND p.shape = w.shape");
const SEGMENTS: &str =
    segments!("span p CROSS JOIN temp.wanted w ON w.shape = p.shape WHERE p.segment = g.segment");
/// How many are few.
const FEW: u64 = 64;

/// Segments asked for at a time: first as many as most pages need, then more.
const FIRST_SEGMENTS: i64 = 2;
const MOST_SEGMENTS: i64 = 64;

/// An id by which a record has its place in the order: its own, or its row where that is damaged.
macro_rules! id {
    () => {
        "iif(length(id) = 16, id, CAST(printf('%016d', row) AS BLOB))"
    };
}

/// The latest answers of one segment. Parameters: 1 to 4 as above, 5 the cursor's id, 6 how many, 7 and 8 the rows.
pub(super) const IN_SEGMENT: &str = concat!(
    "SELECT time, ",
    id!(),
    " AS place, row FROM record
      WHERE row >= ?7 AND row < ?8 AND (?1 IS NULL OR time >= ?1) AND (?2 IS NULL OR time < ?2)
        AND (NOT ?3 OR shape IN (SELECT shape FROM temp.wanted))
        AND (time < ?4 OR (time = ?4 AND ",
    id!(),
    " < ?5))
      ORDER BY time DESC, place DESC LIMIT ?6"
);

/// The parameters of a filter, names turned into ids.
#[derive(Default)]
struct Parameters {
    decision: Option<&'static str>,
    enforced: Option<bool>,
    source: Option<String>,
    destination: Option<String>,
    port: Option<u16>,
    rule: Option<String>,
    node: Option<i64>,
    kind: Option<&'static str>,
}

type Statement<'q> = Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

impl Parameters {
    /// Whether shapes matter.
    const fn by_shape(&self) -> bool {
        self.decision.is_some()
            || self.enforced.is_some()
            || self.source.is_some()
            || self.destination.is_some()
            || self.port.is_some()
            || self.rule.is_some()
            || self.node.is_some()
            || self.kind.is_some()
    }

    /// Puts the shapes that are asked for into their table, and says how many that are; none where nothing is said of shapes.
    async fn want_shapes(&self, connection: &mut SqliteConnection) -> Result<Option<u64>, StoreError> {
        if !self.by_shape() {
            return Ok(None);
        }
        let wanted = sqlx::query(SHAPES)
            .bind(self.decision)
            .bind(self.enforced)
            .bind(self.source.as_deref())
            .bind(self.destination.as_deref())
            .bind(self.port)
            .bind(self.rule.as_deref())
            .bind(self.node)
            .bind(self.kind)
            .execute(connection);
        Ok(Some(wanted.await?.rows_affected()))
    }
}

/// What to look for in records and segments.
struct Wanted {
    since: Option<i64>,
    until: Option<i64>,
    /// Of so many shapes, which are in their table; of any where nothing is said of shapes.
    shapes: Option<u64>,
    /// Behind this place.
    cursor: Cursor,
}

impl Wanted {
    /// Parameters 1 to 4.
    fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement
            .bind(self.since)
            .bind(self.until)
            .bind(self.shapes.is_some())
            .bind(self.cursor.time)
    }

    /// The statement that finds segments.
    fn segments(&self) -> &'static str {
        if self.shapes.is_some_and(|shapes| shapes <= FEW) {
            SEGMENTS_OF_FEW
        } else {
            SEGMENTS
        }
    }
}

/// A record found: its place in the order, and its row.
type Found = (Cursor, i64);

pub(super) async fn page(
    readers: &SqlitePool,
    filter: &Filter,
    cursor: Option<Cursor>,
    limit: u32,
) -> Result<Page, StoreError> {
    let limit = limit.clamp(1, MAX_LIMIT) as usize;
    // One connection for all of a question, and so one snapshot: with a second one, as many questions as there are
    // connections would wait for each other.
    let mut transaction = readers.begin().await?;
    let Some(parameters) = parameters(&mut transaction, filter).await? else {
        return Ok(Page::default());
    };
    let cursor = cursor.unwrap_or(Cursor {
        time: i64::MAX,
        id: Uuid::max(),
    });
    // Rolled back with the transaction: the table is empty again for the next question.
    let shapes = parameters.want_shapes(&mut transaction).await?;
    let wanted = Wanted {
        since: filter.since.map(|time| time.0),
        until: filter.until.map(|time| time.0),
        shapes,
        cursor,
    };
    let mut found = match shapes {
        // No record has such a shape.
        Some(0) => Vec::new(),
        _ => search(&mut transaction, &wanted, limit + 1).await?,
    };
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|(place, _)| *place);
    let (mut records, mut unreadable) = rows::these(&mut transaction, &found).await?;
    records.sort_by_key(|kept| Reverse(Cursor::at(kept)));
    unreadable.sort_by_key(|unreadable| Reverse(unreadable.place()));
    Ok(Page {
        records,
        unreadable,
        next,
    })
}

/// The first `most` of what is wanted, in order.
async fn search(
    connection: &mut SqliteConnection,
    wanted: &Wanted,
    most: usize,
) -> Result<Vec<Found>, StoreError> {
    let mut found: Vec<Found> = Vec::new();
    let (mut before, mut at_a_time) = ((i64::MAX, i64::MAX), FIRST_SEGMENTS);
    loop {
        let segments: Vec<(i64, i64)> = wanted
            .bind(sqlx::query(wanted.segments()))
            .bind(before.0)
            .bind(before.1)
            .bind(at_a_time)
            .try_map(|row: SqliteRow| Ok((row.try_get(0)?, row.try_get(1)?)))
            .fetch_all(&mut *connection)
            .await?;
        for (segment, max_time) in &segments {
            let last = found.get(most - 1).map(|(place, _)| place.time);
            if last.is_some_and(|last| *max_time < last) {
                return Ok(found);
            }
            found.extend(in_segment(connection, wanted, most, *segment).await?);
            found.sort_unstable_by(|a, b| b.cmp(a));
            found.truncate(most);
        }
        match segments.last() {
            Some((segment, max_time)) if segments.len() as i64 == at_a_time => {
                before = (*max_time, *segment);
                at_a_time = (at_a_time * 2).min(MOST_SEGMENTS);
            }
            _ => return Ok(found),
        }
    }
}

/// The first `most` of what is wanted in a segment, in order.
async fn in_segment(
    connection: &mut SqliteConnection,
    wanted: &Wanted,
    most: usize,
    segment: i64,
) -> Result<Vec<Found>, StoreError> {
    let rows = wanted
        .bind(sqlx::query(IN_SEGMENT))
        .bind(wanted.cursor.id.as_bytes().to_vec())
        .bind(most as i64)
        .bind(segment * SEGMENT_ROWS)
        .bind((segment + 1) * SEGMENT_ROWS)
        .fetch_all(connection)
        .await?;
    let place = |row: &SqliteRow| {
        let (time, id, row): (i64, &[u8], i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        // The statement gives sixteen bytes, but for rows of more digits than there will be.
        let id = Uuid::from_slice(id).unwrap_or_default();
        Ok((Cursor { time, id }, row))
    };
    rows.iter().map(place).collect()
}

/// `None` where a name is asked for that no record has.
async fn parameters(
    connection: &mut SqliteConnection,
    filter: &Filter,
) -> Result<Option<Parameters>, StoreError> {
    let mut parameters = Parameters {
        decision: filter.decision.map(Outcome::name),
        enforced: filter.enforced,
        port: filter.port,
        kind: filter.kind.map(Kind::name),
        ..Parameters::default()
    };
    if let Some(node) = &filter.node {
        let Some(id) = exact(connection, node).await? else {
            return Ok(None);
        };
        parameters.node = Some(id);
    }
    for (asked, ids) in [
        (&filter.source, &mut parameters.source),
        (&filter.destination, &mut parameters.destination),
    ] {
        if let Some(asked) = asked {
            let found = party_ids(connection, asked).await?;
            if found.is_empty() {
                return Ok(None);
            }
            *ids = Some(rows::json(&found));
        }
    }
    if let Some(policy) = &filter.policy {
        let found: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM name WHERE text = ?1 OR substr(text, 1, length(?1) + 1) = ?1 || '/'",
        )
        .bind(policy)
        .fetch_all(connection)
        .await?;
        if found.is_empty() {
            return Ok(None);
        }
        parameters.rule = Some(rows::json(&found));
    }
    Ok(Some(parameters))
}

async fn exact(connection: &mut SqliteConnection, text: &str) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar("SELECT id FROM name WHERE text = ?")
        .bind(text)
        .fetch_optional(connection)
        .await?)
}

async fn party_ids(connection: &mut SqliteConnection, asked: &PartyFilter) -> Result<Vec<i64>, StoreError> {
    match asked {
        PartyFilter::Exact(text) => Ok(exact(connection, text).await?.into_iter().collect()),
        PartyFilter::Pattern(pattern) => {
            // `0` follows `/`: the range of all texts that start with the scheme.
            let all: Vec<(i64, String)> =
                sqlx::query_as("SELECT id, text FROM name WHERE text >= 'spiffe://' AND text < 'spiffe:/0'")
                    .fetch_all(connection)
                    .await?;
            let matches = |text: &str| SpiffeId::parse(text).is_ok_and(|id| pattern.matches(&id));
            Ok(all
                .into_iter()
                .filter(|(_, text)| matches(text))
                .map(|(id, _)| id)
                .collect())
        }
    }
}
