// SPDX-License-Identifier: Apache-2.0
//! Shapes: what repeats from record to record, kept once.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::StoreError;
use super::bulk::{Bulk, Values};
use super::names::Ids;
use crate::audit::query::HOUR;
use crate::audit::record::{Entry, Kind, Part};

static SHAPES: Bulk = Bulk::new(
    "INSERT INTO shape (source, destination, protocol, port, rule, source_node, destination_node, cluster, \
     decision, enforced, mode, observer, hook, reason, proof, part, mark)",
    17,
    "ON CONFLICT (source, destination, port, protocol, rule, source_node, destination_node, cluster, decision, \
     enforced, mode, observer, hook, reason, proof) DO UPDATE SET mark = excluded.mark RETURNING mark, id",
);

static BUCKETS: Bulk = Bulk::new(
    "INSERT INTO bucket (shape, hour, connections, first_seen, last_seen)",
    5,
    "ON CONFLICT (shape, hour) DO UPDATE SET connections = connections + excluded.connections, \
     first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)",
);

/// What identifies a shape. Where a record has no rule or node, 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct ShapeKey {
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
    part: Part,
}

impl ShapeKey {
    /// The shape of an entry whose names have these ids.
    pub(super) fn of(entry: &Entry, ids: &Ids) -> Self {
        let [source, destination, rule, source_node, destination_node, cluster] = ids.of_shape();
        match entry {
            Entry::Decision(record) => Self {
                source,
                destination,
                protocol: record.protocol.0,
                port: record.destination.port,
                rule,
                source_node,
                destination_node,
                cluster,
                decision: record.decision.name(),
                enforced: record.enforced,
                mode: record.mode.name(),
                observer: record.observer.name(),
                hook: record.hook.name(),
                reason: record.reason.name(),
                proof: record.proof.name(),
                part: record.part(),
            },
            Entry::PolicyChange(_) | Entry::ModeChange(_) | Entry::IdentityChange(_) => Self {
                source,
                destination,
                protocol: 0,
                port: 0,
                rule,
                source_node,
                destination_node,
                cluster,
                decision: "",
                enforced: false,
                mode: "",
                observer: "",
                hook: entry.kind().name(),
                reason: "",
                proof: "",
                part: Part::Aside,
            },
        }
    }
}

/// The kind of record that has a shape with that hook.
pub(super) fn kind_of(hook: &str) -> Kind {
    Kind::from_name(hook).unwrap_or(Kind::Decision)
}

/// Ids of shapes that are committed.
pub(super) type Shapes = HashMap<ShapeKey, i64, RandomState>;

/// The shape of each entry, by id, and those that are not known yet, for [`make`].
pub(super) fn look_up(known: &mut Shapes, keys: &[ShapeKey]) -> (Vec<i64>, Vec<(i64, ShapeKey)>) {
    let mut new: Vec<(i64, ShapeKey)> = Vec::new();
    let id = |key: &ShapeKey| {
        *known.entry(*key).or_insert_with(|| {
            new.push((new.len() as i64, *key));
            // Stands for one that is not made yet.
            -(new.len() as i64)
        })
    };
    let ids = keys.iter().map(id).collect();
    (ids, new)
}

/// Makes shapes, or finds those that are there, and puts their ids in their places.
pub(super) async fn make(
    connection: &mut SqliteConnection,
    known: &mut Shapes,
    ids: &mut [i64],
    new: &[(i64, ShapeKey)],
) -> Result<(), StoreError> {
    let mut made = vec![0; new.len()];
    SHAPES
        .insert_returning(connection, new, bind_shape, |row| {
            let (mark, id): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            if let Some(made) = usize::try_from(mark).ok().and_then(|mark| made.get_mut(mark)) {
                *made = id;
            }
            Ok(())
        })
        .await?;
    known.extend(new.iter().map(|(_, key)| *key).zip(made.iter().copied()));
    for id in ids.iter_mut().filter(|id| **id < 0) {
        *id = made.get(-(*id + 1) as usize).copied().unwrap_or(0);
    }
    Ok(())
}

fn bind_shape((mark, key): &(i64, ShapeKey), values: &mut Values) -> Result<(), sqlx::Error> {
    let integers = [
        key.source,
        key.destination,
        i64::from(key.protocol),
        i64::from(key.port),
        key.rule,
    ];
    for integer in integers
        .into_iter()
        .chain([key.source_node, key.destination_node, key.cluster])
    {
        values.push(integer)?;
    }
    values.push(key.decision)?;
    values.push(key.enforced)?;
    for text in [key.mode, key.observer, key.hook, key.reason, key.proof] {
        values.push(text)?;
    }
    values.push(key.part.number())?;
    values.push(*mark)
}

/// Connections of a shape in an hour: how many, the first, the last.
type Count = (i64, i64, i64);
/// Shape and hour, and what is counted of them.
pub(super) type Counted = ((i64, i64), Count);

/// What a batch adds to the counts by the hour, in the order of the table.
pub(super) fn counts(entries: &[Entry], shapes: &[i64]) -> Vec<Counted> {
    let mut counts: Vec<Counted> = Vec::with_capacity(entries.len());
    for (entry, shape) in entries.iter().zip(shapes) {
        let time = entry.timestamp().0;
        let connections = entry.decision().map_or(1, |record| record.count.cast_signed());
        counts.push(((*shape, time.div_euclid(HOUR)), (connections, time, time)));
    }
    // Neighbours share pages.
    counts.sort_unstable_by_key(|(key, _)| *key);
    counts.dedup_by(|(next, more), (key, count)| {
        let same = next == key;
        if same {
            *count = (count.0 + more.0, count.1.min(more.1), count.2.max(more.2));
        }
        same
    });
    counts
}

/// Adds to the counts by the hour: at the end of a text that is run together; false where that takes several statements.
pub(super) fn append_counts(
    counts: &[Counted],
    text: &mut String,
    values: &mut Values,
) -> Result<bool, sqlx::Error> {
    BUCKETS.append(counts, bind_count, text, values)
}

/// Adds to the counts by the hour.
pub(super) async fn insert_counts(
    connection: &mut SqliteConnection,
    counts: &[Counted],
) -> Result<(), StoreError> {
    BUCKETS.insert(connection, counts, bind_count).await?;
    Ok(())
}

fn bind_count(
    ((shape, hour), (connections, first, last)): &Counted,
    values: &mut Values,
) -> Result<(), sqlx::Error> {
    [shape, hour, connections, first, last]
        .into_iter()
        .try_for_each(|integer| values.push(*integer))
}
