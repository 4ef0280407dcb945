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

use super::append::names_of;
use super::bulk::Bulk;
use super::schema::SEGMENT_ROWS;
use super::shapes::{Names, ShapeKey, Shapes};
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

const SHARES: Bulk = Bulk {
    head: "INSERT INTO evaluations (segment, bytes) VALUES",
    columns: 2,
    tail: "ON CONFLICT (segment) DO UPDATE SET bytes = bytes + excluded.bytes",
};

/// Bytes of a record beside its texts; of a shape with its index, its hour and its segment; of a name beside its text.
/// A name's text is there twice, in its table and in the index.
const RECORD: usize = 160;
const SHAPE: usize = 400;
const NAME: usize = 24;

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

/// The evaluations of a batch, with the bytes that each takes.
#[derive(Debug, Default)]
pub(super) struct Costs(Vec<(usize, usize)>);

impl Costs {
    /// What their texts take, given the names that are in the file.
    pub(super) fn of_texts(entries: &[Entry], known: &Names) -> Self {
        let mut new: HashSet<&Arc<str>> = HashSet::new();
        let mut costs = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            let Some(record) = entry.decision().filter(|record| record.hook == Hook::Api) else {
                continue;
            };
            let of_names: usize = names_of(entry)
                .filter(|name| !known.contains_key(*name) && new.insert(name))
                .map(|name| NAME + 2 * name.len())
                .sum();
            let of_record = [&record.caller, &record.incident].into_iter().flatten();
            let of_record: usize = of_record.map(|text| text.len()).sum();
            costs.push((at, RECORD + of_record + of_names));
        }
        Self(costs)
    }

    /// And their shapes, given those that are in the file.
    pub(super) fn add_shapes(&mut self, entries: &[Entry], known: &Shapes, names: &Names) {
        let mut new = HashSet::new();
        for (at, bytes) in &mut self.0 {
            let Some(entry) = entries.get(*at) else { continue };
            let key = ShapeKey::of(entry, names);
            if !known.contains_key(&key) && new.insert(key) {
                *bytes += SHAPE;
            }
        }
    }

    /// Notes them, given the row of the batch's first entry. Returns how many bytes there are.
    pub(super) async fn note(
        &self,
        connection: &mut SqliteConnection,
        first_row: i64,
    ) -> Result<u64, StoreError> {
        let mut segments: Vec<(i64, i64)> = Vec::new();
        for (at, bytes) in &self.0 {
            let (segment, bytes) = ((first_row + *at as i64) / SEGMENT_ROWS, *bytes as i64);
            match segments.last_mut() {
                Some((last, sum)) if *last == segment => *sum += bytes,
                _ => segments.push((segment, bytes)),
            }
        }
        SHARES
            .insert(connection, &segments, |(segment, bytes), values| {
                values.push(*segment)?;
                values.push(*bytes)
            })
            .await?;
        Ok(segments.iter().map(|(_, bytes)| bytes.cast_unsigned()).sum())
    }
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
