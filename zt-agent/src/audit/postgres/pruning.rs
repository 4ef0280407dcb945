// SPDX-License-Identifier: Apache-2.0
//! What the maintainer states of records that it removes for their age: without it they would be missing.

use std::collections::BTreeMap;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::{PgError, statements};
use crate::audit::chain::Hash;
use crate::audit::seal::{Cause, Gap, Keys};

/// Consecutive entries of a writer that go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    writer: Uuid,
    first: u64,
    last: u64,
    /// The hash of the last.
    after: Hash,
}

/// The ends of all spans in some rows: a span begins where the number before is not there, and ends where the next is not.
macro_rules! ends {
    ($rows:literal) => {
        concat!(
            "SELECT writer, seq, hash, previous IS DISTINCT FROM seq - 1 AS begins, next IS DISTINCT FROM seq + 1 AS ends
             FROM (
                 SELECT writer, seq, hash, lag(seq) OVER w AS previous, lead(seq) OVER w AS next FROM ",
            $rows,
            " WHERE octet_length(hash) = 32 AND seq BETWEEN 1 AND 9223372036854775806
                 WINDOW w AS (PARTITION BY writer ORDER BY seq)
             ) n WHERE previous IS DISTINCT FROM seq - 1 OR next IS DISTINCT FROM seq + 1"
        )
    };
}

/// The spans of a partition.
pub(super) async fn spans(connection: &mut PgConnection, partition: &str) -> Result<Vec<Span>, PgError> {
    // The name is made of digits.
    let sql = format!(
        concat!(ends!("zt_audit.{partition}"), " ORDER BY writer, seq"),
        partition = partition
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await?;
    Ok(joined(&rows)?)
}

/// Deletes what is older than a time and in no partition, and says how much that was, and its spans.
pub(super) async fn delete_strays(
    connection: &mut PgConnection,
    before: i64,
) -> Result<(u64, Vec<Span>), PgError> {
    let sql = concat!(
        "WITH gone AS (DELETE FROM zt_audit.record_other WHERE time < $1 RETURNING writer, seq, hash)
         SELECT c.gone, e.* FROM (SELECT count(*) AS gone FROM gone) c LEFT JOIN (",
        ends!("gone"),
        ") e ON true ORDER BY writer, seq"
    );
    let rows = sqlx::query(sql).bind(before).fetch_all(connection).await?;
    let gone: i64 = match rows.first() {
        Some(row) => row.try_get("gone")?,
        None => 0,
    };
    Ok((gone.cast_unsigned(), joined(&rows)?))
}

/// The spans between their ends.
fn joined(rows: &[PgRow]) -> Result<Vec<Span>, sqlx::Error> {
    let (mut spans, mut first) = (Vec::new(), 0);
    for row in rows {
        // Where nothing went there is a row of nothing.
        let Some(seq) = row.try_get::<Option<i64>, _>("seq")?.map(i64::cast_unsigned) else {
            continue;
        };
        if row.try_get("begins")? {
            first = seq;
        }
        if row.try_get("ends")? {
            let hash: &[u8] = row.try_get("hash")?;
            let after = <[u8; 32]>::try_from(hash).map(Hash);
            spans.push(Span {
                writer: row.try_get("writer")?,
                first,
                last: seq,
                after: after.map_err(|error| sqlx::Error::Decode(error.into()))?,
            });
        }
    }
    Ok(spans)
}

/// States that spans were pruned, in the transaction in which they go. What was stated before and lies beside them is
/// stated anew, together with them: a writer has a few statements, however long it writes.
pub(super) async fn state(connection: &mut PgConnection, keys: &Keys, gone: &[Span]) -> Result<(), PgError> {
    if gone.is_empty() {
        return Ok(());
    }
    statements::insert_keys(connection, keys.records()).await?;
    let mut writers: BTreeMap<Uuid, Vec<Span>> = BTreeMap::new();
    for span in gone {
        writers.entry(span.writer).or_default().push(*span);
    }
    for (writer, mut spans) in writers {
        let mut before = statements::gaps_of(connection, writer).await?;
        // What others say is theirs.
        before.retain(|gap| {
            let ours = |gap: &Gap| {
                let bytes = gap.signed();
                keys.records()
                    .iter()
                    .any(|key| key.has_signed(&bytes, &gap.signatures))
            };
            gap.cause == Cause::Pruned && ours(gap)
        });
        spans.extend(before.iter().map(span_of));
        let spans = merged(spans);
        let new: Vec<Gap> = spans
            .iter()
            .filter(|span| !before.iter().any(|gap| span_of(gap) == **span))
            .map(|span| {
                let (place, hashes) = ((span.first, span.last), (None, span.after));
                Gap::sign(writer, place, hashes, Cause::Pruned, keys)
            })
            .collect();
        before.retain(|gap| !spans.contains(&span_of(gap)));
        statements::insert_gaps(connection, &new).await?;
        statements::delete_gaps(connection, &before).await?;
        if let Some(beginning) = spans.first().filter(|span| span.first == 1) {
            statements::delete_checkpoints(connection, writer, beginning.last).await?;
        }
    }
    Ok(())
}

fn span_of(gap: &Gap) -> Span {
    Span {
        writer: gap.writer,
        first: gap.first,
        last: gap.last,
        after: gap.after,
    }
}

/// The same entries in as few spans as there can be.
fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|span| (span.first, span.last));
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut().filter(|last| span.first <= last.last + 1) {
            Some(last) if span.last > last.last => (last.last, last.after) = (span.last, span.after),
            Some(_) => {}
            None => merged.push(span),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_that_touch_are_one() {
        let span = |first, last| Span {
            writer: Uuid::nil(),
            first,
            last,
            after: Hash([last as u8; 32]),
        };
        let spans = vec![
            span(11, 20),
            span(30, 40),
            span(1, 10),
            span(35, 38),
            span(40, 41),
            span(43, 43),
        ];
        assert_eq!(merged(spans), [span(1, 20), span(30, 41), span(43, 43)]);
        assert_eq!(merged(Vec::new()), []);
    }
}
