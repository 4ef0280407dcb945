// SPDX-License-Identifier: Apache-2.0
//! Finding records. Every value is a parameter; the statements are constants.

use std::net::IpAddr;
use std::sync::Arc;

use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use uuid::Uuid;

use super::StoreError;
use super::schema::SEGMENT_ROWS;
use crate::audit::query::{Cursor, Filter, MAX_LIMIT, Page, PartyFilter};
use crate::audit::record::{
    AuditRecord, Destination, Hook, Latency, Mode, Observer, Outcome, Proof, Protocol, Reason, Source,
    Timestamp, UnknownTerm, party,
};
use crate::spiffe_id::SpiffeId;

/// Which shapes are asked for: parameters 1 to 7.
macro_rules! shape_filter {
    ($s:literal) => {
        concat!(
            "(?1 IS NULL OR ",
            $s,
            ".decision = ?1) AND (?2 IS NULL OR ",
            $s,
            ".enforced = ?2)",
            " AND (?3 IS NULL OR ",
            $s,
            ".source IN (SELECT value FROM json_each(?3)))",
            " AND (?4 IS NULL OR ",
            $s,
            ".destination IN (SELECT value FROM json_each(?4)))",
            " AND (?5 IS NULL OR ",
            $s,
            ".port = ?5)",
            " AND (?6 IS NULL OR ",
            $s,
            ".rule IN (SELECT value FROM json_each(?6)))",
            " AND (?7 IS NULL OR ",
            $s,
            ".source_node = ?7 OR ",
            $s,
            ".destination_node = ?7)"
        )
    };
}

/// Goes through the segments that can hold an answer from the newest on, and through their records from the newest
/// on; stops at the limit. `CROSS JOIN` holds the planner to that order, which is the order asked for: nothing is sorted.
pub(super) const SQL: &str = concat!(
    "SELECT r.row, r.id, r.time, r.revision, r.latency, r.source_address, r.source_port, r.destination_address,
            r.pid, r.comm, r.caller, r.count, s.protocol, s.port, s.decision, s.enforced, s.mode, s.observer,
            s.hook, s.reason, s.proof,
            (SELECT text FROM name WHERE id = s.source) AS source,
            (SELECT text FROM name WHERE id = s.destination) AS destination,
            (SELECT text FROM name WHERE id = s.rule) AS rule,
            (SELECT text FROM name WHERE id = s.source_node) AS source_node,
            (SELECT text FROM name WHERE id = s.destination_node) AS destination_node,
            (SELECT text FROM name WHERE id = s.cluster) AS cluster,
            (SELECT text FROM name WHERE id = r.source_pod) AS source_pod,
            (SELECT text FROM name WHERE id = r.destination_pod) AS destination_pod
     FROM segment g
     CROSS JOIN record r ON r.row >= g.segment * ?8 AND r.row < (g.segment + 1) * ?8
     CROSS JOIN shape s ON s.id = r.shape
     WHERE g.segment <= ?9 / ?8 AND r.row < ?9
       AND (?10 IS NULL OR g.max_time >= ?10) AND (?11 IS NULL OR g.min_time < ?11)
       AND (?10 IS NULL OR r.time >= ?10) AND (?11 IS NULL OR r.time < ?11)
       AND (?12 = 0 OR EXISTS (SELECT 1 FROM span p CROSS JOIN shape t ON t.id = p.shape
                               WHERE p.segment = g.segment AND ",
    shape_filter!("t"),
    "))
       AND ",
    shape_filter!("s"),
    " ORDER BY g.segment DESC, r.row DESC LIMIT ?13"
);

/// The parameters of a filter, names turned into ids.
struct Parameters {
    decision: Option<&'static str>,
    enforced: Option<bool>,
    source: Option<String>,
    destination: Option<String>,
    port: Option<u16>,
    rule: Option<String>,
    node: Option<i64>,
}

pub(super) async fn page(
    readers: &SqlitePool,
    filter: &Filter,
    cursor: Option<Cursor>,
    limit: u32,
) -> Result<Page, StoreError> {
    let limit = limit.clamp(1, MAX_LIMIT) as usize;
    // One snapshot for the names and the records.
    let mut transaction = readers.begin().await?;
    let Some(parameters) = parameters(&mut transaction, filter).await? else {
        return Ok(Page {
            records: Vec::new(),
            next: None,
        });
    };
    let filtered = parameters.decision.is_some()
        || parameters.enforced.is_some()
        || parameters.source.is_some()
        || parameters.destination.is_some()
        || parameters.port.is_some()
        || parameters.rule.is_some()
        || parameters.node.is_some();
    let rows = sqlx::query(SQL)
        .bind(parameters.decision)
        .bind(parameters.enforced)
        .bind(parameters.source)
        .bind(parameters.destination)
        .bind(parameters.port)
        .bind(parameters.rule)
        .bind(parameters.node)
        .bind(SEGMENT_ROWS)
        .bind(cursor.map_or(i64::MAX, |cursor| cursor.0))
        .bind(filter.since.map(|time| time.0))
        .bind(filter.until.map(|time| time.0))
        .bind(filtered)
        .bind(limit as i64 + 1)
        .fetch_all(&mut *transaction)
        .await?;
    let found: Vec<(i64, AuditRecord)> = rows.iter().take(limit).map(record).collect::<Result<_, _>>()?;
    let next = if rows.len() > limit {
        found.last().map(|(row, _)| Cursor(*row))
    } else {
        None
    };
    Ok(Page {
        records: found.into_iter().map(|(_, record)| record).collect(),
        next,
    })
}

/// `None` where a name is asked for that no record has.
async fn parameters(
    connection: &mut sqlx::SqliteConnection,
    filter: &Filter,
) -> Result<Option<Parameters>, StoreError> {
    let mut parameters = Parameters {
        decision: filter.decision.map(Outcome::name),
        enforced: filter.enforced,
        source: None,
        destination: None,
        port: filter.port,
        rule: None,
        node: None,
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
            *ids = Some(json(&found));
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
        parameters.rule = Some(json(&found));
    }
    Ok(Some(parameters))
}

async fn exact(connection: &mut sqlx::SqliteConnection, text: &str) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar("SELECT id FROM name WHERE text = ?")
        .bind(text)
        .fetch_optional(connection)
        .await?)
}

async fn party_ids(
    connection: &mut sqlx::SqliteConnection,
    asked: &PartyFilter,
) -> Result<Vec<i64>, StoreError> {
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

fn json(ids: &[i64]) -> String {
    format!(
        "[{}]",
        ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
    )
}

fn record(row: &SqliteRow) -> Result<(i64, AuditRecord), StoreError> {
    let number: i64 = row.try_get("row")?;
    let damaged = |column, found: String| StoreError::Damaged {
        row: number,
        column,
        found,
    };
    let text = |column: &str| -> Result<Option<Arc<str>>, sqlx::Error> {
        Ok(row.try_get::<Option<&str>, _>(column)?.map(Arc::from))
    };
    let needed = |column: &'static str| -> Result<Arc<str>, StoreError> {
        text(column)?.ok_or_else(|| damaged(column, "missing".to_owned()))
    };
    let address = |column: &'static str| -> Result<Option<IpAddr>, StoreError> {
        let bytes: Option<&[u8]> = row.try_get(column)?;
        bytes
            .map(|bytes| ip(bytes).ok_or_else(|| damaged(column, format!("{bytes:?}"))))
            .transpose()
    };
    let (source, source_entity) = party(needed("source")?);
    let (destination, destination_entity) = party(needed("destination")?);
    let id: &[u8] = row.try_get("id")?;
    let record = AuditRecord {
        id: Uuid::from_slice(id).map_err(|_| damaged("id", format!("{id:?}")))?,
        timestamp: Timestamp(row.try_get("time")?),
        decision: term::<Outcome>(row, "decision", number)?,
        source: Source {
            spiffe_id: source,
            entity: source_entity,
            pod: text("source_pod")?,
            node: text("source_node")?,
            address: address("source_address")?,
            port: row.try_get("source_port")?,
            pid: row.try_get("pid")?,
            comm: text("comm")?,
        },
        destination: Destination {
            spiffe_id: destination,
            entity: destination_entity,
            port: row.try_get("port")?,
            address: address("destination_address")?,
            pod: text("destination_pod")?,
            node: text("destination_node")?,
        },
        policy_matched: text("rule")?,
        latency: Latency(row.try_get::<i64, _>("latency")?.cast_unsigned()),
        cluster: needed("cluster")?,
        protocol: Protocol(row.try_get("protocol")?),
        hook: term::<Hook>(row, "hook", number)?,
        observer: term::<Observer>(row, "observer", number)?,
        mode: term::<Mode>(row, "mode", number)?,
        enforced: row.try_get("enforced")?,
        revision: row.try_get::<i64, _>("revision")?.cast_unsigned(),
        reason: term::<Reason>(row, "reason", number)?,
        proof: term::<Proof>(row, "proof", number)?,
        count: row.try_get::<i64, _>("count")?.cast_unsigned(),
        caller: text("caller")?,
    };
    Ok((number, record))
}

fn term<T: std::str::FromStr<Err = UnknownTerm>>(
    row: &SqliteRow,
    column: &'static str,
    number: i64,
) -> Result<T, StoreError> {
    let text: &str = row.try_get(column)?;
    text.parse().map_err(|_| StoreError::Damaged {
        row: number,
        column,
        found: text.to_owned(),
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
