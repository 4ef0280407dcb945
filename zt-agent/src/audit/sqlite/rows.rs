// SPDX-License-Identifier: Apache-2.0
//! Rows of the tables → entries.

mod change;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use futures::TryStreamExt as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection as _, Row};
use uuid::Uuid;

use super::StoreError;
use super::shapes::kind_of;
use crate::audit::chain::{Hash, Link};
use crate::audit::query::{Cursor, Unreadable};
use crate::audit::record::{
    AuditRecord, Destination, Entry, Hook, Kept, Kind, Latency, Mode, Observer, Outcome, Proof, Protocol,
    Reason, Source, Timestamp, UnknownTerm, party,
};

/// What [`kept`] reads of a record, in `r`.
macro_rules! of_record {
    () => {
        "r.row, r.id, r.time, r.shape, r.revision, r.latency, r.source_address, r.source_port, r.destination_address,
         r.pid, r.comm, r.caller, r.count, r.change, r.hash,
         (SELECT text FROM name WHERE id = r.source_pod) AS source_pod,
         (SELECT text FROM name WHERE id = r.destination_pod) AS destination_pod"
    };
}

/// And of its shape, in `s`.
macro_rules! of_shape {
    () => {
        "s.protocol, s.port, s.decision, s.enforced, s.mode, s.observer, s.hook, s.reason, s.proof, s.part,
         (SELECT text FROM name WHERE id = s.source) AS source,
         (SELECT text FROM name WHERE id = s.destination) AS destination,
         (SELECT text FROM name WHERE id = s.rule) AS rule,
         (SELECT text FROM name WHERE id = s.source_node) AS source_node,
         (SELECT text FROM name WHERE id = s.destination_node) AS destination_node,
         (SELECT text FROM name WHERE id = s.cluster) AS cluster,
         (SELECT writer FROM trail) AS writer"
    };
}

/// All of an entry: what [`kept`] reads. One that lacks its shape is unreadable, not gone.
macro_rules! entries {
    ($tail:literal) => {
        concat!(
            "SELECT ",
            of_record!(),
            ", ",
            of_shape!(),
            " FROM record r LEFT JOIN shape s ON s.id = r.shape ",
            $tail
        )
    };
}

const THESE: &str = entries!("WHERE r.row IN (SELECT value FROM json_each(?1))");

/// The shapes of the entries from a row to another.
const SHAPES_BETWEEN: &str = concat!(
    "SELECT s.id, ",
    of_shape!(),
    " FROM shape s WHERE s.id IN (SELECT shape FROM record WHERE row BETWEEN ?1 AND ?2)"
);

/// These entries without what their shapes say, in order.
const RECORDS_BETWEEN: &str = concat!(
    "SELECT ",
    of_record!(),
    " FROM record r WHERE r.row BETWEEN ?1 AND ?2 ORDER BY r.row"
);

/// The next entries from a row on, in order.
pub(super) const FROM: &str = entries!("WHERE r.row >= ?1 ORDER BY r.row LIMIT ?2");

/// Characters of what is wrong with a row that are repeated.
const MOST: usize = 200;

/// The entries of these rows, each with its place, in any order; and what stands for those that cannot be read.
pub(super) async fn these(
    connection: &mut SqliteConnection,
    rows: &[(Cursor, i64)],
) -> Result<(Vec<Kept>, Vec<Unreadable>), StoreError> {
    let places: HashMap<i64, Cursor> = rows.iter().map(|(place, row)| (*row, *place)).collect();
    let rows: Vec<i64> = rows.iter().map(|(_, row)| *row).collect();
    let found = sqlx::query(THESE).bind(json(&rows)).fetch_all(connection).await?;
    let (mut readable, mut unreadable) = (Vec::with_capacity(found.len()), Vec::new());
    for row in &found {
        let number: i64 = row.try_get("row")?;
        match (readable_or_why(row)?, places.get(&number)) {
            (Ok(kept), _) => readable.push(kept),
            (Err(cause), Some(place)) => {
                let writer: &[u8] = row.try_get("writer")?;
                let writer = Uuid::from_slice(writer).unwrap_or_default();
                unreadable.push(Unreadable::new(
                    *place,
                    (writer, number.cast_unsigned()),
                    None,
                    cause,
                ));
            }
            // Only what was asked for is found.
            (Err(_), None) => {}
        }
    }
    Ok((readable, unreadable))
}

/// The entry of a row, or what is wrong with it; an error where that is not the row's fault.
pub(super) fn readable_or_why(row: &SqliteRow) -> Result<Result<Kept, String>, StoreError> {
    or_why(kept(row))
}

fn or_why(kept: Result<Kept, StoreError>) -> Result<Result<Kept, String>, StoreError> {
    let beginning = |text: &str| text.chars().take(MOST).collect::<String>();
    match kept {
        Ok(kept) => Ok(Ok(kept)),
        Err(StoreError::Damaged { column, found, .. }) => {
            Ok(Err(format!("{column} is {}", beginning(&found))))
        }
        Err(StoreError::Database(sqlx::Error::ColumnDecode { index, source })) => {
            Ok(Err(format!("{index}: {}", beginning(&source.to_string()))))
        }
        Err(error) => Err(error),
    }
}

/// The entries from a row to another that are there, with their rows, in order; what is wrong, of one that cannot be read.
/// What a shape says is read once: handing a value over costs the driver more than reading it, and half of an entry's are
/// its shape's, with nearly all of its texts.
pub(super) async fn between(
    connection: &mut SqliteConnection,
    first: i64,
    last: i64,
) -> Result<Vec<(i64, Result<Kept, String>)>, StoreError> {
    // Of one moment.
    let mut transaction = connection.begin().await?;
    let shapes: HashMap<i64, Shape> = sqlx::query(SHAPES_BETWEEN)
        .bind(first)
        .bind(last)
        .fetch_all(&mut *transaction)
        .await?
        .into_iter()
        .map(|shape| Ok((shape.try_get("id")?, Shape::of(shape))))
        .collect::<Result<_, sqlx::Error>>()?;
    let mut entries = Vec::new();
    let mut found = sqlx::query(RECORDS_BETWEEN)
        .bind(first)
        .bind(last)
        .fetch(&mut *transaction);
    // One after the other: a row as the driver hands it over is ten times as large as the record.
    while let Some(row) = found.try_next().await? {
        let kept = match shapes.get(&row.try_get("shape")?) {
            Some(shape) => or_why(shape.kept(&row))?,
            None => Err("shape is missing".to_owned()),
        };
        entries.push((row.try_get("row")?, kept));
    }
    Ok(entries)
}

/// A shape that is read once.
struct Shape {
    row: SqliteRow,
    /// The writer, and what the shape says of each of its decisions; nothing of another kind, or where it cannot be read.
    said: Option<(Uuid, AuditRecord)>,
}

impl Shape {
    fn of(row: SqliteRow) -> Self {
        let said = || {
            let (writer, hook): (&[u8], &str) = (row.try_get("writer").ok()?, row.try_get("hook").ok()?);
            let writer = Uuid::from_slice(writer).ok()?;
            let decides = kind_of(hook) == Kind::Decision;
            decides
                .then(|| template(&row, 0))
                .and_then(Result::ok)
                .map(|record| (writer, record))
        };
        let said = said();
        Self { row, said }
    }

    /// The entry of a record of this shape.
    fn kept(&self, row: &SqliteRow) -> Result<Kept, StoreError> {
        let Some((writer, template)) = &self.said else {
            // What is wrong with it is said with each of its records.
            return of_both(row, &self.row);
        };
        let number: i64 = row.try_get("row")?;
        Ok(Kept {
            entry: Entry::Decision(detailed(row, template.clone(), number)?),
            link: link(row, Ok(*writer), number)?,
        })
    }
}

/// A list of numbers for `json_each`.
pub(super) fn json(numbers: &[i64]) -> String {
    format!(
        "[{}]",
        numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
    )
}

pub(super) fn kept(row: &SqliteRow) -> Result<Kept, StoreError> {
    of_both(row, row)
}

/// The entry of a record's row and its shape's.
fn of_both(row: &SqliteRow, shape: &SqliteRow) -> Result<Kept, StoreError> {
    let number: i64 = row.try_get("row")?;
    let writer: &[u8] = shape.try_get("writer")?;
    let damaged = |column, found: &str| StoreError::Damaged {
        row: number,
        column,
        found: found.to_owned(),
    };
    let id = Uuid::from_slice(writer).map_err(|_| damaged("writer", &format!("{writer:02x?}")));
    let link = link(row, id, number)?;
    // A change is one by its hook; what a decision has in that column is what an operator brought forward.
    let (hook, detail): (Option<&str>, Option<&str>) = (shape.try_get("hook")?, row.try_get("change")?);
    let hook = hook.ok_or_else(|| damaged("shape", "missing"))?;
    let entry = match (kind_of(hook), detail) {
        (Kind::Decision, _) => Entry::Decision(detailed(row, template(shape, number)?, number)?),
        (_, Some(text)) => change::read(row, shape, number, text)?,
        (_, None) => return Err(damaged("change", "missing")),
    };
    Ok(Kept { entry, link })
}

/// The place of a record in the chain of a writer.
fn link(row: &SqliteRow, writer: Result<Uuid, StoreError>, number: i64) -> Result<Option<Link>, StoreError> {
    let Some(hash) = row.try_get::<Option<&[u8]>, _>("hash")? else {
        return Ok(None);
    };
    let damaged = |_| StoreError::Damaged {
        row: number,
        column: "hash",
        found: format!("{hash:02x?}"),
    };
    Ok(Some(Link {
        writer: writer?,
        seq: number.cast_unsigned(),
        hash: Hash(<[u8; 32]>::try_from(hash).map_err(damaged)?),
    }))
}

/// A decision whose shape says that, with what an operator brought forward.
fn detailed(row: &SqliteRow, template: AuditRecord, number: i64) -> Result<AuditRecord, StoreError> {
    let mut record = decision(row, template, number)?;
    if let Some(text) = row.try_get::<Option<&str>, _>("change")?
        && !record.set_operator_detail(text)
    {
        return Err(StoreError::Damaged {
            row: number,
            column: "change",
            found: text.to_owned(),
        });
    }
    Ok(record)
}

fn text(of: &SqliteRow, column: &str) -> Result<Option<Arc<str>>, sqlx::Error> {
    Ok(of.try_get::<Option<&str>, _>(column)?.map(Arc::from))
}

/// What a shape says of its decisions. What each of them says itself is empty.
fn template(shape: &SqliteRow, number: i64) -> Result<AuditRecord, StoreError> {
    let needed = |column: &'static str| -> Result<Arc<str>, StoreError> {
        text(shape, column)?.ok_or_else(|| StoreError::Damaged {
            row: number,
            column,
            found: "missing".to_owned(),
        })
    };
    let (source, source_entity) = party(needed("source")?);
    let (destination, destination_entity) = party(needed("destination")?);
    Ok(AuditRecord {
        id: Uuid::nil(),
        timestamp: Timestamp(0),
        decision: term::<Outcome>(shape, "decision", number)?,
        source: Source {
            spiffe_id: source,
            entity: source_entity,
            node: text(shape, "source_node")?,
            ..Source::default()
        },
        destination: Destination {
            spiffe_id: destination,
            entity: destination_entity,
            port: shape.try_get("port")?,
            node: text(shape, "destination_node")?,
            ..Destination::default()
        },
        policy_matched: text(shape, "rule")?,
        latency: Latency(0),
        cluster: needed("cluster")?,
        protocol: Protocol(shape.try_get("protocol")?),
        hook: term::<Hook>(shape, "hook", number)?,
        observer: term::<Observer>(shape, "observer", number)?,
        mode: term::<Mode>(shape, "mode", number)?,
        // Filters ask for one or the other, and not for what else is true.
        enforced: match shape.try_get("enforced")? {
            0_i64 => false,
            1 => true,
            other => {
                return Err(StoreError::Damaged {
                    row: number,
                    column: "enforced",
                    found: other.to_string(),
                });
            }
        },
        revision: 0,
        reason: term::<Reason>(shape, "reason", number)?,
        proof: term::<Proof>(shape, "proof", number)?,
        count: 0,
        caller: None,
        mfa: None,
        incident: None,
    })
}

/// A decision whose shape says that.
fn decision(row: &SqliteRow, mut record: AuditRecord, number: i64) -> Result<AuditRecord, StoreError> {
    let damaged = |column, found: String| StoreError::Damaged {
        row: number,
        column,
        found,
    };
    let address = |column: &'static str| -> Result<Option<IpAddr>, StoreError> {
        let bytes: Option<&[u8]> = row.try_get(column)?;
        bytes
            .map(|bytes| ip(bytes).ok_or_else(|| damaged(column, format!("{bytes:?}"))))
            .transpose()
    };
    let id: &[u8] = row.try_get("id")?;
    record.id = Uuid::from_slice(id).map_err(|_| damaged("id", format!("{id:?}")))?;
    record.timestamp = Timestamp(row.try_get("time")?);
    let source = &mut record.source;
    source.pod = text(row, "source_pod")?;
    source.address = address("source_address")?;
    source.port = row.try_get("source_port")?;
    source.pid = row.try_get("pid")?;
    source.comm = text(row, "comm")?;
    record.destination.address = address("destination_address")?;
    record.destination.pod = text(row, "destination_pod")?;
    record.latency = Latency(row.try_get::<i64, _>("latency")?.cast_unsigned());
    record.revision = row.try_get::<i64, _>("revision")?.cast_unsigned();
    record.count = row.try_get::<i64, _>("count")?.cast_unsigned();
    record.caller = text(row, "caller")?;
    Ok(record)
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

pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
