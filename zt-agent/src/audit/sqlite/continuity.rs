// SPDX-License-Identifier: Apache-2.0
//! Whether the chain goes on from what was signed last, before more of it is signed. Who can write the file but not the
//! keys must not have the agent sign what they made of it: a copy of yesterday, a history with other entries, or one whose
//! beginning was taken out as if it had been pruned.

use sqlx::sqlite::SqliteConnection;

use super::{StoreError, Use, Watched, place, rows, seal, spooled};
use crate::audit::chain::{Hash, Head};
use crate::audit::seal::{Checkpoint, Keys};

/// Entries that are hashed anew at a time.
pub(super) const AT_A_TIME: u64 = 2048;
/// What is said of a chain whose entries are others than those that were signed.
pub(super) const REWRITTEN: &str = "it was rewritten";

/// Looks whether the chain goes on from the last checkpoint that is noted beside the keys; in the transaction that is to sign
/// it. What is wrong is returned
/// once, to be told after a commit: that checkpoint is kept beside the keys for good, and what comes later is worth a
/// signature again.
pub(super) async fn check(
    connection: &mut SqliteConnection,
    watched: &mut Watched,
    keys: &Keys,
) -> Result<Option<StoreError>, StoreError> {
    let head = place::head(connection).await?;
    let Some(noted) = keys.last_of(head.writer)? else {
        // Nothing was signed yet.
        return Ok(None);
    };
    let Some(how) = broken(connection, watched, keys, (&noted, head)).await? else {
        watched.trusted = Some(head);
        return Ok(None);
    };
    // Until what shows it is kept, nothing is signed.
    let kept = keys.keep(&noted)?;
    watched.trusted = Some(head);
    // It was told before.
    let Some(kept) = kept else {
        return Ok(None);
    };
    Ok(Some(StoreError::Broken {
        path: watched.path.clone(),
        seq: noted.seq,
        time: noted.time,
        how,
        kept,
    }))
}

/// What shows that the chain does not go on from `noted` to `head`.
async fn broken(
    connection: &mut SqliteConnection,
    watched: &Watched,
    keys: &Keys,
    (noted, head): (&Checkpoint, Head),
) -> Result<Option<&'static str>, StoreError> {
    let pruned = place::pruned(connection).await?;
    let signed = (noted.pruned, noted.pruned_hash);
    if pruned != signed && !is_signed(connection, keys, &head, pruned).await? {
        place::set_pruned(connection, signed).await?;
        return Ok(Some("it says that more was pruned than was ever signed"));
    }
    // What was removed after that was signed for its age is not there to be looked at.
    let (seq, hash) = if pruned.0 > noted.seq {
        pruned
    } else {
        (noted.seq, noted.hash)
    };
    if head.seq < seq {
        return Ok(Some("its end was cut off, or it is an older copy"));
    }
    if watched.trusted == Some(head) {
        return Ok(None);
    }
    if head.seq == seq {
        return Ok((head.hash != hash).then_some(REWRITTEN));
    }
    let how = match watched.used_as {
        Use::Trail => (!leads_to(connection, (seq, hash), head).await?).then_some(REWRITTEN),
        Use::Spool => spooled::wrong(connection, keys, (seq, hash), head).await?,
    };
    Ok(how)
}

/// Whether the last checkpoint of the file says that entries up to there were pruned, signed by one of these keys.
async fn is_signed(
    connection: &mut SqliteConnection,
    keys: &Keys,
    head: &Head,
    pruned: (u64, Hash),
) -> Result<bool, StoreError> {
    // One that cannot be read proves nothing.
    let last = seal::last(connection).await.unwrap_or_default();
    Ok(last.is_some_and(|last| {
        last.writer == head.writer && (last.pruned, last.pruned_hash) == pruned && keys.have_signed(&last)
    }))
}

/// Whether the entries behind a place, as they are, lead to where the chain is said to end.
async fn leads_to(
    connection: &mut SqliteConnection,
    (seq, hash): (u64, Hash),
    head: Head,
) -> Result<bool, StoreError> {
    let mut at = Head {
        writer: head.writer,
        seq,
        hash,
    };
    while at.seq < head.seq {
        let last = head.seq.min(at.seq + AT_A_TIME);
        let found = rows::between(connection, at.seq.cast_signed() + 1, last.cast_signed()).await?;
        for (row, kept) in found {
            let Some(kept) = kept.ok().filter(|_| row.cast_unsigned() == at.seq + 1) else {
                return Ok(false);
            };
            at.link(&kept.entry);
        }
        if at.seq != last {
            return Ok(false);
        }
    }
    Ok(at.hash == head.hash)
}
