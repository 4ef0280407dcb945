// SPDX-License-Identifier: Apache-2.0
//! Changes of policy that are noted before they are made.

use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::audit::convert::{PolicyChange, from_policy_change};
use crate::audit::intent::{Intended, Intent};
use crate::audit::sample::context;

pub(in crate::audit::sqlite) fn intent(caller: &str, from: &str, to: &str) -> Intent {
    Intent {
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

/// The record of a change.
fn told(number: u128, caller: &str, from: &str, to: &str) -> Entry {
    let change = PolicyChange {
        caller: Arc::from(caller),
        from: Some(Arc::from(from)),
        to: Arc::from(to),
        diff: json!(null),
        revision: 1,
        in_force: true,
        begun: Vec::new(),
    };
    from_policy_change(
        change,
        &context(),
        Timestamp(number as i64),
        Uuid::from_u128(number),
    )
}

async fn noted(store: &Store) -> Vec<Intended> {
    let intents = store.intents().await.expect("reads");
    intents.into_iter().map(|(noted, _)| noted).collect()
}

#[tokio::test]
async fn a_note_lasts_until_the_record_of_its_change_is_stored_and_goes_with_it() {
    let (directory, store) = store().await;
    let mine = intent("somebody", "a", "b");
    let note = async |intent: &Intent| store.note_intent(intent).await.expect("notes");
    let first = note(&mine).await;
    // What was gone on from was made.
    let back = note(&intent("somebody", "b", "a")).await;
    let again = note(&mine).await;
    let other = note(&intent("another", "a", "b")).await;
    store.close().await.expect("closes");
    let store = Store::open(settings(&directory)).await.expect("opens");
    assert_eq!(store.intents().await.expect("reads")[0], (first, mine));

    // What is no record of it leaves it; what is not stored does too.
    let others = [
        told(1, "another", "b", "a"),
        told(2, "somebody", "a", "c"),
        told(3, "a third", "a", "b"),
    ];
    store.append(&others, None).await.expect("stores");
    store.meddle(REFUSE).await;
    let record = [told(4, "somebody", "a", "b")];
    assert!(store.append(&record, None).await.is_err());
    store.meddle(TAKE_AGAIN).await;
    assert_eq!(noted(&store).await, [first, back, again, other]);

    // One record is of one change.
    store.append(&record, None).await.expect("stores");
    assert_eq!(noted(&store).await, [back, again, other]);
    store.forget_intent(other).await.expect("forgets");
    store.forget_intent(back).await.expect("forgets");
    assert_eq!(noted(&store).await, [again]);
    let both = [told(5, "somebody", "a", "b"), told(6, "somebody", "a", "b")];
    store.append(&both, None).await.expect("stores");
    assert!(noted(&store).await.is_empty());
}

#[tokio::test]
async fn who_tries_again_leaves_one_note() {
    let (_directory, store) = store().await;
    let mut last = None;
    for time in 1..=5 {
        let tried = Intent {
            at: Timestamp(time),
            ..intent("somebody", "a", "b")
        };
        last = Some(store.note_intent(&tried).await.expect("notes"));
    }
    // Of another run: that is told at the start.
    let earlier = Intent {
        run: 0,
        ..intent("somebody", "a", "b")
    };
    let earlier = store.note_intent(&earlier).await.expect("notes");
    let other = store
        .note_intent(&intent("another", "a", "b"))
        .await
        .expect("notes");
    assert_eq!(noted(&store).await, [last.expect("noted"), earlier, other]);
}

#[tokio::test]
async fn a_number_that_is_given_again_is_another_note() {
    let (_directory, store) = store().await;
    let first = intent("somebody", "a", "b");
    let old = store.note_intent(&first).await.expect("notes");
    store.forget_intent(old).await.expect("forgets");
    let second = Intent {
        at: Timestamp(first.at.0 + 1),
        ..intent("another", "a", "b")
    };
    let new = store.note_intent(&second).await.expect("notes");
    assert_eq!(old.row, new.row, "the same number");
    store.forget_intent(old).await.expect("nothing to forget");
    store.forget_attempt(&first).await.expect("nothing to forget");
    assert_eq!(noted(&store).await, [new]);
    store.forget_attempt(&second).await.expect("forgets");
    assert!(noted(&store).await.is_empty());
}

#[tokio::test]
async fn a_note_whose_difference_is_damaged_says_all_else() {
    let (_directory, store) = store().await;
    let noted = store
        .note_intent(&intent("somebody", "a", "b"))
        .await
        .expect("notes");
    store.meddle("UPDATE policy_intent SET diff = '{'").await;
    let wanted = Intent {
        diff: json!(null),
        ..intent("somebody", "a", "b")
    };
    assert_eq!(store.intents().await.expect("reads"), [(noted, wanted)]);
}
