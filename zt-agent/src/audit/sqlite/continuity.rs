// SPDX-License-Identifier: Apache-2.0
//! Whether the chain goes on from what was signed last, before more of it is signed. Who can write the file but not the
//! keys must not have the agent sign what they made of it: a copy of yesterday, a history with other entries, or one whose
//! beginning was taken out as if it had been pruned.

use sqlx::sqlite::SqliteConnection;

use super::{StoreError, Use, Watched, place, rows, seal, spooled};
use crate::audit::chain::{Hash, Head};
use crate::audit::clock;
use crate::audit::record::Timestamp;
use crate::audit::seal::{Checkpoint, Keys};

/// Entries that are hashed anew at a time.
pub(super) const AT_A_TIME: u64 = 2048;
/// What is said of a chain whose entries are others than those that were signed.
pub(super) const REWRITTEN: &str = "it was rewritten";

/// Looks whether the chain goes on from the last checkpoint that is noted beside the keys, and whether it was moved from here
/// alone since the start; in the transaction that is to sign it. What is wrong is returned once, to be told after a commit:
/// what was signed is kept beside the keys for good, and what comes later is worth a signature again.
pub(super) async fn check(
    connection: &mut SqliteConnection,
    watched: &mut Watched,
    keys: &Keys,
) -> Result<Option<StoreError>, StoreError> {
    let head = place::head(connection).await?;
    watched.sees(head);
    let noted = keys.last_of(head.writer)?;
    let mut shown = Vec::new();
    if let Some(noted) = &noted
        && let Some(how) = broken(connection, watched, keys, (noted, head)).await?
    {
        shown.push((noted.clone(), how));
    }
    if let Some(altered) = watched.altered() {
        let pruned = match noted {
            Some(noted) if noted.writer == altered.writer => (noted.pruned, noted.pruned_hash),
            _ => place::pruned(connection).await?,
        };
        let testimony = Checkpoint::sign(altered, Timestamp(clock::now()), pruned, keys);
        shown.push((testimony, "it was changed while the agent ran"));
    }
    let before = keys.writer_in(&watched.path)?;
    if let Some(before) = before.filter(|before| *before != head.writer)
        && let Some(noted) = keys.last_of(before)?.filter(|noted| noted.seq > 0)
        && !is_elsewhere(watched.used_as, keys, &noted)?
    {
        shown.push((noted, "another trail was put in its place"));
    }
    let mut told = None;
    for (checkpoint, how) in shown {
        // Until what shows it is kept, nothing is signed. What is kept already was told before.
        if let Some(kept) = keys.keep(&checkpoint)? {
            told.get_or_insert(StoreError::Broken {
                path: watched.path.clone(),
                seq: checkpoint.seq,
                time: checkpoint.time,
                how,
                kept,
            });
        }
    }
    if before != Some(head.writer) {
        keys.note_writer(&watched.path, head.writer)?;
    }
    watched.settle(head);
    Ok(told)
}

/// Whether all that was signed of a spool's chain has left it: then nothing is lost with the file, which may be on a volume that
/// goes with its pod.
fn is_elsewhere(used_as: Use, keys: &Keys, noted: &Checkpoint) -> Result<bool, StoreError> {
    let gone = keys.gone(noted.writer)?;
    Ok(used_as == Use::Spool && gone.is_some_and(|gone| gone.gone >= noted.seq))
}

/// Whether the chain up to an entry goes on from what was signed: looked at without being in anybody's way, so that it need
/// not be looked at where others wait. What is not as it should be is for [`check`] to say.
pub(super) async fn goes_on(
    connection: &mut SqliteConnection,
    used_as: Use,
    keys: &Keys,
    head: Head,
) -> Result<bool, StoreError> {
    let Some(noted) = keys.last_of(head.writer)? else {
        return Ok(true);
    };
    let pruned = place::pruned(connection).await?;
    if pruned != (noted.pruned, noted.pruned_hash) || head.seq < noted.seq.max(pruned.0) {
        return Ok(false);
    }
    let from = base(&noted, pruned);
    Ok(walk(connection, used_as, keys, (from, head)).await?.is_none())
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
    let (seq, hash) = base(noted, pruned);
    if head.seq < seq {
        return Ok(Some("its end was cut off, or it is an older copy"));
    }
    if watched.trusts(head) {
        return Ok(None);
    }
    walk(connection, watched.used_as, keys, ((seq, hash), head)).await
}

/// Where one begins to look: what was removed after the checkpoint, signed for its age, is not there to be looked at.
const fn base(noted: &Checkpoint, pruned: (u64, Hash)) -> (u64, Hash) {
    if pruned.0 > noted.seq {
        pruned
    } else {
        (noted.seq, noted.hash)
    }
}

/// What shows that the entries from a place on do not lead to where the chain is said to end.
async fn walk(
    connection: &mut SqliteConnection,
    used_as: Use,
    keys: &Keys,
    ((seq, hash), head): ((u64, Hash), Head),
) -> Result<Option<&'static str>, StoreError> {
    if head.seq == seq {
        return Ok((head.hash != hash).then_some(REWRITTEN));
    }
    match used_as {
        Use::Trail => Ok((!leads_to(connection, (seq, hash), head).await?).then_some(REWRITTEN)),
        Use::Spool => spooled::wrong(connection, keys, (seq, hash), head).await,
    }
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
