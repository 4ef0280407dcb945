// SPDX-License-Identifier: Apache-2.0
//! An agent goes on with a file that somebody changed who has not the keys: it does not sign that away.

use super::forged::{hashed_anew, is_among, lacking, rewritten};
use super::store::tamper;
use super::*;

/// Goes on with the trail as an agent does that is started again: the next seals, each behind another entry.
async fn goes_on(world: &World, from: u64, seals: usize) -> Vec<Result<(), StoreError>> {
    let store = world.open().await;
    let mut said = Vec::new();
    for number in (from..).take(seals) {
        store.append(&[entry(number)], None).await.expect("kept");
        said.push(store.seal().await.map(|sealed| assert!(sealed.is_some())));
    }
    store.close().await.expect("closes");
    said
}

/// The first seal says that the chain is broken, and later ones sign what has come since.
fn says_once(said: &[Result<(), StoreError>]) {
    let Some((Err(StoreError::Broken { seq, kept, .. }), later)) = said.split_first() else {
        panic!("not noticed: {said:?}")
    };
    assert!(*seq >= ENTRIES && kept.exists(), "{seq}, {}", kept.display());
    assert!(later.iter().all(Result::is_ok), "{later:?}");
}

#[tokio::test]
async fn an_older_copy_of_the_file_never_looks_whole_again() {
    let world = World::new().await;
    let copy = world.directory.path().join("yesterday.db");
    std::fs::copy(world.file(), &copy).expect("copies");
    assert!(goes_on(&world, ENTRIES, 5).await.iter().all(Result::is_ok));
    assert!(world.report(&world.file()).await.is_clean());
    std::fs::copy(&copy, world.file()).expect("copies");
    // Shorter than what was signed, and longer.
    says_once(&goes_on(&world, 500, 3).await);
    let findings = world.of_entries(&world.file()).await;
    is_among(&findings, lacking(ENTRIES + 5));
    assert!(goes_on(&world, 600, 7).await.iter().all(Result::is_ok));
    let findings = world.of_entries(&world.file()).await;
    is_among(&findings, rewritten(ENTRIES + 5));
}

#[tokio::test]
async fn what_was_never_pruned_is_not_signed_as_pruned() {
    let world = World::new().await;
    tamper(
        &world.file(),
        "UPDATE trail SET pruned_row = 40, pruned_hash = (SELECT hash FROM record WHERE row = 40);
         DELETE FROM record WHERE row <= 40",
    )
    .await;
    says_once(&goes_on(&world, ENTRIES, 3).await);
    // Nor where the agent prunes itself next.
    let store = world.open().await;
    store.prune_before(entry(50).timestamp()).await.expect("prunes");
    store.close().await.expect("closes");
    let world = World::new().await;
    tamper(
        &world.file(),
        "UPDATE trail SET pruned_row = 90, pruned_hash = (SELECT hash FROM record WHERE row = 90);
         DELETE FROM record WHERE row BETWEEN 60 AND 90",
    )
    .await;
    let store = world.open().await;
    let told = store.prune_before(entry(20).timestamp()).await;
    assert!(matches!(told, Err(StoreError::Broken { .. })), "{told:?}");
    store.prune_before(entry(20).timestamp()).await.expect("prunes");
    store.close().await.expect("closes");
    let findings = world.of_entries(&world.file()).await;
    assert!(
        findings.iter().any(|finding| matches!(
            finding,
            Finding::Missing {
                first: 60,
                last: 90,
                ..
            }
        )),
        "{findings:?}"
    );
}

/// Writes another history with all hashes made anew, and takes away what was signed of the true one.
async fn rewrite(world: &World) {
    let another = |seq: u64, said: &mut Entry| match said {
        Entry::Decision(record) if seq == 50 => {
            record.source.pid = Some(1);
            Some("pid = 1")
        }
        _ => None,
    };
    let sql = hashed_anew(&world.file(), 0, another).await
        + "DELETE FROM checkpoint; UPDATE trail SET shapes_gone = shapes_gone + 1";
    tamper(&world.file(), &sql).await;
}

#[tokio::test]
async fn a_history_with_all_hashes_made_anew_is_not_signed_for_the_true_one() {
    let world = World::new().await;
    rewrite(&world).await;
    says_once(&goes_on(&world, ENTRIES, 2).await);
    let findings = world.of_entries(&world.file()).await;
    is_among(&findings, rewritten(ENTRIES));

    // Nor where the file says that it is a spool, whose entries go when they were shipped.
    let world = World::new().await;
    rewrite(&world).await;
    let as_a_spool = "CREATE TABLE shipping (one INTEGER PRIMARY KEY, shipped INTEGER NOT NULL) STRICT;
         INSERT INTO shipping VALUES (1, 120); UPDATE record SET hash = NULL WHERE row = 120";
    tamper(&world.file(), as_a_spool).await;
    says_once(&goes_on(&world, ENTRIES, 2).await);
    assert!(!world.of_entries(&world.file()).await.is_empty());

    // Nor while the agent runs.
    let world = World::new().await;
    let store = world.open().await;
    store.append(&[entry(ENTRIES)], None).await.expect("kept");
    store.seal().await.expect("sealed");
    rewrite(&world).await;
    store.append(&[entry(ENTRIES + 1)], None).await.expect("kept");
    let told = store.seal().await;
    assert!(matches!(told, Err(StoreError::Broken { .. })), "{told:?}");
    store.close().await.expect("closes");
    assert!(!world.of_entries(&world.file()).await.is_empty());
}

#[tokio::test]
async fn who_is_honest_hears_nothing_of_it() {
    let world = World::new().await;
    let note = || {
        let files = std::fs::read_dir(world.keys()).expect("reads");
        let paths = files.map(|file| file.expect("reads").path());
        let mut notes: Vec<PathBuf> = paths
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "checkpoint")
            })
            .collect();
        assert_eq!(notes.len(), 1, "{notes:?}");
        notes.remove(0)
    };
    let first = std::fs::read(note()).expect("reads");
    for round in 0..4 {
        let from = ENTRIES + round * 100;
        assert!(goes_on(&world, from, 2).await.iter().all(Result::is_ok));
        // Entries that no checkpoint covers yet, of a run that was killed.
        let store = world.open().await;
        for number in 10..20 {
            store.append(&[entry(from + number)], None).await.expect("kept");
        }
        drop(store);
        Keys::rotate(&world.keys()).expect("rotates");
        let store = world.open().await;
        store
            .prune_before(entry(30 * (round + 1)).timestamp())
            .await
            .expect("prunes");
        store.close().await.expect("closes");
        // It was killed between the checkpoint and its note.
        if round == 2 {
            std::fs::write(note(), &first).expect("writes");
        }
        let report = world.report(&world.file()).await;
        assert_eq!(report.findings, [], "round {round}");
    }
    note();
}

#[tokio::test]
async fn another_trail_in_the_place_of_one_that_was_signed_is_told_of() {
    for sql in [
        "UPDATE trail SET writer = randomblob(16); DELETE FROM checkpoint",
        "UPDATE trail SET writer = randomblob(16), next_row = 1, hash = zeroblob(32), pruned_row = 0,
             pruned_hash = zeroblob(32); DELETE FROM record; DELETE FROM checkpoint",
    ] {
        let world = World::new().await;
        tamper(&world.file(), sql).await;
        says_once(&goes_on(&world, ENTRIES, 3).await);
        assert!(goes_on(&world, 2 * ENTRIES, 2).await.iter().all(Result::is_ok));
        let findings = world.of_entries(&world.file()).await;
        is_among(&findings, lacking(ENTRIES));
    }
    // The database is gone.
    let world = World::new().await;
    std::fs::remove_file(world.file()).expect("removes");
    says_once(&goes_on(&world, ENTRIES, 2).await);
}

#[tokio::test]
async fn trails_that_share_their_keys_are_not_taken_for_each_other() {
    let world = World::new().await;
    let other = Settings {
        dsn: World::dsn(&world.directory.path().join("other.db")),
        ..world.settings()
    };
    // Of a version that does not note whose is where.
    for file in std::fs::read_dir(world.keys()).expect("reads") {
        let path = file.expect("reads").path();
        if path.extension().is_some_and(|extension| extension == "store") {
            std::fs::remove_file(path).expect("removes");
        }
    }
    for round in 0..3 {
        assert!(
            goes_on(&world, ENTRIES + 10 * round, 2)
                .await
                .iter()
                .all(Result::is_ok)
        );
        let store = Store::open(other.clone()).await.expect("opens");
        store.append(&[entry(round)], None).await.expect("kept");
        assert!(store.seal().await.expect("goes on").is_some());
        store.close().await.expect("closes");
    }
    assert_eq!(Keys::kept(&world.keys()).expect("reads"), 0);
}
