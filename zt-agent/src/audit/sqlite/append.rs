// SPDX-License-Identifier: Apache-2.0
//! Writing: one batch, one transaction.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::bulk::{Bulk, Values};
use super::schema::SEGMENT_ROWS;
use super::shapes::{self, Names};
use super::share::Costs;
use super::{StoreError, Writer, told};
use crate::audit::chain::{Hash, Head};
use crate::audit::names::Named;
use crate::audit::record::Entry;
use crate::audit::store::RingMark;

/// Names and shapes whose ids are kept in memory. When there are more, all are forgotten and looked up again as they
/// come.
const MAX_CACHED: usize = 32_768;

const NAMES: Bulk = Bulk {
    head: "INSERT INTO name (text) VALUES",
    columns: 1,
    // Updating to the same text is what makes RETURNING speak of names that were there already.
    tail: "ON CONFLICT (text) DO UPDATE SET text = excluded.text RETURNING id, text",
};

const SEGMENTS: Bulk = Bulk {
    head: "INSERT INTO segment (segment, min_time, max_time) VALUES",
    columns: 3,
    tail: "ON CONFLICT (segment) DO UPDATE SET min_time = min(min_time, excluded.min_time), \
           max_time = max(max_time, excluded.max_time)",
};

const SPANS: Bulk = Bulk {
    head: "INSERT OR IGNORE INTO span (segment, shape) VALUES",
    columns: 2,
    tail: "",
};

const RECORDS: Bulk = Bulk {
    head: "INSERT INTO record (row, id, time, shape, revision, latency, source_address, source_port, \
           destination_address, pid, comm, source_pod, destination_pod, caller, count, change, hash) VALUES",
    columns: 17,
    tail: "",
};

const NUMBERS: Bulk = Bulk {
    head: "INSERT OR REPLACE INTO number (kind, number, text) VALUES",
    columns: 3,
    tail: "",
};

/// What the writer knows to be in the file, so that it need not ask.
#[derive(Debug, Default)]
pub(super) struct Known {
    names: Names,
    shapes: shapes::Shapes,
    /// The deletions of shapes that are known of.
    shapes_gone: i64,
    /// Shapes of the segment that is being filled.
    spans: (i64, HashSet<i64>),
}

impl Known {
    /// Shapes that have gone are looked up again.
    async fn check(&mut self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let (shapes_gone,): (i64,) = sqlx::query_as("SELECT shapes_gone FROM trail")
            .fetch_one(connection)
            .await?;
        if self.shapes_gone != shapes_gone {
            self.shapes.clear();
            self.spans.1.clear();
            self.shapes_gone = shapes_gone;
        }
        Ok(())
    }
}

/// Keeps a batch, whole or not at all. Returns the number of the last record that there is then; 0 where nothing was done.
pub(super) async fn append(
    writer: &mut Writer,
    entries: &[Entry],
    mark: Option<RingMark>,
) -> Result<u64, StoreError> {
    if entries.is_empty() && mark.is_none() {
        return Ok(0);
    }
    // Ids that this transaction makes are void if it fails or is given up half-way: so what is known is taken out, and
    // only a commit puts it back.
    let mut known = std::mem::take(&mut writer.known);
    let mut transaction = writer.connection.begin_with("BEGIN IMMEDIATE").await?;
    known.check(&mut transaction).await?;
    let mut costs = Costs::of_texts(entries, &known.names);
    learn_names(&mut transaction, &mut known.names, entries).await?;
    costs.add_shapes(entries, &known.shapes, &known.names);
    let shapes = shapes::shapes_of(&mut transaction, &mut known.shapes, &known.names, entries).await?;
    let mut head = head(&mut transaction).await?;
    let first_row = head.seq.cast_signed() + 1;
    let hashes: Vec<Hash> = entries.iter().map(|entry| head.link(entry).hash).collect();
    write_trail(&mut transaction, &head, entries.len() as i64, mark).await?;
    let taken = costs.note(&mut transaction, first_row).await?;
    shapes::count(&mut transaction, entries, &shapes).await?;
    write_segments(&mut transaction, &mut known.spans, entries, &shapes, first_row).await?;
    let rows: Vec<(i64, i64, &Hash, &Entry)> = (first_row..)
        .zip(shapes)
        .zip(&hashes)
        .zip(entries)
        .map(|(((row, shape), hash), entry)| (row, shape, hash, entry))
        .collect();
    RECORDS
        .insert(&mut transaction, &rows, |row, values| {
            bind_record(row, &known.names, values)
        })
        .await?;
    told::note_last(&mut transaction, entries).await?;
    transaction.commit().await?;
    writer.share.add(taken);
    if known.names.len() <= MAX_CACHED && known.shapes.len() <= MAX_CACHED {
        writer.known = known;
    }
    Ok(head.seq)
}

/// Gives entries their places in the chain without keeping them. Returns where the chain ends then.
pub(super) async fn skip(
    connection: &mut SqliteConnection,
    mut head: Head,
    entries: &[Entry],
    mark: Option<RingMark>,
) -> Result<Head, StoreError> {
    for entry in entries {
        head.link(entry);
    }
    write_trail(connection, &head, 0, mark).await?;
    Ok(head)
}

/// Keeps names of numbers.
pub(super) async fn remember(connection: &mut SqliteConnection, names: &[Named]) -> Result<(), StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    NUMBERS
        .insert(&mut transaction, names, |named, values| {
            values.push(named.kind.name())?;
            values.push(named.number.cast_signed())?;
            values.push(&*named.text)
        })
        .await?;
    transaction.commit().await?;
    Ok(())
}

/// Where the chain ends: the last row is the last number.
pub(super) async fn head(connection: &mut SqliteConnection) -> Result<Head, StoreError> {
    let (next_row, writer, hash): (i64, Vec<u8>, Vec<u8>) =
        sqlx::query_as("SELECT next_row, writer, hash FROM trail")
            .fetch_one(connection)
            .await?;
    let damaged = |column, found: &[u8]| StoreError::Damaged {
        row: 0,
        column,
        found: format!("{found:02x?}"),
    };
    Ok(Head {
        writer: Uuid::from_slice(&writer).map_err(|_| damaged("trail.writer", &writer))?,
        seq: (next_row - 1).cast_unsigned(),
        hash: Hash(<[u8; 32]>::try_from(&*hash).map_err(|_| damaged("trail.hash", &hash))?),
    })
}

async fn write_trail(
    connection: &mut SqliteConnection,
    head: &Head,
    count: i64,
    mark: Option<RingMark>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE trail SET next_row = ?1, hash = ?2, stored = stored + ?3, ring = coalesce(?4, ring),
                ring_position = coalesce(?5, ring_position)",
    )
    .bind(head.seq.cast_signed() + 1)
    .bind(head.hash.0.as_slice())
    .bind(count)
    .bind(mark.map(|mark| mark.ring.as_bytes().to_vec()))
    .bind(mark.map(|mark| mark.position.cast_signed()))
    .execute(connection)
    .await?;
    Ok(())
}

/// The names that an entry refers to.
pub(super) fn names_of(entry: &Entry) -> impl Iterator<Item = &Arc<str>> {
    let names: [Option<&Arc<str>>; 8] = match entry {
        Entry::Decision(record) => {
            let (source, destination) = (&record.source, &record.destination);
            [
                source.spiffe_id.as_ref().or(source.entity.as_ref()),
                destination.spiffe_id.as_ref().or(destination.entity.as_ref()),
                record.policy_matched.as_ref(),
                source.node.as_ref(),
                destination.node.as_ref(),
                Some(&record.cluster),
                source.pod.as_ref(),
                destination.pod.as_ref(),
            ]
        }
        Entry::PolicyChange(change) | Entry::ModeChange(change) | Entry::IdentityChange(change) => {
            let (node, cluster) = (Some(&change.node), Some(&change.cluster));
            [node, cluster, None, None, None, None, None, None]
        }
    };
    names.into_iter().flatten()
}

async fn learn_names(
    connection: &mut SqliteConnection,
    names: &mut Names,
    entries: &[Entry],
) -> Result<(), StoreError> {
    let unknown: HashSet<&Arc<str>> = entries
        .iter()
        .flat_map(names_of)
        .filter(|name| !names.contains_key(*name))
        .collect();
    let unknown: Vec<&Arc<str>> = unknown.into_iter().collect();
    NAMES
        .insert_returning(
            connection,
            &unknown,
            |name, values| values.push(&***name),
            |row| {
                names.insert(Arc::from(row.try_get::<&str, _>(1)?), row.try_get(0)?);
                Ok(())
            },
        )
        .await?;
    Ok(())
}

/// Notes the times and shapes of the segments that the batch falls into.
async fn write_segments(
    connection: &mut SqliteConnection,
    known: &mut (i64, HashSet<i64>),
    entries: &[Entry],
    shapes: &[i64],
    first_row: i64,
) -> Result<(), StoreError> {
    let mut segments: Vec<(i64, i64, i64)> = Vec::new();
    let mut spans: Vec<(i64, i64)> = Vec::new();
    for ((row, entry), shape) in (first_row..).zip(entries).zip(shapes) {
        let (segment, time) = (row / SEGMENT_ROWS, entry.timestamp().0);
        match segments.last_mut() {
            Some((last, min, max)) if *last == segment => {
                *min = (*min).min(time);
                *max = (*max).max(time);
            }
            _ => segments.push((segment, time, time)),
        }
        if known.0 != segment {
            *known = (segment, HashSet::new());
        }
        if known.1.insert(*shape) {
            spans.push((segment, *shape));
        }
    }
    SEGMENTS
        .insert(connection, &segments, |(segment, min, max), values| {
            [segment, min, max]
                .into_iter()
                .try_for_each(|integer| values.push(*integer))
        })
        .await?;
    spans.sort_unstable();
    SPANS
        .insert(connection, &spans, |(segment, shape), values| {
            values.push(*segment)?;
            values.push(*shape)
        })
        .await?;
    Ok(())
}

fn bind_record(
    (row, shape, hash, entry): &(i64, i64, &Hash, &Entry),
    names: &Names,
    values: &mut Values,
) -> Result<(), sqlx::Error> {
    values.push(*row)?;
    values.push(entry.id().as_bytes().as_slice())?;
    values.push(entry.timestamp().0)?;
    values.push(*shape)?;
    match entry {
        Entry::Decision(record) => {
            let (source, destination) = (&record.source, &record.destination);
            let id = |name: &Option<Arc<str>>| name.as_ref().and_then(|name| names.get(name)).copied();
            values.push(record.revision.cast_signed())?;
            values.push(i64::try_from(record.latency.0).unwrap_or(i64::MAX))?;
            values.push(source.address.map(octets))?;
            values.push(source.port)?;
            values.push(destination.address.map(octets))?;
            values.push(source.pid)?;
            values.push(source.comm.as_deref())?;
            values.push(id(&source.pod))?;
            values.push(id(&destination.pod))?;
            values.push(record.caller.as_deref())?;
            values.push(record.count.cast_signed())?;
            values.push(record.operator_detail().map(|detail| detail.to_string()))?;
        }
        Entry::PolicyChange(change) | Entry::ModeChange(change) | Entry::IdentityChange(change) => {
            values.push(change.revision.cast_signed())?;
            values.push(0_i64)?;
            for _ in 0..7 {
                values.push(None::<i64>)?;
            }
            values.push(&*change.caller)?;
            values.push(1_i64)?;
            values.push(change.change.to_string())?;
        }
    }
    values.push(hash.0.as_slice())
}

/// Four bytes or sixteen, in network order.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
