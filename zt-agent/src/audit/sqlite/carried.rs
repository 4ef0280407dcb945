// SPDX-License-Identifier: Apache-2.0
//! What goes over from a damaged file into the one that takes its place: as much of it as can still be read.

use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::before::{self, Before};
use super::{Shipping, StoreError, Use, append, gaps, intents, place, seal, ship, told};
use crate::audit::chain::{Hash, Head};
use crate::audit::intent::Intent;
use crate::audit::names::Named;
use crate::audit::seal::Keys;
use crate::audit::store::RingMark;

/// Names of numbers that go over. What so many were noted after is not kept in any file.
pub(super) const NAMES: usize = 65_536;

/// What a file says, each part by itself: none of it needs the others.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// Where its chain ends.
    pub(super) head: Option<Head>,
    /// Up to which entry the oldest were removed.
    pub(super) pruned: Option<(u64, Hash)>,
    /// Up to where the ring buffer is accounted for.
    pub(super) mark: Option<RingMark>,
    /// The policies that were told last.
    told: Option<String>,
    late: Option<String>,
    /// The changes of policy that were noted and not recorded.
    intents: Vec<Intent>,
    /// Those that have a record: none gets a second one.
    recorded: Vec<Uuid>,
    /// The newest first.
    names: Vec<Named>,
    /// How far a spool has shipped.
    pub(super) shipping: Option<Shipping>,
    /// Its entries behind that which it had lost already.
    pub(super) lost: Option<u64>,
    /// What it had to say itself of one before it.
    before: Vec<Before>,
}

impl Carried {
    /// Reads what can be read.
    pub(super) async fn read(connection: &mut SqliteConnection, used_as: Use) -> Self {
        let mut carried = Self {
            head: place::head(connection).await.ok(),
            pruned: place::pruned(connection).await.ok(),
            mark: place::ring_mark(connection).await.ok().flatten(),
            told: told::told(connection).await.ok().flatten(),
            late: told::late(connection).await.ok().flatten(),
            recorded: intents::remembered(connection).await.unwrap_or_default(),
            names: append::remembered(connection, NAMES).await.unwrap_or_default(),
            ..Self::default()
        };
        carried.intents = intents::intents(connection).await.unwrap_or_default();
        let older = intents::older(connection).await.unwrap_or_default();
        carried.intents.extend(older);
        if used_as == Use::Spool {
            carried.shipping = ship::read(connection).await.ok();
            if let Some(shipping) = carried.shipping {
                carried.lost = gaps::lost_behind(connection, shipping.shipped).await.ok();
            }
            let stated = before::read(connection).await.unwrap_or_default();
            carried.before = stated.into_iter().map(|(_, before)| before).collect();
        }
        carried
    }

    /// Writes it into a new file, with what is stated of the damaged one. Returns the new file's writer.
    pub(super) async fn write(
        mut self,
        connection: &mut SqliteConnection,
        (used_as, keys): (Use, Option<&Keys>),
        stated: Option<Before>,
    ) -> Result<Uuid, StoreError> {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        if let Some(mark) = self.mark {
            place::set_ring_mark(&mut transaction, mark).await?;
        }
        if let Some(digest) = &self.told {
            told::note(&mut transaction, digest).await?;
        }
        if let Some(digest) = &self.late {
            told::set_late(&mut transaction, digest).await?;
        }
        for id in &self.recorded {
            intents::remember(&mut transaction, *id).await?;
        }
        for intent in &self.intents {
            intents::insert(&mut transaction, intent).await?;
        }
        if used_as == Use::Spool {
            let totals = self.shipping.unwrap_or_default();
            let shipping = Shipping {
                dropped: totals.dropped,
                refused: totals.refused,
                unreadable: totals.unreadable,
                ..Shipping::default()
            };
            ship::note(&mut transaction, &shipping).await?;
            if let Some(keys) = keys {
                seal::keep_keys(&mut transaction, keys).await?;
            }
            for before in self.before.iter().chain(&stated) {
                before::keep(&mut transaction, before).await?;
            }
        }
        transaction.commit().await?;
        // The newest last, as they came.
        self.names.reverse();
        append::remember(connection, &self.names).await?;
        Ok(place::head(connection).await?.writer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::intents::intent;
    use super::super::tests::store;
    use super::*;

    #[tokio::test]
    async fn a_note_that_a_damaged_page_yields_twice_goes_over_once() {
        let (_directory, store) = store().await;
        let mine = intent("somebody", "a", "b");
        let other = intent("another", "a", "b");
        let carried = Carried {
            intents: vec![mine.clone(), mine.clone(), other.clone()],
            recorded: vec![other.id],
            ..Carried::default()
        };
        let mut writer = store.writing().await.expect("its turn");
        let written = carried
            .write(&mut writer.connection, (Use::Trail, None), None)
            .await;
        written.expect("written");
        drop(writer);
        assert_eq!(
            store.intents().await.expect("reads"),
            [mine],
            "and not what has its record"
        );
    }
}
