// SPDX-License-Identifier: Apache-2.0
//! Records that the spool should have and has not, or cannot read: given up, counted and stated, so that those behind them
//! go on their way.

use super::{Spool, State};
use crate::audit::record::Kept;
use crate::audit::seal::Cause;
use crate::audit::sqlite::StoreError;

/// A record with its number; what is wrong, where it cannot be read.
pub(super) type Found = (u64, Result<Kept, String>);

/// How many records can be read, one after the other, from the one with that number on.
pub(super) fn readable_from(first: u64, found: &[Found]) -> u64 {
    (first..)
        .zip(found)
        .take_while(|(wanted, (number, kept))| wanted == number && kept.is_ok())
        .count() as u64
}

impl Spool {
    /// Gives up what the next batch should begin with: the records before the first that there is, or those that cannot be
    /// read before the first that can.
    pub(super) async fn lose_first(&self, state: &mut State, found: &[Found]) -> Result<(), StoreError> {
        let mut noted = state.noted;
        let first = noted.shipped + 1;
        let (last, cause) = match found.first() {
            Some((number, Err(why))) if *number == first => {
                let unreadable = (first..)
                    .zip(found)
                    .take_while(|(wanted, (number, kept))| wanted == number && kept.is_err());
                let records = unreadable.count() as u64;
                tracing::error!(
                    first,
                    records,
                    why,
                    "records of the spool cannot be read, for damage or because a later version wrote them: they are lost \
                     and counted"
                );
                noted.unreadable += records;
                (noted.shipped + records, Cause::SpoolUnreadable)
            }
            other => {
                let last = other.map_or(noted.planned, |(number, _)| number - 1);
                let records = last - noted.shipped;
                tracing::error!(
                    records,
                    "records that waited in the spool are gone: they are lost and counted"
                );
                noted.dropped += records;
                (last, Cause::SpoolOldest)
            }
        };
        noted.gap += last - noted.shipped;
        noted.shipped = last;
        noted.planned = last;
        self.store.lose((first, last), None, cause, &noted).await?;
        state.noted = noted;
        Ok(())
    }
}
