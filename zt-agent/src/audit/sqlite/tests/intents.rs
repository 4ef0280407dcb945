// SPDX-License-Identifier: Apache-2.0
//! Changes of policy that are noted before they are made.

use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::super::intents as notes;
use super::*;
use crate::audit::convert::{PolicyChange, from_policy_change};
use crate::audit::intent::{Intent, Progress};
use crate::audit::sample::context;

pub(in crate::audit::sqlite) fn intent(caller: &str, from: &str, to: &str) -> Intent {
    Intent {
        id: Uuid::now_v7(),
        progress: Progress::Begun,
        run: 1,
        at: Timestamp(1_772_000_000_000_000_000),
        caller: Arc::from(caller),
        policy: "p".to_owned(),
        before: None,
        after: Some("of p".to_owned()),
        from: from.to_owned(),
        to: to.to_owned(),
        diff: json!({ "added": ["something"] }),
    }
}

/// The record of a change; of one that was not noted it has an id of its own.
fn told(number: u128, of: &Intent, noted: Option<Uuid>) -> Entry {
    told_with(number, of, noted, &[])
}

/// The same, which tells of what was begun besides.
fn told_with(number: u128, of: &Intent, noted: Option<Uuid>, begun: &[&Intent]) -> Entry {
    let change = PolicyChange {
        caller: Arc::clone(&of.caller),
        from: Some(Arc::from(&*of.from)),
        to: Arc::from(&*of.to),
        diff: json!(null),
        revision: 1,
        in_force: true,
        begun: begun.iter().copied().cloned().collect(),
        noted,
    };
    from_policy_change(
        change,
        &context(),
        Timestamp(number as i64),
        Uuid::from_u128(number),
    )
}

async fn note(store: &Store, intent: &Intent) -> Uuid {
    store.note_intent(intent).await.expect("notes");
    intent.id
}

async fn noted(store: &Store) -> Vec<Uuid> {
    let intents = store.intents().await.expect("reads");
    intents.into_iter().map(|intent| intent.id).collect()
}

async fn mark(store: &Store, id: Uuid, progress: Progress) {
    store.mark_intent(id, progress).await.expect("marks");
}

async fn stored(store: &Store) -> u64 {
    store.totals().await.expect("totals").stored
}

#[tokio::test]
async fn a_note_lasts_until_the_record_of_its_change_is_stored_and_goes_with_it() {
    let (directory, store) = store().await;
    let mine = intent("somebody", "a", "b");
    let first = note(&store, &mine).await;
    let other = note(&store, &intent("another", "a", "b")).await;
    store.close().await.expect("closes");
    let store = Store::open(settings(&directory)).await.expect("opens");
    assert_eq!(store.intents().await.expect("reads")[0], mine);

    // What is no record of it leaves it, whatever it says; what is not stored does too.
    store.append(&[told(1, &mine, None)], None).await.expect("stores");
    store.meddle(REFUSE).await;
    let record = [told(4, &mine, Some(first))];
    assert!(store.append(&record, None).await.is_err());
    store.meddle(TAKE_AGAIN).await;
    assert_eq!(noted(&store).await, [first, other]);

    store.append(&record, None).await.expect("stores");
    assert_eq!(noted(&store).await, [other]);
    store.forget_intent(other).await.expect("forgets");
    assert!(noted(&store).await.is_empty());
}

#[tokio::test]
async fn a_change_has_one_record_however_often_it_is_handed_over_and_no_note_after_that() {
    let (directory, store) = store().await;
    let mine = intent("somebody", "a", "b");
    let id = note(&store, &mine).await;
    let both = [
        told(1, &mine, Some(id)),
        told(2, &mine, Some(id)),
        told(3, &mine, None),
    ];
    store.append(&both, None).await.expect("stores");
    assert_eq!(stored(&store).await, 2);
    // As a note that took long to be written, and comes after the record of what was made without it.
    note(&store, &mine).await;
    assert!(noted(&store).await.is_empty(), "it has its record");
    store.close().await.expect("closes");
    let store = Store::open(settings(&directory)).await.expect("opens");
    store
        .append(&[told(4, &mine, Some(id))], None)
        .await
        .expect("nothing is left to store");
    note(&store, &mine).await;
    assert_eq!((stored(&store).await, noted(&store).await), (2, Vec::new()));
    let page = store.query(&Filter::default(), None, 10).await.expect("answers");
    let ids: Vec<Uuid> = page.records.iter().map(|kept| kept.entry.id()).collect();
    assert!(ids.contains(&id), "the record has the id of the note: {ids:?}");
}

#[tokio::test]
async fn the_notes_that_a_record_tells_of_go_with_it() {
    let (_directory, store) = store().await;
    let mine = intent("somebody", "a", "b");
    let other = intent("another", "a", "b");
    note(&store, &mine).await;
    note(&store, &other).await;
    let third = note(&store, &intent("a third", "a", "b")).await;
    store.meddle(REFUSE).await;
    let both = [told_with(1, &mine, None, &[&mine, &other])];
    assert!(store.append(&both, None).await.is_err());
    store.meddle(TAKE_AGAIN).await;
    assert_eq!(noted(&store).await, [mine.id, other.id, third]);
    store.append(&both, None).await.expect("stores");
    assert_eq!(noted(&store).await, [third]);
    // They are told.
    note(&store, &other).await;
    store
        .append(&[told(2, &mine, Some(mine.id))], None)
        .await
        .expect("nothing is left to store");
    assert_eq!((stored(&store).await, noted(&store).await), (1, vec![third]));
}

#[tokio::test]
async fn as_many_records_are_known_of_as_may_be_under_way() {
    let (_directory, store) = store().await;
    let mine = intent("somebody", "a", "b");
    let records: Vec<Entry> = (1..=1500).map(|number| told(number, &mine, None)).collect();
    store.append(&records, None).await.expect("stores");
    let mut writer = store.writing().await.expect("its turn");
    let known = notes::remembered(&mut writer.connection).await.expect("reads");
    assert_eq!(
        (known.len(), known[0], known[999]),
        (1000, Uuid::from_u128(501), Uuid::from_u128(1500))
    );
}

#[tokio::test]
async fn who_tries_again_leaves_one_note_of_what_nothing_was_heard_of() {
    let (_directory, store) = store().await;
    let again = || intent("somebody", "a", "b");
    let mut last = Uuid::nil();
    for _ in 1..=5 {
        last = note(&store, &again()).await;
    }
    // Of another run: that is told at the start.
    let earlier = Intent { run: 0, ..again() };
    let earlier = note(&store, &earlier).await;
    let other = note(&store, &intent("another", "a", "b")).await;
    assert_eq!(noted(&store).await, [last, earlier, other]);
    // What may be made yet is another one's business, and so is what was made.
    mark(&store, last, Progress::Doubtful).await;
    let made = note(&store, &again()).await;
    assert_eq!(noted(&store).await, [last, earlier, other, made]);
    // What was gone on from was made.
    let back = note(&store, &intent("somebody", "b", "a")).await;
    let newest = note(&store, &again()).await;
    assert_eq!(noted(&store).await, [last, earlier, other, made, back, newest]);
}

#[tokio::test]
async fn marks_last_and_what_was_made_shows_what_was_not() {
    let (directory, store) = store().await;
    let begun = |before: Option<&str>, after: &str, to: &str| Intent {
        before: before.map(str::to_owned),
        after: Some(after.to_owned()),
        ..intent("somebody", "a", to)
    };
    let made = note(&store, &begun(Some("x"), "y", "b")).await;
    mark(&store, made, Progress::Made).await;
    let lost = note(&store, &begun(Some("x"), "z", "c")).await;
    mark(&store, lost, Progress::Doubtful).await;
    let new = note(&store, &begun(None, "z", "d")).await;
    let elsewhere = Intent {
        policy: "q".to_owned(),
        ..begun(Some("x"), "z", "c")
    };
    let elsewhere = note(&store, &elsewhere).await;
    let gone_on = note(&store, &begun(Some("x"), "w", "e")).await;
    let from_there = Intent {
        from: "e".to_owned(),
        ..begun(Some("w"), "v", "f")
    };
    let from_there = note(&store, &from_there).await;
    // It found the policy as `lost` had, so that this was not made; and it went on from nothing.
    let next = note(&store, &begun(Some("x"), "u", "g")).await;
    mark(&store, next, Progress::Made).await;
    assert_eq!(
        noted(&store).await,
        [made, new, elsewhere, gone_on, from_there, next]
    );
    store.close().await.expect("closes");
    let store = Store::open(settings(&directory)).await.expect("opens");
    let marked = store.intents().await.expect("reads");
    let marked: Vec<Uuid> = marked
        .iter()
        .filter(|intent| intent.progress == Progress::Made)
        .map(|intent| intent.id)
        .collect();
    assert_eq!(marked, [made, next]);
    // Of what is not noted there is nothing to mark.
    mark(&store, lost, Progress::Made).await;
    assert!(!noted(&store).await.contains(&lost));
}

/// What an agent before this one does in a file, whether this one has had it or not.
const OLDER: &str = "
CREATE TABLE IF NOT EXISTS policy_intent (
    row INTEGER PRIMARY KEY, run INTEGER NOT NULL, at INTEGER NOT NULL, caller TEXT NOT NULL, policy TEXT NOT NULL,
    policy_before TEXT, policy_after TEXT, from_digest TEXT NOT NULL, to_digest TEXT NOT NULL, diff TEXT NOT NULL
) STRICT;
INSERT INTO policy_intent VALUES (7, 1, 2, 'somebody', 'p', NULL, 'of p', 'a', 'b', '{}'),
                                 (9, 1, 3, 'another', 'p', 'of p', NULL, 'b', 'a', '{}');
";

#[tokio::test]
async fn what_an_earlier_agent_noted_is_gone_on_with() {
    let (directory, store) = store().await;
    let before = note(&store, &intent("a first", "x", "a")).await;
    // It takes over, and does as it always did.
    store.meddle(OLDER).await;
    let mut writer = store.writing().await.expect("its turn");
    // As it is read from a file that is damaged.
    let found = notes::older(&mut writer.connection).await.expect("reads");
    assert_eq!(
        (found.len(), &*found[0].caller, found[1].at),
        (2, "somebody", Timestamp(3))
    );
    drop(writer);
    store.close().await.expect("closes");

    let store = Store::open(settings(&directory)).await.expect("opens");
    let found = store.intents().await.expect("reads");
    let ids = noted(&store).await;
    assert_eq!((ids.len(), ids[0]), (3, before));
    assert!(ids[1] != ids[2] && found.iter().all(|intent| intent.progress == Progress::Begun));
    assert_eq!(
        (&*found[2].caller, found[2].before.as_deref(), &found[2].after),
        ("another", Some("of p"), &None)
    );
    assert_eq!(noted(&store).await, ids, "each has its id for good");
    let mut writer = store.writing().await.expect("its turn");
    let left = notes::older(&mut writer.connection).await.expect("reads");
    assert!(left.is_empty(), "none comes twice");
    drop(writer);
    mark(&store, ids[2], Progress::Made).await;
    let newer = note(&store, &intent("a third", "a", "c")).await;
    store
        .append(
            &[told(1, &found[0], Some(ids[0])), told(2, &found[1], Some(ids[1]))],
            None,
        )
        .await
        .expect("stores");
    // Once more, and back again.
    store.meddle(OLDER).await;
    store.close().await.expect("closes");
    let store = Store::open(settings(&directory)).await.expect("opens");
    let found = store.intents().await.expect("reads");
    let told: Vec<(Uuid, Progress)> = found.iter().map(|intent| (intent.id, intent.progress)).collect();
    assert_eq!(told[..2], [(ids[2], Progress::Made), (newer, Progress::Begun)]);
    assert_eq!(
        (found.len(), &*found[2].caller, &*found[3].caller),
        (4, "somebody", "another")
    );
    assert!(!ids.contains(&told[2].0));
}

#[tokio::test]
async fn a_note_whose_difference_is_damaged_says_all_else() {
    let (_directory, store) = store().await;
    let mine = intent("somebody", "a", "b");
    note(&store, &mine).await;
    store.meddle("UPDATE policy_change_note SET diff = '{'").await;
    let wanted = Intent {
        diff: json!(null),
        ..mine
    };
    assert_eq!(store.intents().await.expect("reads"), [wanted]);
}
