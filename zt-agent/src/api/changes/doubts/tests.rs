// SPDX-License-Identifier: Apache-2.0
//! What became of a change, by what there is to see.

use uuid::Uuid;

use super::*;
use crate::audit::record::Timestamp;

fn intent(before: Option<&str>, after: Option<&str>, (from, to): (&str, &str), progress: Progress) -> Intent {
    Intent {
        id: Uuid::now_v7(),
        progress,
        run: 1,
        at: Timestamp(1),
        caller: Arc::from("somebody"),
        policy: "p".to_owned(),
        before: before.map(str::to_owned),
        after: after.map(str::to_owned),
        from: from.to_owned(),
        to: to.to_owned(),
        diff: serde_json::Value::Null,
    }
}

/// As files tell: not whose they are.
fn in_files<'s>(here: Option<&'s str>, there: Option<&'s str>, is_told: bool) -> Seen<'s> {
    Seen {
        here,
        there: Some((there, None)),
        is_told,
        is_followed: false,
        may_arrive: false,
    }
}

#[test]
fn what_became_of_a_change_is_told_by_what_is_there() {
    let (a, b, c) = (Some("a"), Some("b"), Some("c"));
    for (change, here, there, is_told, wanted) in [
        ((a, b), b, b, false, Fate::Made),
        ((None, b), b, b, false, Fate::Made),
        ((a, None), None, None, false, Fate::Made),
        // It waits for other documents, or the policy in force is a copy.
        ((a, b), a, b, true, Fate::Made),
        ((a, b), a, b, false, Fate::Made),
        ((a, b), a, a, true, Fate::NotMade),
        ((a, b), a, a, false, Fate::NotMade),
        ((None, b), None, None, false, Fate::NotMade),
        // It has no record, whoever has told of what is there.
        ((a, b), b, b, true, Fate::Made),
        ((a, b), c, c, true, Fate::Made),
        ((a, b), c, c, false, Fate::Unclear),
        ((a, b), None, None, false, Fate::Unclear),
    ] {
        let intent = intent(change.0, change.1, ("from", "to"), Progress::Begun);
        let seen = in_files(here, there, is_told);
        assert_eq!(fate(&intent, seen), wanted, "{intent:?} {seen:?}");
        let followed = Seen {
            is_followed: true,
            ..seen
        };
        assert_eq!(fate(&intent, followed), Fate::Made);
    }
}

#[test]
fn what_is_marked_as_made_was_whatever_is_there() {
    let (a, b, c) = (Some("a"), Some("b"), Some("c"));
    let made = intent(a, b, ("from", "to"), Progress::Made);
    for (here, there) in [(a, a), (b, b), (c, c), (a, b), (None, None)] {
        for is_told in [false, true] {
            let seen = in_files(here, there, is_told);
            assert_eq!(fate(&made, seen), Fate::Made, "{seen:?}");
            let unseen = Seen { there: None, ..seen };
            assert_eq!(fate(&made, unseen), Fate::Made, "{unseen:?}");
        }
    }
}

#[test]
fn what_cannot_be_seen_is_open_until_it_can() {
    let (a, b, c) = (Some("a"), Some("b"), Some("c"));
    for progress in [Progress::Begun, Progress::Doubtful] {
        let intent = intent(a, b, ("from", "to"), progress);
        for (here, is_told, wanted) in [
            (a, true, Fate::Open),
            (a, false, Fate::Open),
            (b, true, Fate::Open),
            (c, true, Fate::Open),
            // Something has to be told now.
            (b, false, Fate::Unclear),
            (c, false, Fate::Unclear),
        ] {
            let seen = Seen {
                there: None,
                ..in_files(here, None, is_told)
            };
            assert_eq!(fate(&intent, seen), wanted, "{intent:?} {seen:?}");
        }
    }
}

#[test]
fn what_somebody_else_wrote_is_not_taken_for_a_change_and_what_was_sent_may_arrive() {
    let (a, b, c) = (Some("a"), Some("b"), Some("c"));
    for progress in [Progress::Begun, Progress::Doubtful] {
        let intent = intent(a, b, ("from", "to"), progress);
        for (here, there, is_its, is_told, may_arrive, wanted) in [
            // Its mark is there, also where somebody has changed it since.
            (a, b, true, true, true, Fate::Made),
            (b, b, true, true, false, Fate::Made),
            (c, c, true, true, false, Fate::Made),
            // All is as it was: for a while that says nothing.
            (a, a, false, true, true, Fate::Open),
            (a, a, false, true, false, Fate::NotMade),
            (c, a, false, true, true, Fate::Open),
            // Somebody else did the same, which is told, or will be.
            (b, b, false, true, true, Fate::NotMade),
            (a, b, false, true, true, Fate::Open),
            (b, b, false, false, false, Fate::Unclear),
            (c, c, false, true, true, Fate::NotMade),
            (c, c, false, false, true, Fate::Unclear),
        ] {
            let seen = Seen {
                there: Some((there, Some(is_its))),
                may_arrive,
                ..in_files(here, None, is_told)
            };
            assert_eq!(fate(&intent, seen), wanted, "{intent:?} {seen:?}");
        }
    }
}

#[test]
fn what_seemed_to_fail_and_is_told_as_another_s_was_not_made() {
    let (a, b) = (Some("a"), Some("b"));
    let doubtful = intent(a, b, ("from", "to"), Progress::Doubtful);
    assert_eq!(fate(&doubtful, in_files(b, b, true)), Fate::NotMade);
    assert_eq!(fate(&doubtful, in_files(a, a, true)), Fate::NotMade);
    assert_eq!(fate(&doubtful, in_files(b, b, false)), Fate::Unclear);
    assert_eq!(
        fate(&doubtful, in_files(a, b, true)),
        Fate::Open,
        "the record of that names it"
    );
    // What is to go leaves nothing that says whose doing that was, and may go yet.
    let gone = intent(a, None, ("from", "to"), Progress::Begun);
    let unseen = Seen {
        may_arrive: true,
        ..in_files(a, a, true)
    };
    assert_eq!(fate(&gone, unseen), Fate::Open);
}

#[test]
fn what_a_later_change_went_on_from_was_made() {
    let noted: Vec<Intent> = [("a", "b"), ("b", "c"), ("x", "a"), ("c", "b"), ("b", "d")]
        .into_iter()
        .map(|ends| intent(None, None, ends, Progress::Begun))
        .collect();
    // What comes before it does not show that.
    assert_eq!(followed(&noted), [true, true, false, true, false]);
}
