// SPDX-License-Identifier: Apache-2.0
//! Writing: one batch, one transaction.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};

use super::bulk::{Bulk, Values};
use super::schema::SEGMENT_ROWS;
use super::{StoreError, Writer};
use crate::audit::names::Named;
use crate::audit::record::{AuditRecord, Part};

/// Names whose ids are kept in memory. When there are more, all are forgotten and looked up again as they come.
const MAX_CACHED_NAMES: usize = 32_768;

const NAMES: Bulk = Bulk {
    head: "INSERT INTO name (text) VALUES",
    columns: 1,
    // Updating to the same text is what makes RETURNING speak of names that were there already.
    tail: "ON CONFLICT (text) DO UPDATE SET text = excluded.text RETURNING id, text",
};

const SHAPES: Bulk = Bulk {
    head: "INSERT INTO shape (source, destination, protocol, port, rule, source_node, destination_node, cluster, \
           decision, enforced, mode, observer, hook, reason, proof, part, connections, first_seen, last_seen, \
           last_row, mark) VALUES",
    columns: 21,
    tail: "ON CONFLICT (source, destination, port, protocol, rule, source_node, destination_node, cluster, decision, \
           enforced, mode, observer, hook, reason, proof) DO UPDATE SET \
           connections = connections + excluded.connections, \
           first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen), \
           last_row = excluded.last_row, mark = excluded.mark RETURNING mark, id",
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
           destination_address, pid, comm, source_pod, destination_pod, caller, count) VALUES",
    columns: 15,
    tail: "",
};

const NUMBERS: Bulk = Bulk {
    head: "INSERT OR REPLACE INTO number (kind, number, text) VALUES",
    columns: 3,
    tail: "",
};

/// What identifies a shape.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct ShapeKey {
    source: i64,
    destination: i64,
    protocol: u8,
    port: u16,
    rule: i64,
    source_node: i64,
    destination_node: i64,
    cluster: i64,
    decision: &'static str,
    enforced: bool,
    mode: &'static str,
    observer: &'static str,
    hook: &'static str,
    reason: &'static str,
    proof: &'static str,
}

/// A shape in this batch.
struct Shape {
    key: ShapeKey,
    part: Part,
    connections: u64,
    first_seen: i64,
    last_seen: i64,
    last_row: i64,
    mark: i64,
    id: i64,
}

/// Keeps a batch, whole or not at all.
pub(super) async fn append(writer: &mut Writer, records: &[AuditRecord]) -> Result<(), StoreError> {
    if records.is_empty() {
        return Ok(());
    }
    // Ids that this transaction makes are void if it fails or is given up half-way: so the cache is taken out, and
    // only a commit puts it back.
    let mut names = std::mem::take(&mut writer.names);
    let mut transaction = writer.connection.begin_with("BEGIN IMMEDIATE").await?;
    learn_names(&mut transaction, &mut names, records).await?;
    let count = records.len() as i64;
    let (next_row,): (i64,) =
        sqlx::query_as("UPDATE trail SET next_row = next_row + ?1, stored = stored + ?1 RETURNING next_row")
            .bind(count)
            .fetch_one(&mut *transaction)
            .await?;
    let first_row = next_row - count;
    let (mut shapes, of_record) = group(records, &names, first_row);
    write_shapes(&mut transaction, &mut shapes).await?;
    write_segments(&mut transaction, records, &shapes, &of_record, first_row).await?;
    let rows: Vec<(i64, i64, &AuditRecord)> = (first_row..)
        .zip(&of_record)
        .zip(records)
        .map(|((row, shape), record)| (row, shapes.get(*shape).map_or(0, |shape| shape.id), record))
        .collect();
    RECORDS
        .insert(&mut transaction, &rows, |row, values| {
            bind_record(row, &names, values)
        })
        .await?;
    transaction.commit().await?;
    if names.len() <= MAX_CACHED_NAMES {
        writer.names = names;
    }
    Ok(())
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

/// The names that a record refers to.
fn names_of(record: &AuditRecord) -> impl Iterator<Item = &Arc<str>> {
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
    .into_iter()
    .flatten()
}

async fn learn_names(
    connection: &mut SqliteConnection,
    names: &mut HashMap<Arc<str>, i64>,
    records: &[AuditRecord],
) -> Result<(), StoreError> {
    let unknown: HashSet<&Arc<str>> = records
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

/// The shapes of a batch, and for each record which of them it has.
fn group(
    records: &[AuditRecord],
    names: &HashMap<Arc<str>, i64>,
    first_row: i64,
) -> (Vec<Shape>, Vec<usize>) {
    let id = |name: Option<&Arc<str>>| name.and_then(|name| names.get(name)).copied().unwrap_or(0);
    let mut index: HashMap<ShapeKey, usize> = HashMap::new();
    let mut shapes: Vec<Shape> = Vec::new();
    let of_record = (first_row..).zip(records).map(|(row, record)| {
        let (source, destination) = (&record.source, &record.destination);
        let key = ShapeKey {
            source: id(source.spiffe_id.as_ref().or(source.entity.as_ref())),
            destination: id(destination.spiffe_id.as_ref().or(destination.entity.as_ref())),
            protocol: record.protocol.0,
            port: destination.port,
            rule: id(record.policy_matched.as_ref()),
            source_node: id(source.node.as_ref()),
            destination_node: id(destination.node.as_ref()),
            cluster: id(Some(&record.cluster)),
            decision: record.decision.name(),
            enforced: record.enforced,
            mode: record.mode.name(),
            observer: record.observer.name(),
            hook: record.hook.name(),
            reason: record.reason.name(),
            proof: record.proof.name(),
        };
        let time = record.timestamp.0;
        let at = *index.entry(key).or_insert_with(|| {
            let (part, mark) = (record.part(), shapes.len() as i64);
            let empty = (0, time, time, row);
            let (connections, first_seen, last_seen, last_row) = empty;
            shapes.push(Shape {
                key,
                part,
                connections,
                first_seen,
                last_seen,
                last_row,
                mark,
                id: 0,
            });
            shapes.len() - 1
        });
        if let Some(shape) = shapes.get_mut(at) {
            shape.connections += record.count;
            shape.first_seen = shape.first_seen.min(time);
            shape.last_seen = shape.last_seen.max(time);
            shape.last_row = row;
        }
        at
    });
    let of_record = of_record.collect();
    (shapes, of_record)
}

/// Adds the shapes of this batch to those there are, and learns their ids.
async fn write_shapes(connection: &mut SqliteConnection, shapes: &mut [Shape]) -> Result<(), StoreError> {
    let mut ids = Vec::with_capacity(shapes.len());
    let bind = |shape: &Shape, values: &mut Values| {
        let key = &shape.key;
        for integer in [
            key.source,
            key.destination,
            i64::from(key.protocol),
            i64::from(key.port),
            key.rule,
        ] {
            values.push(integer)?;
        }
        for integer in [key.source_node, key.destination_node, key.cluster] {
            values.push(integer)?;
        }
        values.push(key.decision)?;
        values.push(key.enforced)?;
        for text in [key.mode, key.observer, key.hook, key.reason, key.proof] {
            values.push(text)?;
        }
        values.push(part_number(shape.part))?;
        values.push(shape.connections.cast_signed())?;
        for integer in [shape.first_seen, shape.last_seen, shape.last_row, shape.mark] {
            values.push(integer)?;
        }
        Ok(())
    };
    SHAPES
        .insert_returning(connection, shapes, bind, |row| {
            ids.push((row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?));
            Ok(())
        })
        .await?;
    for (mark, id) in ids {
        if let Some(shape) = usize::try_from(mark).ok().and_then(|mark| shapes.get_mut(mark)) {
            shape.id = id;
        }
    }
    Ok(())
}

/// How [`Part`] is kept.
pub(super) const fn part_number(part: Part) -> i64 {
    match part {
        Part::Counts => 0,
        Part::Corrects => 1,
        Part::Aside => 2,
    }
}

/// Notes the times and shapes of the segments that the batch falls into.
async fn write_segments(
    connection: &mut SqliteConnection,
    records: &[AuditRecord],
    shapes: &[Shape],
    of_record: &[usize],
    first_row: i64,
) -> Result<(), StoreError> {
    let mut segments: Vec<(i64, i64, i64)> = Vec::new();
    let mut spans: HashSet<(i64, i64)> = HashSet::new();
    for ((row, record), shape) in (first_row..).zip(records).zip(of_record) {
        let (segment, time) = (row / SEGMENT_ROWS, record.timestamp.0);
        match segments.last_mut() {
            Some((last, min, max)) if *last == segment => {
                *min = (*min).min(time);
                *max = (*max).max(time);
            }
            _ => segments.push((segment, time, time)),
        }
        spans.insert((segment, shapes.get(*shape).map_or(0, |shape| shape.id)));
    }
    SEGMENTS
        .insert(connection, &segments, |(segment, min, max), values| {
            [segment, min, max]
                .into_iter()
                .try_for_each(|integer| values.push(*integer))
        })
        .await?;
    let mut spans: Vec<(i64, i64)> = spans.into_iter().collect();
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
    (row, shape, record): &(i64, i64, &AuditRecord),
    names: &HashMap<Arc<str>, i64>,
    values: &mut Values,
) -> Result<(), sqlx::Error> {
    let (source, destination) = (&record.source, &record.destination);
    let id = |name: &Option<Arc<str>>| name.as_ref().and_then(|name| names.get(name)).copied();
    values.push(*row)?;
    values.push(record.id.as_bytes().as_slice())?;
    values.push(record.timestamp.0)?;
    values.push(*shape)?;
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
    values.push(record.count.cast_signed())
}

/// Four bytes or sixteen, in network order.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
