// SPDX-License-Identifier: Apache-2.0
//! Files that are damaged, at the start and under an agent that records into them.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;

use uuid::Uuid;

use super::*;
use crate::audit::intent::Intent;

/// Of `SQLite`, where nothing else is said.
const PAGE: u64 = 4096;
const MARK: RingMark = RingMark {
    ring: Uuid::from_u128(5),
    position: 4096,
};

struct World {
    directory: TempDir,
    settings: Settings,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let settings = Settings {
            keys: Some(directory.path().join("keys")),
            ..settings(&directory)
        };
        Self { directory, settings }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("state/audit.db")
    }

    fn keys(&self) -> PathBuf {
        self.directory.path().join("keys")
    }

    async fn open(&self) -> Store {
        Store::open(self.settings.clone()).await.expect("opens")
    }

    /// An open trail with records, some of them signed, and all of them in the file itself.
    async fn begun(&self, count: u64) -> Store {
        let store = self.open().await;
        store.note_policy("the policy").await.expect("notes");
        let about_to = intents::intent("somebody", "the policy", "another");
        store.note_intent(&about_to).await.expect("notes");
        append(&store, 0..count - 10, MARK).await.expect("stores");
        store.seal().await.expect("seals").expect("moved");
        let further = RingMark {
            position: 2 * MARK.position,
            ..MARK
        };
        append(&store, count - 10..count, further).await.expect("stores");
        self.write_back().await;
        store
    }

    /// Has all that was committed written to the file itself, and nobody go by what they remember of it.
    async fn write_back(&self) {
        let options = connections::writing(&self.file(), Durability::default());
        let mut connection = SqliteConnection::connect_with(&options).await.expect("opens");
        sqlx::raw_sql("UPDATE trail SET stored = stored; PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&mut connection)
            .await
            .expect("written back");
        connection.close().await.expect("closes");
    }

    fn overwrite(&self, pages: std::ops::Range<u64>) {
        let file = OpenOptions::new().write(true).open(self.file()).expect("opens");
        for page in pages {
            file.write_all_at(&[0xa5; PAGE as usize], page * PAGE)
                .expect("writes");
        }
    }

    fn pages(&self) -> u64 {
        fs::metadata(self.file()).expect("exists").len() / PAGE
    }

    fn aside(&self) -> Vec<PathBuf> {
        damaged_beside(&self.file()).expect("reads")
    }

    fn kept(&self) -> u64 {
        Keys::kept(&self.keys()).expect("reads")
    }
}

async fn append(store: &Store, numbers: std::ops::Range<u64>, mark: RingMark) -> Result<(), StoreError> {
    let entries: Vec<Entry> = records(numbers).into_iter().map(Entry::Decision).collect();
    store.append(&entries, Some(mark)).await
}

/// What the new file must be like, in whatever way the one before was damaged.
async fn goes_on(world: &World, store: &Store, before: Uuid) {
    let head = store.head().await.expect("a chain");
    assert!(head.writer != before && head.seq == 0, "{head:?}");
    append(store, 500..520, MARK).await.expect("stores");
    assert!(store.seal().await.expect("nothing is told twice").is_some());
    assert_eq!(all(store, &Filter::default()).await.len(), 20);
    assert_eq!((world.aside().len(), store.damaged().expect("reads")), (1, 1));
}

#[tokio::test]
async fn a_file_that_was_damaged_meanwhile_is_put_aside_whole_at_the_start() {
    type Damage = fn(&World);
    let ways: [(&str, Damage); 3] = [
        ("no database", |world| world.overwrite(0..1)),
        ("its end is missing", |world| {
            let file = OpenOptions::new().write(true).open(world.file()).expect("opens");
            file.set_len((world.pages() / 2) * PAGE).expect("cuts");
        }),
        ("nothing is left", |world| {
            fs::write(world.file(), "").expect("empties");
        }),
    ];
    for (what, damage) in ways {
        let world = World::new();
        let store = world.begun(300).await;
        let before = store.head().await.expect("a chain").writer;
        store.close().await.expect("closes");
        damage(&world);
        fs::set_permissions(world.file(), fs::Permissions::from_mode(0o640)).expect("chmod");
        let content = fs::read(world.file()).expect("reads");

        let store = world.open().await;
        let aside = world.aside();
        assert_eq!(aside.len(), 1, "{what}");
        assert_eq!(fs::read(&aside[0]).expect("reads"), content, "{what}");
        let mode = fs::metadata(&aside[0]).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o640, "{what}");
        // All that was signed; what came later only the file would know.
        assert_eq!((store.lost_to_damage(), world.kept()), (290, 1), "{what}");
        goes_on(&world, &store, before).await;
        store.close().await.expect("closes");
        // It is seen to once.
        let store = world.open().await;
        assert_eq!((world.aside().len(), store.lost_to_damage()), (1, 0), "{what}");
        assert_eq!(store.head().await.expect("a chain").seq, 20, "{what}");
    }
}

#[tokio::test]
async fn an_emptied_file_keeps_the_log_that_it_left() {
    let world = World::new();
    let store = world.open().await;
    append(&store, 0..20, MARK).await.expect("stores");
    let log = aside::beside(&world.file(), "-wal");
    let content = fs::read(&log).expect("a log");
    store.close().await.expect("closes");
    // As after a crash, and before anybody signed anything.
    fs::write(&log, &content).expect("writes");
    fs::write(world.file(), "").expect("empties");
    let store = world.open().await;
    let aside = world.aside();
    assert_eq!(
        fs::read(aside::beside(&aside[0], "-wal")).expect("aside"),
        content
    );
    append(&store, 20..30, MARK).await.expect("stores");
    assert_eq!(all(&store, &Filter::default()).await.len(), 10);
}

#[tokio::test]
async fn what_is_not_committed_when_the_file_is_damaged_is_stored_once_in_a_new_one() {
    let world = World::new();
    let store = world.begun(300).await;
    // Connections that know the old file.
    assert_eq!(all(&store, &Filter::default()).await.len(), 300);
    let before = store.head().await.expect("a chain");
    world.write_back().await;
    world.overwrite(1..world.pages());
    let next = RingMark {
        position: 3 * MARK.position,
        ..MARK
    };
    append(&store, 300..310, next)
        .await
        .expect("stored, in a new file");
    let head = store.head().await.expect("a chain");
    assert!(head.writer != before.writer && head.seq == 10, "{head:?}");
    assert_eq!(store.ring_mark().await.expect("reads"), Some(next));
    assert_eq!(all(&store, &Filter::default()).await, {
        let mut stored = records(300..310);
        stored.reverse();
        stored
    });
    // To the last one, also of those that nobody had signed: this process had counted them.
    let lost = PutAside {
        files: 1,
        records: 300,
    };
    assert_eq!(store.put_aside(), lost);
    let noted = Keys::noted(&world.keys()).expect("reads");
    let testimony = noted.iter().find(|noted| noted.hash == before.hash);
    assert_eq!(
        testimony.map(|noted| (noted.writer, noted.seq)),
        Some((before.writer, 300))
    );
    assert_eq!((world.kept(), world.aside().len()), (1, 1));
    assert!(store.seal().await.expect("nothing more is told").is_some());

    // A disk that damages all that it is given is not filled with that.
    world.write_back().await;
    world.overwrite(1..world.pages());
    let refused = append(&store, 310..320, next).await.expect_err("waits");
    assert!(refused.is_damage(), "{refused}");
    assert!(crate::audit::store::SinkError::is_transient(&refused));
    assert_eq!(world.aside().len(), 1);
}

#[tokio::test]
async fn what_can_be_read_of_a_damaged_file_goes_over() {
    let world = World::new();
    let store = world.begun(3000).await;
    let names = [Named {
        kind: Kind::Identity,
        number: 7,
        text: Arc::from("spiffe://hanzo.ai/hanzo-k8s/hanzo/gateway"),
    }];
    store.remember(&names).await.expect("remembers");
    world.write_back().await;
    world.overwrite(first_leaf(&world).await..world.pages());
    let marked = store.ring_mark().await.expect("reads");
    let settings = Settings {
        retention_days: Some(1),
        ..world.settings.clone()
    };
    store.close().await.expect("closes");
    // Who makes room comes upon it.
    let store = Store::open(settings).await.expect("opens");
    store.prune().await.expect("goes on");
    assert_eq!((world.aside().len(), store.lost_to_damage()), (1, 3000));
    assert_eq!(store.ring_mark().await.expect("reads"), marked);
    assert_eq!(
        store.policy_told().await.expect("reads").as_deref(),
        Some("the policy")
    );
    let begun = store.intents().await.expect("reads");
    assert_eq!(begun.len(), 1);
    let of = |intent: &Intent| (intent.caller.to_string(), intent.from.clone(), intent.to.clone());
    let noted = intents::intent("somebody", "the policy", "another");
    assert_eq!(of(&begun[0]), of(&noted));
    assert_eq!(store.remembered(10).await.expect("reads"), names);
}

#[tokio::test]
async fn a_change_is_noted_in_a_new_file_where_the_old_one_is_damaged() {
    let world = World::new();
    let store = world.begun(300).await;
    world.write_back().await;
    world.overwrite(1..world.pages());
    let next = intents::intent("another", "another", "a third");
    store.note_intent(&next).await.expect("noted, in a new file");
    assert_eq!(world.aside().len(), 1);
    let begun = store.intents().await.expect("reads");
    assert!(begun.contains(&next), "{begun:?}");
}

/// The first of the pages that records are on, counted from 0.
async fn first_leaf(world: &World) -> u64 {
    let mut connection = SqliteConnection::connect_with(&connections::reading(&world.file()))
        .await
        .expect("opens");
    let root: i64 = sqlx::query_scalar("SELECT rootpage FROM sqlite_schema WHERE name = 'record'")
        .fetch_one(&mut connection)
        .await
        .expect("a table");
    let content = fs::read(world.file()).expect("reads");
    let page = &content[(root as usize - 1) * PAGE as usize..][..PAGE as usize];
    // An interior page of a table: its first cell begins with the number of the leftmost page.
    assert_eq!(page[0], 5, "more than one page of records");
    let cell = usize::from(u16::from_be_bytes([page[12], page[13]]));
    let leaf = u32::from_be_bytes(page[cell..cell + 4].try_into().expect("four bytes"));
    u64::from(leaf) - 1
}

#[tokio::test]
async fn a_question_that_comes_upon_a_damaged_page_fails_and_moves_nothing() {
    let world = World::new();
    let store = world.begun(3000).await;
    let leaf = first_leaf(&world).await;
    world.overwrite(leaf..leaf + 1);
    let mut cursor = None;
    let error = loop {
        match store.query(&Filter::default(), cursor, 500).await {
            Ok(page) => cursor = Some(page.next.expect("the damaged page is still to come")),
            Err(error) => break error,
        }
    };
    assert!(error.is_damage(), "{error}");
    append(&store, 3000..3010, MARK)
        .await
        .expect("stored all the same");
    assert_eq!(store.head().await.expect("a chain").seq, 3010);
    assert!(store.seal().await.expect("signed all the same").is_some());
    assert_eq!((world.aside().len(), store.lost_to_damage()), (0, 0));
}

#[tokio::test]
async fn a_file_that_was_never_ours_stays_where_it_is() {
    let world = World::new();
    fs::create_dir_all(world.file().parent().expect("a directory")).expect("makes");
    fs::write(world.file(), "root:x:0:0::/root:/bin/sh\n".repeat(100)).expect("writes");
    let error = Store::open(world.settings.clone()).await.expect_err("refused");
    assert!(
        error.is_damage() && error.to_string().contains("audit.db"),
        "{error}"
    );
    assert!(world.aside().is_empty() && world.file().exists());
}
