// SPDX-License-Identifier: Apache-2.0
//! Whether the chain of a spool goes on from what was signed. What was shipped or given up is not there, and the file alone
//! must not say so: before the entry of the last checkpoint goes, that is noted beside the keys.

use std::path::Path;

use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::continuity::{AT_A_TIME, REWRITTEN};
use super::{StoreError, place, rows};
use crate::audit::chain::{Hash, Head, START};
use crate::audit::seal::{Checkpoint, Gone, Keys};

/// What shows that the chain does not go on from the entry that was signed last.
pub(super) async fn wrong(
    connection: &mut SqliteConnection,
    keys: &Keys,
    (seq, hash): (u64, Hash),
    head: Head,
) -> Result<Option<&'static str>, StoreError> {
    let gone = keys.gone(head.writer)?;
    let found = match seq {
        // There is no entry that could be missing: those behind it are there if none has gone.
        0 => gone.filter(|gone| gone.gone == 0).map(|_| START),
        _ => hash_at(connection, seq).await?,
    };
    let Some(found) = found else {
        return Ok(match gone {
            Some(gone) if gone.noted >= seq => (gone.gone < seq.max(1))
                .then_some("entries are missing that were neither shipped nor given up"),
            _ => {
                tracing::warn!(
                    entry = seq,
                    "a version that does not note what it removes has looked after this spool: that what was signed last is \
                     not there is believed this once"
                );
                None
            }
        });
    };
    let at = Head { seq, hash, ..head };
    let goes_on = found == hash && leads_to(connection, at, head).await?;
    Ok((!goes_on).then_some(REWRITTEN))
}

/// Whether what is behind a place leads to where the chain is said to end, over what was given up in between. All of that
/// lies behind what was signed.
async fn leads_to(connection: &mut SqliteConnection, mut at: Head, head: Head) -> Result<bool, StoreError> {
    while at.seq < head.seq {
        let last = head.seq.min(at.seq + AT_A_TIME);
        let found = rows::between(connection, at.seq.cast_signed() + 1, last.cast_signed()).await?;
        let mut found = found.into_iter().peekable();
        while at.seq < last {
            let next = at.seq + 1;
            match found.next_if(|(row, _)| row.cast_unsigned() == next) {
                Some((_, Ok(kept))) => {
                    at.link(&kept.entry);
                }
                // Damaged, or of a later version: it is given up when its turn comes.
                Some((_, Err(_))) => {
                    let Some(hash) = hash_at(connection, next).await? else {
                        return Ok(false);
                    };
                    (at.seq, at.hash) = (next, hash);
                }
                None => {
                    let Some(over) = over_gap(connection, at).await? else {
                        return Ok(false);
                    };
                    at = over;
                    while found
                        .next_if(|(row, _)| row.cast_unsigned() <= over.seq)
                        .is_some()
                    {}
                }
            }
        }
    }
    Ok(at == head)
}

/// Where the chain goes on behind the gap that the next entry is in.
async fn over_gap(connection: &mut SqliteConnection, at: Head) -> Result<Option<Head>, StoreError> {
    let next = (at.seq + 1).cast_signed();
    let gap =
        sqlx::query("SELECT first, last, before, after FROM gap WHERE first <= ?1 AND last >= ?1 LIMIT 1")
            .bind(next)
            .fetch_optional(connection)
            .await?;
    let Some(gap) = gap else { return Ok(None) };
    let (first, last): (i64, i64) = (gap.try_get("first")?, gap.try_get("last")?);
    let (before, after): (Option<&[u8]>, &[u8]) = (gap.try_get("before")?, gap.try_get("after")?);
    let fits = first != next || before.is_none_or(|before| before == at.hash.0);
    let after = <[u8; 32]>::try_from(after).ok().filter(|_| fits);
    Ok(after.map(|after| Head {
        seq: last.cast_unsigned(),
        hash: Hash(after),
        ..at
    }))
}

/// The hash that an entry says it has.
async fn hash_at(connection: &mut SqliteConnection, seq: u64) -> Result<Option<Hash>, StoreError> {
    let hash: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT hash FROM record WHERE row = ? AND hash IS NOT NULL")
            .bind(seq.cast_signed())
            .fetch_optional(connection)
            .await?;
    Ok(hash.and_then(|hash| Some(Hash(<[u8; 32]>::try_from(&*hash).ok()?))))
}

/// Notes what is there of what was signed, before the checkpoint itself is noted: its entry may be one that was given up.
pub(super) async fn note(
    connection: &mut SqliteConnection,
    keys: &Path,
    checkpoint: &Checkpoint,
) -> Result<(), StoreError> {
    let (writer, seq) = (checkpoint.writer, checkpoint.seq);
    let before = Keys::gone_in(keys, writer)?;
    let mut gone = before.map_or(0, |before| before.gone);
    // A version that does not note it may have let the entry of the checkpoint before go.
    if let Some(last) = Keys::last_in(keys, writer)?
        && last.seq > 0
        && before.is_none_or(|before| before.noted < last.seq)
        && hash_at(connection, last.seq).await?.is_none()
    {
        gone = gone.max(last.seq);
    }
    if seq > 0 && hash_at(connection, seq).await?.is_none() {
        gone = seq;
    }
    Ok(Keys::note_gone(keys, writer, Gone { noted: seq, gone })?)
}

/// Entries up to `last` are about to go: notes so where what was signed last is among them.
pub(super) async fn let_go(
    connection: &mut SqliteConnection,
    keys: Option<&Path>,
    last: u64,
) -> Result<(), StoreError> {
    let Some(keys) = keys else { return Ok(()) };
    let writer = place::head(connection).await?.writer;
    let Some(signed) = Keys::last_in(keys, writer)? else {
        return Ok(());
    };
    let noted = Keys::gone_in(keys, writer)?;
    if last < signed.seq || noted.is_some_and(|noted| noted.gone >= signed.seq.max(1)) {
        return Ok(());
    }
    let gone = Gone {
        noted: signed.seq,
        gone: last,
    };
    Ok(Keys::note_gone(keys, writer, gone)?)
}
