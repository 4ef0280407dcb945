// SPDX-License-Identifier: Apache-2.0
//! How much of the file evaluations over the API take, and what they may take at most.
//!
//! Room in the file is made by removing the oldest records, whatever they are; so who may ask questions could push the
//! kernel's decisions out of it. Evaluations therefore have a share. When they take it up, the oldest segments go as long
//! as all else in them is older than a day; where it is not, evaluations are not taken, and so not answered.
//!
//! What an evaluation takes is estimated from above, and kept by segment: it goes with its segment.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::sqlite::SqliteConnection;

use super::names::names_of;
use super::schema::SEGMENT_ROWS;
use super::shapes::ShapeKey;
use super::{StoreError, Writer};
use crate::audit::clock;
use crate::audit::record::{Entry, Hook};

/// One row for each segment with evaluations.
const TABLE: &str = "
CREATE TABLE IF NOT EXISTS evaluations (
    segment INTEGER PRIMARY KEY,
    bytes INTEGER NOT NULL
) STRICT;
";

/// Adds to what a segment's evaluations take.
pub(super) const SHARE: &str = ";
INSERT INTO evaluations (segment, bytes) VALUES (?, ?)
ON CONFLICT (segment) DO UPDATE SET bytes = bytes + excluded.bytes";

/// Bytes of a record beside its texts; of a shape with its index, its hour and its segment; of a name beside its text.
/// A name's text is there twice, in its table and in the index, and so is which record was the last to have it.
const RECORD: usize = 160;
const SHAPE: usize = 400;
const NAME: usize = 48;

/// Anything but evaluations that is older than this gives way to newer evaluations.
const KEPT: i64 = 86_400_000_000_000;

/// What evaluations take and may take.
#[derive(Debug)]
pub(super) struct Share {
    used: AtomicU64,
    limit: AtomicU64,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            used: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
        }
    }
}

impl Share {
    pub(super) fn limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_full(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts anew what there is.
    pub(super) async fn count(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let used: i64 = sqlx::query_scalar("SELECT coalesce(sum(bytes), 0) FROM evaluations")
            .fetch_one(connection)
            .await?;
        self.used.store(used.cast_unsigned(), Ordering::Relaxed);
        Ok(())
    }
}

/// Makes the table where it is missing.
pub(super) async fn prepare(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::raw_sql(TABLE).execute(connection).await?;
    Ok(())
}

/// What the evaluations of a batch take, by segment, given what of it is new in the file: names and shapes.
pub(super) fn costs(
    entries: &[Entry],
    keys: &[ShapeKey],
    (mut names, mut shapes): (HashSet<&Arc<str>>, HashSet<ShapeKey>),
    first_row: i64,
) -> Vec<(i64, i64)> {
    let mut segments: Vec<(i64, i64)> = Vec::new();
    for ((row, entry), key) in (first_row..).zip(entries).zip(keys) {
        let Some(record) = entry.decision().filter(|record| record.hook == Hook::Api) else {
            continue;
        };
        let of_record = [&record.caller, &record.incident].into_iter().flatten();
        let mut bytes = RECORD + of_record.map(|text| text.len()).sum::<usize>();
        if !names.is_empty() {
            let of_names = names_of(entry).into_iter().flatten();
            bytes += of_names
                .filter(|name| names.remove(name))
                .map(|name| NAME + 2 * name.len())
                .sum::<usize>();
        }
        if shapes.remove(key) {
            bytes += SHAPE;
        }
        match segments.last_mut() {
            Some((last, sum)) if *last == row / SEGMENT_ROWS => *sum += bytes as i64,
            _ => segments.push((row / SEGMENT_ROWS, bytes as i64)),
        }
    }
    segments
}

/// Whether all that is no evaluation and stands before `end` is old enough to go.
pub(super) async fn may_go(writer: &mut Writer, end: i64) -> Result<bool, StoreError> {
    let (kept,): (bool,) = sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM record r JOIN shape s ON s.id = r.shape
                        WHERE r.row < ? AND r.time > ? AND s.hook <> ?)",
    )
    .bind(end)
    .bind(clock::now().saturating_sub(KEPT))
    .bind(Hook::Api.name())
    .fetch_one(&mut writer.connection)
    .await?;
    Ok(!kept)
}
