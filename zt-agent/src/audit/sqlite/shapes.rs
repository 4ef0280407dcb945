// SPDX-License-Identifier: Apache-2.0
//! Shapes: what repeats from record to record, kept once.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::StoreError;
use super::bulk::{Bulk, Values};
use crate::audit::query::HOUR;
use crate::audit::record::{Entry, Kind, Part};

const SHAPES: Bulk = Bulk {
    head: "INSERT INTO shape (source, destination, protocol, port, rule, source_node, destination_node, cluster, \
           decision, enforced, mode, observer, hook, reason, proof, part, mark) VALUES",
    columns: 17,
    tail: "ON CONFLICT (source, destination, port, protocol, rule, source_node, destination_node, cluster, decision, \
           enforced, mode, observer, hook, reason, proof) DO UPDATE SET mark = excluded.mark RETURNING mark, id",
};

const BUCKETS: Bulk = Bulk {
    head: "INSERT INTO bucket (shape, hour, connections, first_seen, last_seen) VALUES",
    columns: 5,
    tail: "ON CONFLICT (shape, hour) DO UPDATE SET connections = connections + excluded.connections, \
           first_seen = min(first_seen, excluded.first_seen), last_seen = max(last_seen, excluded.last_seen)",
};

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

/// Ids of names by their text.
pub(super) type Names = HashMap<Arc<str>, i64>;

impl ShapeKey {
    /// The shape of an entry, all of whose names have ids.
    pub(super) fn of(entry: &Entry, names: &Names) -> Self {
        let id = |name: Option<&Arc<str>>| name.and_then(|name| names.get(name)).copied().unwrap_or(0);
        match entry {
            Entry::Decision(record) => {
                let (source, destination) = (&record.source, &record.destination);
                Self {
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
                    part: record.part(),
                }
            }
            Entry::PolicyChange(change) | Entry::ModeChange(change) | Entry::IdentityChange(change) => Self {
                source: 0,
                destination: 0,
                protocol: 0,
                port: 0,
                rule: 0,
                source_node: id(Some(&change.node)),
                destination_node: 0,
                cluster: id(Some(&change.cluster)),
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
pub(super) type Shapes = HashMap<ShapeKey, i64>;

/// The shape of each entry, by id; makes those there are not.
pub(super) async fn shapes_of(
    connection: &mut SqliteConnection,
    known: &mut Shapes,
    names: &Names,
    entries: &[Entry],
) -> Result<Vec<i64>, StoreError> {
    let keys: Vec<ShapeKey> = entries.iter().map(|entry| ShapeKey::of(entry, names)).collect();
    let mut new: Vec<ShapeKey> = Vec::new();
    for key in &keys {
        // 0 stands for one that is made below.
        if !known.contains_key(key) {
            known.insert(*key, 0);
            new.push(*key);
        }
    }
    let marked: Vec<(i64, ShapeKey)> = (0..).zip(new.iter().copied()).collect();
    SHAPES
        .insert_returning(connection, &marked, bind_shape, |row| {
            let (mark, id): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            if let Some(key) = usize::try_from(mark).ok().and_then(|mark| new.get(mark)) {
                known.insert(*key, id);
            }
            Ok(())
        })
        .await?;
    Ok(keys
        .iter()
        .map(|key| known.get(key).copied().unwrap_or(0))
        .collect())
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

/// Adds a batch to the counts by the hour.
pub(super) async fn count(
    connection: &mut SqliteConnection,
    entries: &[Entry],
    shapes: &[i64],
) -> Result<(), StoreError> {
    let mut counts: HashMap<(i64, i64), Count> = HashMap::new();
    for (entry, shape) in entries.iter().zip(shapes) {
        let time = entry.timestamp().0;
        let connections = entry.decision().map_or(1, |record| record.count.cast_signed());
        let count = counts
            .entry((*shape, time.div_euclid(HOUR)))
            .or_insert((0, time, time));
        *count = (count.0 + connections, count.1.min(time), count.2.max(time));
    }
    let mut counts: Vec<((i64, i64), Count)> = counts.into_iter().collect();
    // In the order of the table: neighbours share pages.
    counts.sort_unstable();
    BUCKETS
        .insert(
            connection,
            &counts,
            |((shape, hour), (connections, first, last)), values| {
                [shape, hour, connections, first, last]
                    .into_iter()
                    .try_for_each(|integer| values.push(*integer))
            },
        )
        .await?;
    Ok(())
}
