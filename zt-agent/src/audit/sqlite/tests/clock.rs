// SPDX-License-Identifier: Apache-2.0
//! A clock that is set while records come: an hour back, and then a day ahead. Their places in the chain are those in which they
//! came, answers are in the order of their times, and nothing goes before its time.

use super::*;

const SECOND: i64 = 1_000_000_000;
const HOUR: i64 = 3600 * SECOND;
const EACH: i64 = 200;

/// Records a second apart by a clock that is set twice.
fn by_a_clock_that_is_set() -> Vec<AuditRecord> {
    let mut records = records(0..3 * EACH.unsigned_abs());
    for (number, record) in (0_i64..).zip(&mut records) {
        let set_by = match number / EACH {
            0 => 0,
            1 => -HOUR,
            _ => 23 * HOUR,
        };
        record.timestamp.0 += set_by;
    }
    records
}

/// Answers are in this order.
fn newest_first(mut records: Vec<AuditRecord>) -> Vec<AuditRecord> {
    records.sort_by_key(|record| std::cmp::Reverse((record.timestamp, record.id)));
    records
}

async fn world(keys: bool) -> (TempDir, Store, Vec<AuditRecord>) {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(Settings {
        keys: keys.then(|| directory.path().join("keys")),
        ..settings(&directory)
    });
    let store = store.await.expect("opens");
    let records = by_a_clock_that_is_set();
    for batch in records.chunks(37) {
        keep(&store, batch).await;
        if keys {
            store.seal().await.expect("seals").expect("moved");
        }
    }
    (directory, store, records)
}

#[tokio::test]
async fn pages_are_by_time_and_have_each_record_once() {
    let (_directory, store, records) = world(false).await;
    assert_eq!(
        all(&store, &Filter::default()).await,
        newest_first(records.clone())
    );
    let begin = records[0].timestamp.0;
    for (since, until) in [
        (begin - HOUR, begin),
        (begin, begin + HOUR),
        (begin + HOUR, begin + 48 * HOUR),
        (begin - HOUR + 250 * SECOND, begin + 100 * SECOND),
    ] {
        let filter = Filter {
            since: Some(Timestamp(since)),
            until: Some(Timestamp(until)),
            ..Filter::default()
        };
        let mut wanted = newest_first(records.clone());
        wanted.retain(|record| (since..until).contains(&record.timestamp.0));
        assert!(!wanted.is_empty());
        assert_eq!(all(&store, &filter).await, wanted);
    }
}

#[tokio::test]
async fn the_chain_goes_on_and_only_what_is_old_goes() {
    let (directory, store, records) = world(true).await;
    let head = store.head().await.expect("a chain");
    assert_eq!(head.seq, records.len() as u64);
    let checkpoint = store.last_checkpoint().await.expect("reads").expect("signed");
    assert_eq!((checkpoint.seq, checkpoint.hash), (head.seq, head.hash));
    // The first have times behind those of the next, and stand before them.
    let cutoff = records[0].timestamp.0 + 50 * SECOND;
    let gone = store.prune_before(Timestamp(cutoff)).await.expect("prunes");
    assert_eq!(gone, 50);
    let mut left = records.clone();
    left.drain(..50);
    assert_eq!(all(&store, &Filter::default()).await, newest_first(left));
    store.close().await.expect("closes");
    let store = Store::open(Settings {
        keys: Some(directory.path().join("keys")),
        ..settings(&directory)
    });
    let store = store.await.expect("opens");
    keep(&store, &records[..1]).await;
    assert!(store.seal().await.expect("goes on").is_some());
}
