// SPDX-License-Identifier: Apache-2.0
//! Records on their way: columns for one `INSERT … SELECT unnest(…), unnest(…) …`.

use std::collections::HashMap;
use std::net::IpAddr;

use sqlx::Arguments as _;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgConnection};
use uuid::Uuid;

use super::maintain::day_of;
use super::shape::Shape;
use crate::audit::record::{Entry, Kept};

/// Consecutive records of one writer that are shipped together. Shipping the same batch again changes nothing.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Whose chain they are from.
    pub writer: Uuid,
    /// Number of the first of them.
    pub first_seq: u64,
    /// Records before the first that the writer had to drop before they were shipped.
    pub dropped: u64,
    /// The records, in order, without a gap.
    pub records: Vec<Kept>,
}

impl Batch {
    /// Number of the last record; that before the first where there is none.
    pub fn last_seq(&self) -> u64 {
        (self.first_seq + self.records.len() as u64).saturating_sub(1)
    }

    /// The two halves, for finding the record that the server refuses.
    pub fn halves(mut self) -> (Self, Self) {
        let right = self.records.split_off(self.records.len() / 2);
        let middle = self.first_seq + self.records.len() as u64;
        let second = Self {
            writer: self.writer,
            first_seq: middle,
            dropped: 0,
            records: right,
        };
        (self, second)
    }
}

/// A batch as the server takes it. Making it takes a good part of the agent's time for a record, and needs no server: it is
/// made while the server works on the batch before.
#[derive(Debug)]
pub struct Prepared {
    /// The columns of the records.
    pub(super) records: PgArguments,
    /// Each shape of each day, with the place of a record that has it.
    pub(super) shapes: Vec<(i32, Uuid, usize)>,
}

impl Prepared {
    /// Makes it of a batch.
    pub fn of(batch: &Batch) -> Result<Self, sqlx::Error> {
        let mut known: HashMap<(i32, Shape<'_>), Uuid> = HashMap::new();
        let mut shapes = Vec::new();
        let mut columns = Columns::default();
        for (place, (seq, kept)) in (batch.first_seq..).zip(&batch.records).enumerate() {
            let day = day_of(kept.entry.timestamp().0);
            let id = *known
                .entry((day, Shape::of(&kept.entry)))
                .or_insert_with_key(|(day, shape)| {
                    let id = shape.id();
                    shapes.push((*day, id, place));
                    id
                });
            columns.push(seq, kept, id);
        }
        // Sorted, so that two writers never wait for each other in a circle.
        shapes.sort_unstable();
        Ok(Self {
            records: columns.arguments(batch.writer).map_err(sqlx::Error::Encode)?,
            shapes,
        })
    }
}

const SHAPES: &str = "
INSERT INTO zt_audit.shape (day, id, type, source, destination, protocol, port, rule, source_node, destination_node,
    cluster, decision, enforced, mode, observer, hook, reason, proof, part)
SELECT * FROM unnest($1::integer[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::integer[],
    $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::boolean[], $14::text[], $15::text[],
    $16::text[], $17::text[], $18::text[], $19::smallint[])
ON CONFLICT DO NOTHING";

fn each<'s, T>(shapes: &[(i32, Uuid, Shape<'s>)], get: impl Fn(&Shape<'s>) -> T) -> Vec<T> {
    shapes.iter().map(|(_, _, shape)| get(shape)).collect()
}

/// Keeps shapes of a batch, in their order.
pub(super) async fn insert_shapes(
    connection: &mut PgConnection,
    batch: &Batch,
    shapes: &[(i32, Uuid, usize)],
) -> Result<(), sqlx::Error> {
    let said = |(day, id, place): &(i32, Uuid, usize)| {
        let kept = batch.records.get(*place)?;
        Some((*day, *id, Shape::of(&kept.entry)))
    };
    let shapes: Vec<_> = shapes.iter().filter_map(said).collect();
    if shapes.is_empty() {
        return Ok(());
    }
    sqlx::query(SHAPES)
        .bind(shapes.iter().map(|(day, _, _)| *day).collect::<Vec<i32>>())
        .bind(shapes.iter().map(|(_, id, _)| *id).collect::<Vec<Uuid>>())
        .bind(each(&shapes, |shape| shape.kind))
        .bind(each(&shapes, |shape| shape.source))
        .bind(each(&shapes, |shape| shape.destination))
        .bind(each(&shapes, |shape| shape.protocol.map(i16::from)))
        .bind(each(&shapes, |shape| shape.port.map(i32::from)))
        .bind(each(&shapes, |shape| shape.rule))
        .bind(each(&shapes, |shape| shape.source_node))
        .bind(each(&shapes, |shape| shape.destination_node))
        .bind(each(&shapes, |shape| shape.cluster))
        .bind(each(&shapes, |shape| shape.decision))
        .bind(each(&shapes, |shape| shape.enforced))
        .bind(each(&shapes, |shape| shape.mode))
        .bind(each(&shapes, |shape| shape.observer))
        .bind(each(&shapes, |shape| shape.hook))
        .bind(each(&shapes, |shape| shape.reason))
        .bind(each(&shapes, |shape| shape.proof))
        .bind(each(&shapes, |shape| shape.part))
        .execute(connection)
        .await?;
    Ok(())
}

// Side by side in the list of columns the arrays are read a row at a time. In FROM each would be written out as a table
// first, which takes a fifth of the server's time for a record.
macro_rules! records {
    ($tail:literal) => {
        concat!(
            "INSERT INTO zt_audit.record (time, id, shape, seq, hash, revision, latency, count, source_port, pid,
                source_address, destination_address, comm, source_pod, destination_pod, caller, detail, writer)
             SELECT unnest($1::bigint[]), unnest($2::uuid[]), unnest($3::uuid[]), unnest($4::bigint[]),
                unnest($5::bytea[]), unnest($6::bigint[]), unnest($7::bigint[]), unnest($8::bigint[]),
                unnest($9::integer[]), unnest($10::bigint[]), unnest($11::inet[]), unnest($12::inet[]),
                unnest($13::text[]), unnest($14::text[]), unnest($15::text[]), unnest($16::text[]),
                unnest($17::text[]), $18::uuid",
            $tail
        )
    };
}

/// Records of a batch that was not there before. One that is there all the same fails the statement: looking for it first
/// would take the server a third more of its time for each.
const RECORDS: &str = records!("");
/// Those that are not there yet.
const MISSING_RECORDS: &str = records!(" ON CONFLICT DO NOTHING");

#[derive(Default)]
struct Columns<'a> {
    time: Vec<i64>,
    id: Vec<Uuid>,
    shape: Vec<Uuid>,
    seq: Vec<i64>,
    hash: Vec<Option<&'a [u8]>>,
    revision: Vec<i64>,
    latency: Vec<i64>,
    count: Vec<i64>,
    source_port: Vec<Option<i32>>,
    pid: Vec<Option<i64>>,
    source_address: Vec<Option<IpAddr>>,
    destination_address: Vec<Option<IpAddr>>,
    comm: Vec<Option<&'a str>>,
    source_pod: Vec<Option<&'a str>>,
    destination_pod: Vec<Option<&'a str>>,
    caller: Vec<Option<&'a str>>,
    detail: Vec<Option<String>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, seq: u64, kept: &'a Kept, shape: Uuid) {
        self.time.push(kept.entry.timestamp().0);
        self.id.push(kept.entry.id());
        self.shape.push(shape);
        self.seq.push(seq.cast_signed());
        self.hash
            .push(kept.link.as_ref().map(|link| link.hash.0.as_slice()));
        let decision = kept.entry.decision();
        let source = decision.map(|record| &record.source);
        self.source_port
            .push(source.and_then(|source| source.port).map(i32::from));
        self.pid.push(source.and_then(|source| source.pid).map(i64::from));
        self.source_address.push(source.and_then(|source| source.address));
        self.comm.push(source.and_then(|source| source.comm.as_deref()));
        self.source_pod
            .push(source.and_then(|source| source.pod.as_deref()));
        let destination = decision.map(|record| &record.destination);
        self.destination_address
            .push(destination.and_then(|destination| destination.address));
        self.destination_pod
            .push(destination.and_then(|destination| destination.pod.as_deref()));
        match &kept.entry {
            Entry::Decision(record) => {
                self.revision.push(record.revision.cast_signed());
                self.latency
                    .push(i64::try_from(record.latency.0).unwrap_or(i64::MAX));
                self.count.push(record.count.cast_signed());
                self.caller.push(record.caller.as_deref());
                let detail = record.operator_detail();
                self.detail.push(detail.map(|detail| detail.to_string()));
            }
            Entry::PolicyChange(change) | Entry::ModeChange(change) | Entry::IdentityChange(change) => {
                self.revision.push(change.revision.cast_signed());
                self.latency.push(0);
                self.count.push(1);
                self.caller.push(Some(&change.caller));
                self.detail.push(Some(change.change.to_string()));
            }
        }
    }

    /// The parameters of the statement.
    fn arguments(self, writer: Uuid) -> Result<PgArguments, BoxDynError> {
        let mut arguments = PgArguments::default();
        arguments.add(self.time)?;
        arguments.add(self.id)?;
        arguments.add(self.shape)?;
        arguments.add(self.seq)?;
        arguments.add(self.hash)?;
        arguments.add(self.revision)?;
        arguments.add(self.latency)?;
        arguments.add(self.count)?;
        arguments.add(self.source_port)?;
        arguments.add(self.pid)?;
        arguments.add(self.source_address)?;
        arguments.add(self.destination_address)?;
        arguments.add(self.comm)?;
        arguments.add(self.source_pod)?;
        arguments.add(self.destination_pod)?;
        arguments.add(self.caller)?;
        arguments.add(self.detail)?;
        arguments.add(writer)?;
        Ok(arguments)
    }
}

/// Keeps the records of a batch: all of one that is new, or those that are missing.
pub(super) async fn insert_records(
    connection: &mut PgConnection,
    records: PgArguments,
    are_new: bool,
) -> Result<(), sqlx::Error> {
    let sql = if are_new { RECORDS } else { MISSING_RECORDS };
    sqlx::query_with(sql, records).execute(connection).await?;
    Ok(())
}

const BATCH: &str = "
INSERT INTO zt_audit.batch (writer, first_seq, last_seq, dropped, min_time, max_time)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT DO NOTHING";

/// Notes the batch. False where this login has noted it before.
pub(super) async fn insert_batch(connection: &mut PgConnection, batch: &Batch) -> Result<bool, sqlx::Error> {
    let times = || batch.records.iter().map(|kept| kept.entry.timestamp().0);
    let done = sqlx::query(BATCH)
        .bind(batch.writer)
        .bind(batch.first_seq.cast_signed())
        .bind(batch.last_seq().cast_signed())
        .bind(batch.dropped.cast_signed())
        .bind(times().min().unwrap_or(0))
        .bind(times().max().unwrap_or(0))
        .execute(connection)
        .await?;
    Ok(done.rows_affected() == 1)
}
