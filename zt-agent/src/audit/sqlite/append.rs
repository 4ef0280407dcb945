// SPDX-License-Identifier: Apache-2.0
//! Writing: one batch, one transaction.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row as _};
use uuid::Uuid;

use super::bulk::{Bulk, Values};
use super::names::{self, Names};
use super::place::{Noted, Place, Times, place, write_trail};
use super::schema::SEGMENT_ROWS;
use super::shapes::{self, ShapeKey};
use super::{StoreError, Watched, Writer, intents, share, told};
use crate::audit::chain::Hash;
use crate::audit::names::{Kind, Named};
use crate::audit::record::Entry;
use crate::audit::store::RingMark;

/// Names and shapes whose ids are kept in memory. When there are more, all are forgotten and looked up again as they
/// come.
const MAX_CACHED: usize = 32_768;

static NAMES: Bulk = Bulk::new(
    "INSERT INTO name (text)",
    1,
    // Updating to the same text is what makes RETURNING speak of names that were there already.
    "ON CONFLICT (text) DO UPDATE SET text = excluded.text RETURNING id, text",
);

static SPANS: Bulk = Bulk::new("INSERT OR IGNORE INTO span (segment, shape)", 2, "");

static RECORDS: Bulk = Bulk::new(
    "INSERT INTO record (row, id, time, shape, revision, latency, source_address, source_port, \
     destination_address, pid, comm, source_pod, destination_pod, caller, count, change, hash)",
    17,
    "",
);

static NUMBERS: Bulk = Bulk::new("INSERT OR REPLACE INTO number (kind, number, text)", 3, "");

/// What the writer knows to be in the file, so that it need not ask.
#[derive(Debug, Default)]
pub(super) struct Known {
    names: Names,
    shapes: shapes::Shapes,
    /// Where the chain ended, when this connection wrote last.
    place: Option<Place>,
    /// The deletions of shapes that are known of.
    shapes_gone: i64,
    /// Shapes of the segment that is being filled.
    spans: (i64, Span),
}

/// Ids of the shapes of a segment.
type Span = HashSet<i64, RandomState>;

impl Known {
    /// Shapes that have gone are looked up again; says whether there are any.
    fn check(&mut self, shapes_gone: i64) -> bool {
        let changed = self.shapes_gone != shapes_gone;
        if changed {
            self.shapes.clear();
            self.spans.1.clear();
            self.shapes_gone = shapes_gone;
        }
        changed
    }

    /// These names have gone. What refers to them went before: shapes that are still known are those of no name any more.
    pub(super) fn forget(&mut self, gone: &[i64]) {
        if !gone.is_empty() {
            let gone: HashSet<i64, RandomState> = gone.iter().copied().collect();
            self.names.retain(|_, id| !gone.contains(id));
        }
    }
}

/// The places of a batch in the chain.
#[derive(Clone, Debug)]
pub struct Links {
    /// Whose chain.
    pub writer: Uuid,
    /// Number of the first entry.
    pub first: u64,
    /// The hash of each.
    pub hashes: Vec<Hash>,
}

impl Links {
    /// Number of the last entry; that before the first where there is none.
    pub fn last(&self) -> u64 {
        (self.first + self.hashes.len() as u64).saturating_sub(1)
    }
}

/// What is written of an entry.
struct Row<'a> {
    number: i64,
    shape: i64,
    hash: &'a Hash,
    entry: &'a Entry,
    /// Of the names that are not of its shape: the pods of source and destination.
    pods: [Option<i64>; 2],
}

/// Keeps a batch, whole or not at all, but for changes of policy that have a record. Returns the places of its entries; `None` where
/// nothing was done.
pub(super) async fn append(
    writer: &mut Writer,
    entries: &[Entry],
    mark: Option<RingMark>,
) -> Result<Option<Links>, StoreError> {
    let fewer = intents::unrecorded(&mut writer.connection, entries).await?;
    let entries = fewer.as_deref().unwrap_or(entries);
    if entries.is_empty() && mark.is_none() {
        return Ok(None);
    }
    // Ids that this transaction makes are void if it fails or is given up half-way: so what is known is taken out, and
    // only a commit puts it back.
    let mut known = std::mem::take(&mut writer.known);
    loop {
        let file = (&mut writer.connection, &mut writer.watched);
        let kept = attempt(file, &mut known, entries, mark).await?;
        // Else something has changed since it was remembered, and is looked up now.
        if let Some((links, cost)) = kept {
            writer.share.add(cost);
            writer.mark = mark.or(writer.mark);
            if known.names.len() <= MAX_CACHED && known.shapes.len() <= MAX_CACHED {
                writer.known = known;
            }
            return Ok(Some(links));
        }
    }
}

/// As [`append`], with what it costs evaluations. `None` where the chain did not end as was remembered: nothing was done,
/// and what is known holds. Each statement that need not be waited for saves as much as a dozen records take.
async fn attempt(
    (connection, watched): (&mut SqliteConnection, &mut Watched),
    known: &mut Known,
    entries: &[Entry],
    mark: Option<RingMark>,
) -> Result<Option<(Links, u64)>, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut remembered = known.place.take();
    let mut before = match remembered {
        Some(place) => place,
        None => place(&mut transaction).await?,
    };
    known.check(before.1);
    let mut unknown = HashSet::new();
    let mut ids = names::ids_of(entries, &known.names, &mut unknown);
    if !unknown.is_empty() {
        // What is learnt is void if nothing comes of this.
        if remembered.take().is_some() {
            before = place(&mut transaction).await?;
            known.check(before.1);
        }
        learn_names(&mut transaction, &mut known.names, &unknown).await?;
        ids = names::ids_of(entries, &known.names, &mut HashSet::new());
    }
    let key = |(entry, ids)| ShapeKey::of(entry, ids);
    let keys: Vec<ShapeKey> = entries.iter().zip(&ids).map(key).collect();
    let (mut shapes, mut new) = shapes::look_up(&mut known.shapes, &keys);
    if !new.is_empty() {
        if remembered.take().is_some() {
            before = place(&mut transaction).await?;
            if known.check(before.1) {
                (shapes, new) = shapes::look_up(&mut known.shapes, &keys);
            }
        }
        shapes::make(&mut transaction, &mut known.shapes, &mut shapes, &new).await?;
    }
    let new: HashSet<ShapeKey> = new.into_iter().map(|(_, key)| key).collect();
    let mut head = before.0;
    let first = head.seq + 1;
    let first_row = first.cast_signed();
    let hashes = head.link_all(entries);
    let costs = share::costs(entries, &keys, (unknown, new), first_row);
    let (segments, spans) = spanned(&mut known.spans, entries, &shapes, first_row);
    let counts = shapes::counts(entries, &shapes);
    let noted = Noted {
        before,
        head: &head,
        count: entries.len() as i64,
        mark,
    };
    if !write_trail(&mut transaction, noted, &segments, &costs, &counts).await? {
        // The shapes that a segment has are not noted.
        known.spans.1.clear();
        return match remembered {
            Some(_) => Ok(None),
            // It was read a moment ago, and nobody else writes: something in the file keeps it from being written.
            None => Err(StoreError::Damaged {
                row: first_row,
                column: "end of the chain",
                found: "what cannot be moved on".to_owned(),
            }),
        };
    }
    SPANS
        .insert(&mut transaction, &spans, |(segment, shape), values| {
            values.push(*segment)?;
            values.push(*shape)
        })
        .await?;
    let rows: Vec<Row<'_>> = (first_row..)
        .zip(shapes)
        .zip(&hashes)
        .zip(entries.iter().zip(&ids))
        .map(|(((number, shape), hash), (entry, ids))| Row {
            number,
            shape,
            hash,
            entry,
            pods: [ids.source_pod(), ids.destination_pod()],
        })
        .collect();
    RECORDS.insert(&mut transaction, &rows, bind_record).await?;
    told::note_last(&mut transaction, entries).await?;
    watched.leaves(before.0);
    transaction.commit().await?;
    watched.arrives(head);
    known.place = Some((head, before.1));
    let links = Links {
        writer: head.writer,
        first,
        hashes,
    };
    let cost = costs.iter().map(|(_, bytes)| bytes.cast_unsigned()).sum();
    Ok(Some((links, cost)))
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

/// Names of numbers that were kept, the most recent first, at most `limit`.
pub(super) async fn remembered(
    connection: &mut SqliteConnection,
    limit: usize,
) -> Result<Vec<Named>, StoreError> {
    let rows: Vec<(String, i64, String)> =
        sqlx::query_as("SELECT kind, number, text FROM number ORDER BY row DESC LIMIT ?")
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(connection)
            .await?;
    let named = |(kind, number, text): (String, i64, String)| {
        Some(Named {
            kind: Kind::from_name(&kind)?,
            number: number.cast_unsigned(),
            text: Arc::from(text),
        })
    };
    Ok(rows.into_iter().filter_map(named).collect())
}

async fn learn_names(
    connection: &mut SqliteConnection,
    names: &mut Names,
    unknown: &HashSet<&Arc<str>>,
) -> Result<(), StoreError> {
    let unknown: Vec<&Arc<str>> = unknown.iter().copied().collect();
    NAMES
        .insert_returning(
            connection,
            &unknown,
            |name, values| values.push(Arc::clone(name)),
            |row| {
                names.insert(Arc::from(row.try_get::<&str, _>(1)?), row.try_get(0)?);
                Ok(())
            },
        )
        .await?;
    Ok(())
}

/// The segments that a batch falls into, and their shapes that are not noted yet.
fn spanned(
    known: &mut (i64, Span),
    entries: &[Entry],
    shapes: &[i64],
    first_row: i64,
) -> (Vec<Times>, Vec<(i64, i64)>) {
    let mut segments: Vec<Times> = Vec::new();
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
            *known = (segment, Span::default());
        }
        if known.1.insert(*shape) {
            spans.push((segment, *shape));
        }
    }
    spans.sort_unstable();
    (segments, spans)
}

fn bind_record(
    Row {
        number,
        shape,
        hash,
        entry,
        pods: [source_pod, destination_pod],
    }: &Row<'_>,
    values: &mut Values,
) -> Result<(), sqlx::Error> {
    values.push(*number)?;
    values.push(entry.id().as_bytes().as_slice())?;
    values.push(entry.timestamp().0)?;
    values.push(*shape)?;
    match entry {
        Entry::Decision(record) => {
            let (source, destination) = (&record.source, &record.destination);
            values.push(record.revision.cast_signed())?;
            values.push(i64::try_from(record.latency.0).unwrap_or(i64::MAX))?;
            values.push(source.address.map(octets))?;
            values.push(source.port)?;
            values.push(destination.address.map(octets))?;
            values.push(source.pid)?;
            values.push(source.comm.clone())?;
            values.push(*source_pod)?;
            values.push(*destination_pod)?;
            values.push(record.caller.clone())?;
            values.push(record.count.cast_signed())?;
            values.push(record.operator_detail().map(|detail| detail.to_string()))?;
        }
        Entry::PolicyChange(change) | Entry::ModeChange(change) | Entry::IdentityChange(change) => {
            values.push(change.revision.cast_signed())?;
            values.push(0_i64)?;
            for _ in 0..7 {
                values.push(None::<i64>)?;
            }
            values.push(Arc::clone(&change.caller))?;
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
