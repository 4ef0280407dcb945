// SPDX-License-Identifier: Apache-2.0
//! Finding records, newest first by time and id. Every value is a parameter; the statements are constants.
//!
//! Records lie in the order of arrival, which is nearly that of time. So the segments are visited from the one with the
//! latest record on, and the search ends when no segment that is left can hold a record as late as those found.

use futures::TryStreamExt as _;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{Row, query::Query};
use uuid::Uuid;

use super::StoreError;
use super::rows;
use super::schema::SEGMENT_ROWS;
use crate::audit::query::{Cursor, Filter, MAX_LIMIT, Page, PartyFilter};
use crate::audit::record::{Kind, Outcome};
use crate::spiffe_id::SpiffeId;

/// Which shapes are asked for: parameters 1 to 8.
macro_rules! shape_filter {
    ($s:literal) => {
        concat!(
            "(?1 IS NULL OR ",
            $s,
            ".decision = ?1) AND (?2 IS NULL OR (",
            $s,
            ".decision <> '' AND ",
            $s,
            ".enforced = ?2))",
            " AND (?3 IS NULL OR ",
            $s,
            ".source IN (SELECT value FROM json_each(?3)))",
            " AND (?4 IS NULL OR ",
            $s,
            ".destination IN (SELECT value FROM json_each(?4)))",
            " AND (?5 IS NULL OR (",
            $s,
            ".decision <> '' AND ",
            $s,
            ".port = ?5))",
            " AND (?6 IS NULL OR ",
            $s,
            ".rule IN (SELECT value FROM json_each(?6)))",
            " AND (?7 IS NULL OR ",
            $s,
            ".source_node = ?7 OR ",
            $s,
            ".destination_node = ?7)",
            " AND (?8 IS NULL OR CASE WHEN ",
            $s,
            ".decision = '' THEN ",
            $s,
            ".hook ELSE 'decision' END = ?8)"
        )
    };
}

/// The segments that can hold an answer, from the latest on. The index gives the order: nothing is sorted, and a
/// segment is looked at only when the search has come to it.
const SEGMENTS: &str = concat!(
    "SELECT g.segment, g.max_time FROM segment g
     WHERE (?9 IS NULL OR g.max_time >= ?9) AND (?10 IS NULL OR g.min_time < ?10) AND g.min_time <= ?11
       AND (?12 = 0 OR EXISTS (SELECT 1 FROM span p CROSS JOIN shape t ON t.id = p.shape
                               WHERE p.segment = g.segment AND ",
    shape_filter!("t"),
    ")) ORDER BY g.max_time DESC"
);

/// The latest answers of one segment.
pub(super) const IN_SEGMENT: &str = concat!(
    "SELECT r.time, r.id, r.row FROM record r CROSS JOIN shape s ON s.id = r.shape
     WHERE r.row >= ?14 AND r.row < ?15
       AND (?9 IS NULL OR r.time >= ?9) AND (?10 IS NULL OR r.time < ?10)
       AND (r.time < ?11 OR (r.time = ?11 AND r.id < ?12))
       AND ",
    shape_filter!("s"),
    " ORDER BY r.time DESC, r.id DESC LIMIT ?13"
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
    since: Option<i64>,
    until: Option<i64>,
}

type Statement<'q> = Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

impl Parameters {
    /// Parameters 1 to 10.
    fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement
            .bind(self.decision)
            .bind(self.enforced)
            .bind(self.source.as_deref())
            .bind(self.destination.as_deref())
            .bind(self.port)
            .bind(self.rule.as_deref())
            .bind(self.node)
            .bind(self.kind)
            .bind(self.since)
            .bind(self.until)
    }

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
    // One snapshot for the names and the records; the second connection only walks through the segments.
    let mut transaction = readers.begin().await?;
    let Some(parameters) = parameters(&mut transaction, filter).await? else {
        return Ok(Page::default());
    };
    let cursor = cursor.unwrap_or(Cursor {
        time: i64::MAX,
        id: Uuid::max(),
    });
    let mut found = search(readers, &mut transaction, &parameters, cursor, limit + 1).await?;
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|(place, _)| *place);
    let wanted: Vec<i64> = found.iter().map(|(_, row)| *row).collect();
    let mut records = rows::these(&mut transaction, &wanted).await?;
    records.sort_by_key(|kept| std::cmp::Reverse((kept.entry.timestamp(), kept.entry.id())));
    Ok(Page {
        records,
        unreadable: Vec::new(),
        next,
    })
}

/// The first `wanted` behind the cursor, in order.
async fn search(
    readers: &SqlitePool,
    connection: &mut SqliteConnection,
    parameters: &Parameters,
    cursor: Cursor,
    wanted: usize,
) -> Result<Vec<Found>, StoreError> {
    let mut found: Vec<Found> = Vec::new();
    let statement = parameters.bind(sqlx::query(SEGMENTS));
    let mut segments = statement
        .bind(cursor.time)
        .bind(parameters.by_shape())
        .fetch(readers);
    while let Some(row) = segments.try_next().await? {
        let (segment, max_time): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let last = found.get(wanted - 1).map(|(place, _)| place.time);
        if last.is_some_and(|last| max_time < last) {
            break;
        }
        let statement = parameters.bind(sqlx::query(IN_SEGMENT));
        let rows = statement
            .bind(cursor.time)
            .bind(cursor.id.as_bytes().to_vec())
            .bind(wanted as i64)
            .bind(segment * SEGMENT_ROWS)
            .bind((segment + 1) * SEGMENT_ROWS)
            .fetch_all(&mut *connection)
            .await?;
        for row in rows {
            let (time, id, row): (i64, &[u8], i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let id = Uuid::from_slice(id).map_err(|_| StoreError::Damaged {
                row,
                column: "id",
                found: format!("{id:?}"),
            })?;
            found.push((Cursor { time, id }, row));
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.truncate(wanted);
    }
    Ok(found)
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
        since: filter.since.map(|time| time.0),
        until: filter.until.map(|time| time.0),
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
