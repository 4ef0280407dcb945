// SPDX-License-Identifier: Apache-2.0
//! Entries that were not signed yet are changed while the agent runs: it knows what it wrote.

use super::forged::{hashed_anew, is_among, lacking, rewritten};
use super::store::tamper;
use super::*;
use crate::audit::spool::{Spool, WhenFull};

/// Writes the entries behind the last that was signed anew, the second with another time, as somebody who may write the
/// file: whatever is not signed fits.
async fn change_unsigned(file: &Path, signed: u64, more: &str) {
    let later = |seq: u64, said: &mut Entry| match said {
        Entry::Decision(record) if seq == signed + 2 => {
            record.timestamp.0 += 1;
            Some("time = time + 1")
        }
        _ => None,
    };
    let sql = hashed_anew(file, signed, later).await + more;
    tamper(file, &sql).await;
}

/// The entries that were there when they were changed are known for good to have been others.
async fn is_found(world: &World, seq: u64) {
    let findings = world.of_entries(&world.file()).await;
    is_among(&findings, |finding| {
        rewritten(seq)(finding) || lacking(seq)(finding)
    });
}

/// A trail of some entries behind what was signed, of which the second is a decision.
async fn running() -> (World, Store, u64) {
    let world = World::new().await;
    let store = world.open().await;
    for number in 0..3 {
        store
            .append(&[entry(ENTRIES + number)], None)
            .await
            .expect("kept");
    }
    (world, store, ENTRIES)
}

fn says_it_was_changed(told: &Result<Option<Checkpoint>, StoreError>, wanted: u64) {
    let Err(StoreError::Broken { seq, how, kept, .. }) = told else {
        panic!("not noticed: {told:?}")
    };
    assert_eq!((*seq, *how), (wanted, "it was changed while the agent ran"));
    assert!(kept.exists());
}

#[tokio::test]
async fn unsigned_entries_that_are_changed_while_the_agent_runs_are_found_for_good() {
    for more in ["", "UPDATE trail SET shapes_gone = shapes_gone + 1"] {
        let (world, store, signed) = running().await;
        change_unsigned(&world.file(), signed, more).await;
        store.append(&[entry(signed + 3)], None).await.expect("kept");
        says_it_was_changed(&store.seal().await, signed + 3);
        // Once; and what comes later is signed.
        store.append(&[entry(signed + 4)], None).await.expect("kept");
        assert!(store.seal().await.expect("signs").is_some());
        store.close().await.expect("closes");
        is_found(&world, signed + 3).await;
        assert_eq!(Keys::kept(&world.keys()).expect("reads"), 1);
    }
}

#[tokio::test]
async fn nor_does_it_help_when_nothing_comes_behind_them() {
    // Changed at their place.
    let (world, store, signed) = running().await;
    change_unsigned(&world.file(), signed, "").await;
    says_it_was_changed(&store.seal().await, signed + 3);
    store.close().await.expect("closes");
    is_found(&world, signed + 3).await;
    // Cut off.
    let (world, store, signed) = running().await;
    let cut = "UPDATE trail SET next_row = 122, hash = (SELECT hash FROM record WHERE row = 121);
         DELETE FROM record WHERE row > 121";
    tamper(&world.file(), cut).await;
    says_it_was_changed(
        &store.prune_before(entry(3).timestamp()).await.map(|_| None),
        signed + 3,
    );
    store.append(&[entry(signed + 3)], None).await.expect("kept");
    assert!(store.seal().await.expect("signs").is_some());
    store.close().await.expect("closes");
    is_found(&world, signed + 3).await;
    // All of it, under another name.
    let (world, store, signed) = running().await;
    tamper(&world.file(), "UPDATE trail SET writer = randomblob(16)").await;
    says_it_was_changed(&store.seal().await, signed + 3);
    store.close().await.expect("closes");
}

#[tokio::test]
async fn before_the_first_signature_too() {
    let directory = tempfile::tempdir().expect("directory");
    let world = World { directory };
    let store = world.open().await;
    for number in [20, 21, 22] {
        store.append(&[entry(number)], None).await.expect("kept");
    }
    change_unsigned(&world.file(), 0, "").await;
    store.append(&[entry(23)], None).await.expect("kept");
    says_it_was_changed(&store.seal().await, 3);
    store.append(&[entry(24)], None).await.expect("kept");
    store.seal().await.expect("signs").expect("moved");
    store.close().await.expect("closes");
    is_found(&world, 3).await;
}

#[tokio::test]
async fn what_an_honest_agent_does_is_no_change() {
    let world = World::new().await;
    let store = world.open().await;
    let visitor = Store::visit(world.settings()).await.expect("opens");
    for round in 0..6 {
        for number in 0..5 {
            let number = ENTRIES + round * 10 + number;
            store.append(&[entry(number)], None).await.expect("kept");
        }
        // One that is given up anywhere on its way.
        let entries: Vec<Entry> = (0..2000).map(entry).collect();
        let append = store.append(&entries, None);
        let _ = tokio::time::timeout(std::time::Duration::from_micros(500 * round), append).await;
        // One that fails.
        store.meddle(crate::audit::sqlite::tests::REFUSE).await;
        store.append(&[entry(1)], None).await.expect_err("refused");
        store.meddle(crate::audit::sqlite::tests::TAKE_AGAIN).await;
        store.append(&[entry(ENTRIES + round)], None).await.expect("kept");
        // Another process removes what is old, under another key.
        Keys::rotate(&world.keys()).expect("rotates");
        visitor
            .prune_before(entry(10 * (round + 1)).timestamp())
            .await
            .expect("prunes");
        if round % 2 == 0 {
            store
                .prune_before(entry(10 * (round + 1) + 5).timestamp())
                .await
                .expect("prunes");
        }
        store.append(&[entry(ENTRIES + round)], None).await.expect("kept");
        assert!(store.seal().await.expect("goes on").is_some(), "round {round}");
    }
    visitor.close().await.expect("closes");
    store.close().await.expect("closes");
    assert_eq!(Keys::kept(&world.keys()).expect("reads"), 0);
    assert_eq!(world.of_entries(&world.file()).await, []);
}

#[tokio::test]
async fn what_a_full_spool_does_is_no_change() {
    let directory = tempfile::tempdir().expect("directory");
    let world = World { directory };
    let spool = Spool::open(world.settings(), WhenFull::Newest)
        .await
        .expect("opens");
    for number in (0..60).step_by(4) {
        spool
            .append(&[entry(number), entry(number + 1)], None)
            .await
            .expect("kept");
        spool
            .store()
            .give_up(&[entry(number + 2)], None)
            .await
            .expect("noted");
        assert!(spool.seal().await.expect("goes on").is_some());
        spool
            .store()
            .give_up(&[entry(number + 3)], None)
            .await
            .expect("noted");
    }
    spool.close().await.expect("closes");
    assert_eq!(Keys::kept(&world.keys()).expect("reads"), 0);
}
