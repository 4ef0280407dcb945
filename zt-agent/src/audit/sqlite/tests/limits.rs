// SPDX-License-Identifier: Apache-2.0
//! The limits on space and age.

use super::*;
use crate::audit::seal::{Cause, Gap};

#[tokio::test]
async fn the_oldest_make_room_and_are_counted() {
    let directory = tempfile::tempdir().expect("directory");
    let max_disk_bytes = 3 << 20;
    let store = Store::open(Settings {
        max_disk_bytes,
        ..settings(&directory)
    })
    .await
    .expect("opens");
    let mut pruned = 0;
    for batch in 0..30_u64 {
        let batch: Vec<AuditRecord> = (0..4096)
            .map(|n| record_of(&decision(), u128::from(batch * 4096 + n)))
            .collect();
        keep(&store, &batch).await;
        loop {
            let round = store.prune().await.expect("prunes");
            pruned += round.for_space;
            if !round.more {
                break;
            }
        }
    }
    assert!(pruned > 0);
    let file = std::fs::metadata(store.path()).expect("file").len();
    assert!(file <= max_disk_bytes, "{file}");
    let found = store
        .query(&Filter::default(), None, 1000)
        .await
        .expect("answers");
    assert_eq!(
        found.records.first().map(|record| record.entry.id()),
        Some(record_of(&decision(), 30 * 4096 - 1).id)
    );
    assert_eq!(
        store.totals().await.expect("totals"),
        Totals {
            stored: 30 * 4096,
            pruned
        }
    );
    let kept: (i64,) = sqlx::query_as("SELECT count(*) FROM record")
        .fetch_one(&store.readers)
        .await
        .expect("count");
    assert_eq!(kept.0.cast_unsigned() + pruned, 30 * 4096);
}

#[tokio::test]
async fn retention_is_to_the_record_and_rows_are_never_used_twice() {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(Settings {
        retention_days: Some(1),
        ..settings(&directory)
    })
    .await
    .expect("opens");
    let mut batch = records(0..10);
    let now = crate::audit::clock::now();
    for (hours, record) in (0_i64..).zip(batch.iter_mut().rev()) {
        record.timestamp = Timestamp(now - hours * 5 * 3_600_000_000_000);
    }
    keep(&store, &batch).await;
    assert_eq!(
        store.prune().await.expect("prunes"),
        Pruned {
            for_age: 5,
            for_space: 0,
            more: true
        }
    );
    assert_eq!(store.prune().await.expect("prunes"), Pruned::default());
    assert_eq!(all(&store, &Filter::default()).await.len(), 5);

    let cursor = store
        .query(&Filter::default(), None, 1)
        .await
        .expect("answers")
        .next
        .expect("more");
    assert_eq!(cursor.time, now);
    let (row,): (i64,) = sqlx::query_as("SELECT next_row FROM trail")
        .fetch_one(&store.readers)
        .await
        .expect("row");
    assert_eq!(row, 11);
}

/// What is kept beside records, for the graph and for filters, goes with the last record that it is about.
#[tokio::test]
async fn counts_and_shapes_go_with_the_last_of_their_records() {
    const ROWS: &str =
        "SELECT (SELECT count(*) FROM record), (SELECT count(*) FROM shape), (SELECT count(*) FROM bucket)";
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(Settings {
        retention_days: Some(1),
        ..settings(&directory)
    })
    .await
    .expect("opens");
    let mut batch = records(0..10);
    let now = crate::audit::clock::now();
    for record in &mut batch {
        record.timestamp = Timestamp(now - 48 * 3_600_000_000_000);
    }
    keep(&store, &batch).await;
    let rows = async || -> (i64, i64, i64) {
        sqlx::query_as(ROWS)
            .fetch_one(&store.readers)
            .await
            .expect("counts")
    };
    let (kept, shapes, counts) = rows().await;
    assert!(kept == 10 && shapes > 1 && counts == shapes, "{shapes}, {counts}");
    while store.prune().await.expect("prunes").more {}
    assert_eq!(rows().await, (0, 0, 0));
}

/// Evaluations of made-up parties.
fn evaluations(numbers: std::ops::Range<u64>, time: i64) -> Vec<AuditRecord> {
    numbers
        .map(|number| {
            let mut record = record_of(&decision(), u128::from(number));
            record.hook = Hook::Api;
            record.timestamp = Timestamp(time);
            record.caller = Some(Arc::from("spiffe://hanzo.ai/app/web"));
            record.source.spiffe_id = Some(Arc::from(format!("spiffe://hanzo.ai/made-up/{number:032}")));
            record
        })
        .collect()
}

#[tokio::test]
async fn evaluations_have_a_share_and_push_nothing_recent_out() {
    let directory = tempfile::tempdir().expect("directory");
    let settings = Settings {
        max_disk_bytes: 64 << 20,
        ..settings(&directory)
    };
    let store = Store::open(settings.clone()).await.expect("opens");
    store.limit_evaluations(20);
    let now = crate::audit::clock::now();
    let mut recent = record_of(&decision(), 1);
    recent.timestamp = Timestamp(now);
    keep(&store, std::slice::from_ref(&recent)).await;
    let before = store.used_bytes().await.expect("bytes");
    keep(&store, &evaluations(10..5_010, now)).await;
    assert!(store.takes_evaluations());
    let real = store.used_bytes().await.expect("bytes") - before;
    let estimated: i64 = sqlx::query_scalar("SELECT sum(bytes) FROM evaluations")
        .fetch_one(&store.readers)
        .await
        .expect("sum");
    assert!(
        (real..3 * real).contains(&estimated.cast_unsigned()),
        "{estimated} for {real}"
    );

    let mut next = 10_000;
    while store.takes_evaluations() {
        keep(&store, &evaluations(next..next + 4_000, now)).await;
        next += 4_000;
    }
    // A recent decision stands among them: nothing goes, and evaluations are refused, after a restart too.
    while store.prune().await.expect("prunes").more {}
    assert!(!store.takes_evaluations());
    assert_eq!(store.totals().await.expect("totals").pruned, 0);
    store.close().await.expect("closes");
    let store = Store::open(settings).await.expect("opens again");
    assert!(store.takes_evaluations(), "without a limit");
    store.limit_evaluations(20);
    assert!(!store.takes_evaluations());

    // When it is more than a day old, what stands there makes room.
    sqlx::query("UPDATE record SET time = ? WHERE row = 1")
        .bind(now - 25 * 3_600_000_000_000)
        .execute(&mut store.writer.lock().await.connection)
        .await
        .expect("older");
    let pruned = store.prune().await.expect("prunes");
    assert!(pruned.for_space > 0 && pruned.more, "{pruned:?}");
    assert!(store.takes_evaluations());
}

#[tokio::test]
async fn what_was_signed_and_cannot_be_read_holds_nothing_up() {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(Settings {
        keys: Some(directory.path().join("keys")),
        ..settings(&directory)
    })
    .await
    .expect("opens");
    keep(&store, &records(0..5)).await;
    store.seal().await.expect("signs");
    let shipping = store.shipping().await.expect("is a spool");
    for lost in [1, 4] {
        store
            .lose((lost, lost), None, Cause::SpoolUnreadable, &shipping)
            .await
            .expect("noted");
    }
    let meddling = "
        INSERT INTO gap (first, last, after, cause) VALUES (2, 2, zeroblob(32), 'of_a_later_version');
        INSERT INTO gap (first, last, after, cause, text) VALUES (3, 3, zeroblob(32), 'spool_oldest', 'no JSON');
        INSERT INTO checkpoint (seq, pruned, text) VALUES (3, 0, 'no JSON');
        INSERT INTO signing_key (key, text) VALUES ('one more', 'no JSON')";
    store.meddle(meddling).await;
    let firsts = |gaps: Vec<(i64, Gap)>| gaps.iter().map(|(_, gap)| gap.first).collect::<Vec<_>>();
    let stated = store.stated_gaps(u64::MAX).await.expect("states");
    let rows: Vec<i64> = stated.iter().map(|(row, _)| *row).collect();
    assert_eq!(firsts(stated), [1, 4]);
    store.gaps_shipped(&rows, 1).await.expect("noted");
    assert_eq!(store.stated_gaps(u64::MAX).await.expect("states"), []);
    assert_eq!(store.checkpoints_after(0, 5).await.expect("reads").len(), 1);
    assert_eq!(store.signing_keys().await.expect("reads").len(), 1);
    // The version that is started next may know them.
    store.shipping().await.expect("is a spool");
    store
        .meddle("UPDATE gap SET cause = 'spool_oldest' WHERE first = 2")
        .await;
    assert_eq!(firsts(store.stated_gaps(u64::MAX).await.expect("states")), [2]);
}
