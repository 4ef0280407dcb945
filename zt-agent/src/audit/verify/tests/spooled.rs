// SPDX-License-Identifier: Apache-2.0
//! A spool goes on with a file from which entries went: honestly, or not.

mod given_up;

use std::collections::BTreeSet;

use super::store::tamper;
use super::*;
use crate::audit::seal::{Cause, Gone};
use crate::audit::spool::{Spool, WhenFull};
use crate::audit::sqlite::{Shipping, Use};

/// A spool, and the keys beside it.
struct Node {
    world: World,
    /// Entries that were made so far.
    made: u64,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        Self {
            world: World { directory },
            made: 0,
        }
    }

    async fn open(&self) -> Spool {
        Spool::open(self.world.settings(), WhenFull::Oldest)
            .await
            .expect("opens")
    }

    fn entries(&mut self, count: u64) -> Vec<Entry> {
        let from = self.made;
        self.made += count;
        (from..self.made).map(entry).collect()
    }

    async fn append(&mut self, spool: &Spool, count: u64) {
        spool.append(&self.entries(count), None).await.expect("kept");
    }

    /// As where there is no room.
    async fn give_up(&mut self, spool: &Spool, count: u64) {
        let entries = self.entries(count);
        spool.store().give_up(&entries, None).await.expect("noted");
    }

    /// The server has the entries up to this one, and they go.
    async fn ship(&self, spool: &Spool, last: u64) {
        let store = spool.store();
        let shipping = Shipping {
            shipped: last,
            planned: last,
            ..store.shipping().await.expect("reads")
        };
        store.discard(last, &shipping).await.expect("removed");
    }

    /// As [`Self::ship`], killed before they went.
    fn begin_to_ship(&self, last: u64) {
        let (signed, keys) = (self.note(), self.world.keys());
        let Some(signed) = signed else { return };
        let gone = Keys::gone_in(&keys, signed.writer).expect("reads");
        if last >= signed.seq && gone.is_none_or(|gone| gone.gone < signed.seq.max(1)) {
            let gone = Gone {
                noted: signed.seq,
                gone: last,
            };
            Keys::note_gone(&keys, signed.writer, gone).expect("notes");
        }
    }

    /// The server has all that was said of what was given up, and the entries up to this one, which have not gone yet.
    async fn state(&self, spool: &Spool, last: u64) {
        let store = spool.store();
        let stated = store.stated_gaps(u64::MAX).await.expect("signs");
        let rows: Vec<i64> = stated.iter().map(|(row, _)| *row).collect();
        store.gaps_shipped(&rows, last).await.expect("notes");
    }

    /// The oldest entries make room.
    async fn drop_oldest(&self, spool: &Spool, last: u64) {
        let store = spool.store();
        let mut shipping = store.shipping().await.expect("reads");
        let safe = shipping.shipped;
        store
            .drop_oldest(safe, last, &mut shipping)
            .await
            .expect("removed");
    }

    /// The last checkpoint that is noted.
    fn note(&self) -> Option<Checkpoint> {
        let noted = Keys::noted(&self.world.keys()).expect("reads");
        assert!(noted.len() < 2, "one was kept: {noted:?}");
        noted.into_iter().next()
    }

    /// Signs, killed before that is noted.
    async fn seal_unnoted(&self, spool: Spool) {
        let before = self.note().expect("signed at the first start");
        spool.seal().await.expect("goes on");
        drop(spool);
        Keys::open(&self.world.keys())
            .expect("opens")
            .note(&before)
            .expect("notes");
    }

    /// Goes on as an agent does that is started again, and signs.
    async fn goes_on(&mut self) -> Result<(), StoreError> {
        let spool = self.open().await;
        self.append(&spool, 1).await;
        let sealed = spool.store().seal().await;
        spool.close().await.expect("closes");
        sealed.map(|sealed| assert!(sealed.is_some()))
    }

    /// As [`Self::goes_on`], and nothing is wrong.
    async fn is_whole(&mut self, what: &str) {
        self.goes_on()
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let kept = Keys::kept(&self.world.keys()).expect("reads");
        assert_eq!(kept, 0, "{what}");
    }

    /// As [`Self::goes_on`], and somebody has changed the file.
    async fn is_broken(&mut self, what: &str) {
        let told = self.goes_on().await;
        assert!(matches!(told, Err(StoreError::Broken { .. })), "{what}: {told:?}");
        assert_eq!(Keys::kept(&self.world.keys()).expect("reads"), 1, "{what}");
        assert!(self.goes_on().await.is_ok(), "{what}: once");
    }
}

/// A spool with ten entries that are signed, and five that are not.
async fn node() -> Node {
    let mut node = Node::new();
    let spool = node.open().await;
    node.append(&spool, 10).await;
    spool.seal().await.expect("seals").expect("moved");
    node.append(&spool, 5).await;
    spool.close().await.expect("closes");
    node
}

#[tokio::test]
async fn what_was_shipped_and_given_up_is_not_missed() {
    let mut node = node().await;
    node.is_whole("nothing was shipped").await;
    for last in [4, 12, 16] {
        let spool = node.open().await;
        node.ship(&spool, last).await;
        spool.close().await.expect("closes");
        node.is_whole(&format!("shipped up to {last}")).await;
    }
    // The last that was signed is one of those that were given up.
    let spool = node.open().await;
    node.give_up(&spool, 3).await;
    spool.seal().await.expect("goes on").expect("moved");
    node.give_up(&spool, 2).await;
    node.append(&spool, 2).await;
    drop(spool);
    node.is_whole("the newest were given up").await;
    let spool = node.open().await;
    let head = spool.store().head().await.expect("reads").seq;
    node.drop_oldest(&spool, head - 2).await;
    node.give_up(&spool, 2).await;
    node.append(&spool, 2).await;
    drop(spool);
    node.is_whole("the oldest were given up").await;
    let spool = node.open().await;
    let head = spool.store().head().await.expect("reads").seq;
    node.drop_oldest(&spool, head).await;
    drop(spool);
    node.is_whole("all were given up").await;
}

#[tokio::test]
async fn before_the_first_checkpoint_but_that_of_nothing_all_is_as_well() {
    let mut node = Node::new();
    let spool = node.open().await;
    node.append(&spool, 5).await;
    drop(spool);
    node.is_whole("killed at once").await;
    let mut node = Node::new();
    let spool = node.open().await;
    node.append(&spool, 5).await;
    node.ship(&spool, 3).await;
    drop(spool);
    node.is_whole("killed when some were shipped").await;
    let mut node = Node::new();
    let spool = node.open().await;
    node.append(&spool, 5).await;
    drop(spool);
    tamper(&node.world.file(), "DELETE FROM record WHERE row < 3").await;
    node.is_broken("some were taken out").await;
}

#[tokio::test]
async fn what_an_earlier_version_shipped_is_believed_once() {
    let mut node = node().await;
    let spool = node.open().await;
    node.ship(&spool, 12).await;
    spool.close().await.expect("closes");
    let gone = node
        .world
        .keys()
        .join(format!("{}.gone", node.note().expect("signed").writer));
    std::fs::remove_file(&gone).expect("removes");
    node.is_whole("shipped by a version that notes nothing").await;
    assert!(gone.exists());
    // That version ran in between: it signed, and shipped what it had signed.
    let before = std::fs::read(&gone).expect("reads");
    let spool = node.open().await;
    node.append(&spool, 3).await;
    spool.seal().await.expect("goes on").expect("moved");
    let head = spool.store().head().await.expect("reads").seq;
    node.ship(&spool, head).await;
    spool.close().await.expect("closes");
    std::fs::write(&gone, before).expect("writes");
    node.is_whole("and again").await;
    // From then on nobody is believed.
    let last = node.note().expect("signed").seq;
    tamper(
        &node.world.file(),
        &format!("DELETE FROM record WHERE row <= {last}"),
    )
    .await;
    node.is_broken("taken out").await;
}

#[tokio::test]
async fn whatever_is_taken_out_of_a_spool_or_changed_in_it_shows() {
    for sql in [
        "DELETE FROM record WHERE row = 10",
        "DELETE FROM record WHERE row <= 10",
        "UPDATE record SET hash = NULL WHERE row = 10",
        "UPDATE record SET hash = randomblob(32) WHERE row = 10",
        "DELETE FROM record; UPDATE shipping SET shipped = 15, planned = 15",
        "UPDATE record SET time = time + 1 WHERE row = 12",
        "DELETE FROM record WHERE row = 12",
        "UPDATE trail SET hash = randomblob(32)",
        "UPDATE trail SET next_row = 5, hash = (SELECT hash FROM record WHERE row = 4);
            DELETE FROM record WHERE row > 4",
        // As if they had been given up.
        "DELETE FROM record WHERE row BETWEEN 8 AND 12;
            INSERT INTO gap (first, last, before, after, cause)
            SELECT 8, 12, (SELECT hash FROM record WHERE row = 7), randomblob(32), 'spool_newest'",
    ] {
        let mut node = node().await;
        tamper(&node.world.file(), sql).await;
        node.is_broken(sql).await;
    }
}

/// Numbers that look as if by chance, and are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % end.max(1)
    }
}

#[tokio::test]
async fn whatever_an_honest_spool_goes_through_nothing_is_said_of_it() {
    let mut seen = BTreeSet::new();
    for seed in 0..24 {
        let (mut chance, mut node) = (Chance(seed), Node::new());
        let mut spool = node.open().await;
        let mut did = Vec::new();
        for _ in 0..40 {
            let step = chance.below(12);
            let count = 1 + chance.below(4);
            let head = spool.store().head().await.expect("reads").seq;
            let shipping = spool.store().shipping().await.expect("reads");
            // Somewhere behind what was shipped.
            let last = (shipping.shipped + 1 + chance.below(head.saturating_sub(shipping.shipped))).min(head);
            did.push((step, count, last));
            seen.insert(step);
            match step {
                0..=2 => node.append(&spool, count).await,
                3 | 4 => {
                    let sealed = spool.seal().await;
                    assert!(sealed.is_ok(), "{seed}: {did:?}: {sealed:?}");
                }
                5 => node.ship(&spool, last).await,
                6 => node.give_up(&spool, count).await,
                7 => node.drop_oldest(&spool, last).await,
                8 => {
                    node.begin_to_ship(last);
                    drop(spool);
                    spool = node.open().await;
                }
                9 => {
                    node.seal_unnoted(spool).await;
                    spool = node.open().await;
                }
                10 => node.state(&spool, shipping.shipped).await,
                _ => {
                    drop(spool);
                    spool = node.open().await;
                }
            }
        }
        drop(spool);
        node.is_whole(&format!("{seed}: {did:?}")).await;
    }
    assert_eq!(seen.len(), 12, "every step was taken");
}

#[tokio::test]
async fn entries_that_the_server_refuses_and_that_cannot_be_read_are_passed() {
    let mut node = node().await;
    // Number 13 is damaged, and given up together with one that the server does not take.
    tamper(&node.world.file(), "UPDATE record SET shape = 999 WHERE row = 13").await;
    let spool = node.open().await;
    let shipping = spool.store().shipping().await.expect("reads");
    for (number, cause) in [(12, Cause::ServerRefused), (13, Cause::SpoolUnreadable)] {
        let lost = spool.store().lose((number, number), None, cause, &shipping).await;
        lost.expect("noted");
    }
    drop(spool);
    node.is_whole("refused and unreadable").await;
}

#[tokio::test]
async fn the_tables_of_a_spool_are_looked_at_in_a_trail_and_change_nothing() {
    let world = World::new().await;
    tamper(
        &world.file(),
        "CREATE TABLE shipping (one INTEGER PRIMARY KEY, shipped INTEGER NOT NULL, checkpoint INTEGER NOT NULL) STRICT;
         INSERT INTO shipping VALUES (1, 0, 0);
         UPDATE bucket SET connections = connections + 1 WHERE shape = 1",
    )
    .await;
    let said: Vec<String> = world
        .report(&world.file())
        .await
        .findings
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(said.iter().any(|said| said.contains("`shipping`")), "{said:?}");
    assert!(
        said.iter().any(|said| said.starts_with("the count of ")),
        "{said:?}"
    );
    // A spool's own are no finding.
    let node = node().await;
    let file = World::dsn(&node.world.file());
    let mut reader = Reader::open_as(&file, Use::Spool).await.expect("opens");
    let verifier = verify(&mut reader, node.world.verifier(), &[], &mut |_| ()).await;
    assert_eq!(verifier.expect("reads").finish().findings, []);
}

#[tokio::test]
async fn a_spool_that_went_with_its_volume_is_missed_where_it_held_something() {
    let mut node = Node::new();
    let spool = node.open().await;
    node.append(&spool, 10).await;
    spool.store().seal().await.expect("signed");
    node.ship(&spool, 10).await;
    spool.close().await.expect("closes");
    std::fs::remove_file(node.world.file()).expect("removed");
    node.is_whole("the server has all of it").await;
    // What was signed here has not been shipped.
    std::fs::remove_file(node.world.file()).expect("removed");
    // An agent starts all the same, and what shows it is kept.
    node.goes_on().await.expect("goes on");
    assert_eq!(Keys::kept(&node.world.keys()).expect("reads"), 1);
}
