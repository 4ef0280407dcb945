// SPDX-License-Identifier: Apache-2.0
//! Batches, from the first look to the server's yes: the next one is read while the one before is under way, and planned
//! when its turn has come.

use super::{Spool, State, lost};
use crate::audit::chain::Head;
use crate::audit::postgres::Batch;
use crate::audit::record::Kept;
use crate::audit::seal::Cause;
use crate::audit::sqlite::{SEGMENT_ROWS, StoreError};

/// What is to be sent next.
#[derive(Debug)]
pub(super) enum Next {
    Nothing,
    /// This one.
    Read(Batch),
    /// The one that was read ahead, before which so many were dropped.
    Ahead {
        dropped: u64,
    },
}

impl Spool {
    /// The batch to be sent: the one that was planned before, or else the next, of at most `most` records. Where that is the
    /// one that was read `ahead`, it need not be read again.
    pub(super) async fn next_batch(&self, most: u64, ahead: Option<&Batch>) -> Result<Next, StoreError> {
        let mut state = self.state().await?;
        loop {
            state.head = self.store.head().await?;
            self.pass_gaps(&mut state).await?;
            let (head, mut noted) = (state.head, state.noted);
            let first = noted.shipped + 1;
            if noted.planned <= noted.shipped {
                if noted.shipped >= head.seq {
                    self.moved(&state).await?;
                    return Ok(Next::Nothing);
                }
                let end = self.end_of_batch(&head, noted.shipped, most).await?;
                let ahead = ahead.filter(|ahead| ahead.first_seq == first && ahead.last_seq() <= end);
                noted.planned = ahead.map_or(end, Batch::last_seq);
                self.store.plan_shipping(&noted).await?;
                state.noted = noted;
                if let Some(ahead) = ahead {
                    self.moved(&state).await?;
                    self.waiting_since(&ahead.records);
                    return Ok(Next::Ahead { dropped: noted.gap });
                }
            }
            let found = self.read(first, noted.planned).await?;
            let there = lost::readable_from(first, &found);
            if there == noted.planned - noted.shipped {
                self.moved(&state).await?;
                let records = readable(found);
                self.waiting_since(&records);
                return Ok(Next::Read(Batch {
                    writer: head.writer,
                    first_seq: first,
                    dropped: noted.gap,
                    records,
                }));
            }
            // Room was made for others before the agent was killed, or what follows cannot be read: what was under way
            // then is lost, unless it had arrived, which nobody can say any more.
            if there > 0 {
                noted.planned = noted.shipped + there;
                self.store.plan_shipping(&noted).await?;
                state.noted = noted;
            } else {
                self.lose_first(&mut state, &found).await?;
            }
        }
    }

    /// What may be the batch behind the one under way, which ends with `last`; nothing where it would not be full: more may
    /// come until its turn. Nothing is planned by it, and what is read may be given up as anything else.
    pub(super) async fn look_ahead(&self, last: u64, most: u64) -> Result<Option<Batch>, StoreError> {
        let head = self.store.head().await?;
        let end = self.end_of_batch(&head, last, most).await?;
        if end <= last || end == head.seq {
            return Ok(None);
        }
        let found = self.read(last + 1, end).await?;
        let whole = lost::readable_from(last + 1, &found) == end - last;
        Ok(whole.then(|| Batch {
            writer: head.writer,
            first_seq: last + 1,
            dropped: 0,
            records: readable(found),
        }))
    }

    /// Where the batch behind an entry ends that has as many as it may have.
    async fn end_of_batch(&self, head: &Head, behind: u64, most: u64) -> Result<u64, StoreError> {
        let segment = (behind + 1) / SEGMENT_ROWS as u64;
        let end_of_segment = (segment + 1) * SEGMENT_ROWS as u64 - 1;
        let gap = self.store.next_gap(behind + 1).await?.unwrap_or(u64::MAX);
        let ends = [head.seq, behind + most.max(1), end_of_segment, gap - 1];
        Ok(ends.into_iter().fold(u64::MAX, u64::min))
    }

    async fn read(&self, first: u64, last: u64) -> Result<Vec<lost::Found>, StoreError> {
        let recent = self.recent().take(first, last);
        match recent {
            Some(records) => Ok(records
                .into_iter()
                .map(|(number, kept)| (number, Ok(kept)))
                .collect()),
            None => self.store.range(first, last).await,
        }
    }

    fn waiting_since(&self, records: &[Kept]) {
        if let Some(oldest) = records.first() {
            self.account.waiting_since(oldest.entry.timestamp().0);
        }
    }

    /// Goes on behind what was given up right before the next batch.
    async fn pass_gaps(&self, state: &mut State) -> Result<(), StoreError> {
        let mut noted = state.noted;
        while noted.planned <= noted.shipped
            && let Some(last) = self.store.gap_at(noted.shipped + 1).await?
        {
            noted.gap += last - noted.shipped;
            noted.shipped = last;
            noted.planned = last;
        }
        if noted != state.noted {
            self.store.note_shipping(&noted).await?;
            state.noted = noted;
        }
        Ok(())
    }

    /// The server has the batch, or never will (`refused`). It goes at once when nothing else waits, or else with
    /// [`Self::tidy`].
    pub(super) async fn done(&self, batch: &Batch, refused: bool) -> Result<(), StoreError> {
        let mut state = self.state().await?;
        let mut noted = state.noted;
        let last = batch.last_seq();
        (noted.shipped, noted.planned, noted.gap) = (last, last, 0);
        if refused {
            let weights = batch.records.iter().map(|kept| kept.entry.weight());
            noted.refused = weights.fold(noted.refused, u64::saturating_add);
            // The next batch tells that they are missing on purpose.
            noted.gap = batch.records.len() as u64 + batch.dropped;
            let hash = batch
                .records
                .last()
                .and_then(|kept| kept.link)
                .map(|link| link.hash);
            self.store
                .lose((batch.first_seq, last), hash, Cause::ServerRefused, &noted)
                .await?;
        } else {
            self.account.shipped(batch.records.len() as u64);
        }
        let head = self.store.head().await?;
        if last >= head.seq {
            self.store.discard(last, &noted).await?;
            state.tidied = last;
        } else {
            self.store.note_shipping(&noted).await?;
        }
        (state.noted, state.head) = (noted, head);
        self.moved(&state).await
    }

    /// Removes what has been shipped, a segment at a time.
    pub(super) async fn tidy(&self) -> Result<(), StoreError> {
        let mut state = self.state().await?;
        let noted = state.noted;
        let segment = |last: u64| (last + 1) / SEGMENT_ROWS as u64;
        if segment(noted.shipped) > segment(state.tidied) {
            self.store.discard(noted.shipped, &noted).await?;
            state.tidied = noted.shipped;
        }
        Ok(())
    }

    /// The server refuses the batch for what it says: only its first half is tried next.
    pub(super) async fn halve(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut state = self.state().await?;
        let mut noted = state.noted;
        noted.planned = noted.shipped + (batch.records.len() as u64 / 2).max(1);
        self.store.plan_shipping(&noted).await?;
        state.noted = noted;
        Ok(())
    }
}

/// Records without their numbers. All of them can be read.
fn readable(found: Vec<lost::Found>) -> Vec<Kept> {
    found.into_iter().filter_map(|(_, kept)| kept.ok()).collect()
}
