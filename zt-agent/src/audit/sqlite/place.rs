// SPDX-License-Identifier: Apache-2.0
//! Where the chain ends, and what is noted with it.

use std::sync::Arc;

use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::bulk::Values;
use super::{StoreError, shapes, share};
use crate::audit::chain::{Hash, Head};
use crate::audit::record::Entry;
use crate::audit::store::RingMark;

/// Where the chain ends now, and where the ring buffer is accounted for; where it ended as was thought.
const TRAIL: &str = "
UPDATE trail SET next_row = ?, hash = ?, stored = stored + ?, ring = coalesce(?, ring),
                 ring_position = coalesce(?, ring_position)
WHERE next_row = ? AND hash = ? AND shapes_gone = ? RETURNING 1";

/// The times of a segment.
const SEGMENT: &str = ";
INSERT INTO segment (segment, min_time, max_time) VALUES (?, ?, ?)
ON CONFLICT (segment) DO UPDATE SET min_time = min(min_time, excluded.min_time),
                                    max_time = max(max_time, excluded.max_time)";

/// A segment with the times of its first and last entry.
pub(super) type Times = (i64, i64, i64);

/// Where the chain ends: the last row is the last number.
pub(super) async fn head(connection: &mut SqliteConnection) -> Result<Head, StoreError> {
    Ok(place(connection).await?.0)
}

/// Where the chain ends, and how often shapes have been deleted.
pub(super) type Place = (Head, i64);

/// The same, as the file says.
pub(super) async fn place(connection: &mut SqliteConnection) -> Result<Place, StoreError> {
    let (next_row, writer, hash, shapes_gone): (i64, Vec<u8>, Vec<u8>, i64) =
        sqlx::query_as("SELECT next_row, writer, hash, shapes_gone FROM trail")
            .fetch_one(connection)
            .await?;
    let damaged = |column, found: &[u8]| StoreError::Damaged {
        row: 0,
        column,
        found: format!("{found:02x?}"),
    };
    let head = Head {
        writer: Uuid::from_slice(&writer).map_err(|_| damaged("trail.writer", &writer))?,
        seq: (next_row - 1).cast_unsigned(),
        hash: Hash(<[u8; 32]>::try_from(&*hash).map_err(|_| damaged("trail.hash", &hash))?),
    };
    Ok((head, shapes_gone))
}

/// Up to which entry the oldest were removed, as the file says, and the hash of that.
pub(super) async fn pruned(connection: &mut SqliteConnection) -> Result<(u64, Hash), StoreError> {
    let (row, hash): (i64, Vec<u8>) = sqlx::query_as("SELECT pruned_row, pruned_hash FROM trail")
        .fetch_one(connection)
        .await?;
    let hash = <[u8; 32]>::try_from(&*hash).map_err(|_| StoreError::Damaged {
        row: 0,
        column: "trail.pruned_hash",
        found: format!("{hash:02x?}"),
    })?;
    Ok((row.cast_unsigned(), Hash(hash)))
}

/// Up to where the ring buffer is accounted for, as the last batch said that had an opinion.
pub(super) async fn ring_mark(connection: &mut SqliteConnection) -> Result<Option<RingMark>, StoreError> {
    let (ring, position): (Option<Vec<u8>>, Option<i64>) =
        sqlx::query_as("SELECT ring, ring_position FROM trail")
            .fetch_one(connection)
            .await?;
    let ring = ring.and_then(|ring| Uuid::from_slice(&ring).ok());
    Ok(ring.zip(position).map(|(ring, position)| RingMark {
        ring,
        position: position.cast_unsigned(),
    }))
}

/// Notes up to where the ring buffer is accounted for.
pub(super) async fn set_ring_mark(
    connection: &mut SqliteConnection,
    mark: RingMark,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE trail SET ring = ?, ring_position = ?")
        .bind(mark.ring.as_bytes().as_slice())
        .bind(mark.position.cast_signed())
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes up to which entry the oldest were removed.
pub(super) async fn set_pruned(
    connection: &mut SqliteConnection,
    (seq, hash): (u64, Hash),
) -> Result<(), StoreError> {
    sqlx::query("UPDATE trail SET pruned_row = ?, pruned_hash = ?")
        .bind(seq.cast_signed())
        .bind(hash.0.as_slice())
        .execute(connection)
        .await?;
    Ok(())
}

/// What is noted of the chain: where it ended and ends, how many were kept, and up to where the ring buffer is accounted for.
pub(super) struct Noted<'a> {
    pub(super) before: Place,
    pub(super) head: &'a Head,
    pub(super) count: i64,
    pub(super) mark: Option<RingMark>,
}

/// Notes where the chain ends, the times of segments, what evaluations take in each, and the counts by the hour: several
/// statements, handed over as one. False where the chain did not end as is said; then nothing of this is to be committed.
pub(super) async fn write_trail(
    connection: &mut SqliteConnection,
    Noted {
        before,
        head,
        count,
        mark,
    }: Noted<'_>,
    segments: &[Times],
    costs: &[(i64, i64)],
    counts: &[shapes::Counted],
) -> Result<bool, StoreError> {
    let mut text = TRAIL.to_owned();
    text.extend(segments.iter().map(|_| SEGMENT));
    text.extend(costs.iter().map(|_| share::SHARE));
    let mut values = Values::default();
    values.push(head.seq.cast_signed() + 1)?;
    values.push(head.hash.0.as_slice())?;
    values.push(count)?;
    values.push(mark.map(|mark| mark.ring.as_bytes().to_vec()))?;
    values.push(mark.map(|mark| mark.position.cast_signed()))?;
    values.push(before.0.seq.cast_signed() + 1)?;
    values.push(before.0.hash.0.as_slice())?;
    values.push(before.1)?;
    for (segment, min, max) in segments {
        values.push(*segment)?;
        values.push(*min)?;
        values.push(*max)?;
    }
    for (segment, bytes) in costs {
        values.push(*segment)?;
        values.push(*bytes)?;
    }
    let counted = shapes::append_counts(counts, &mut text, &mut values)?;
    // One row, of the first statement.
    let noted = !values.run(Arc::from(text), connection).await?.is_empty();
    if noted && !counted {
        shapes::insert_counts(connection, counts).await?;
    }
    Ok(noted)
}

/// Gives entries their places in the chain without keeping them. Returns where the chain ends then.
pub(super) async fn skip(
    connection: &mut SqliteConnection,
    before: Place,
    entries: &[Entry],
    mark: Option<RingMark>,
) -> Result<Head, StoreError> {
    let mut head = before.0;
    head.link_all(entries);
    let noted = Noted {
        before,
        head: &head,
        count: 0,
        mark,
    };
    // The place was looked up in this transaction.
    write_trail(connection, noted, &[], &[], &[]).await?;
    Ok(head)
}
