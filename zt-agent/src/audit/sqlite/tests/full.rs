// SPDX-License-Identifier: Apache-2.0
//! There is no room for what comes, and then there is again.

use super::*;

fn entries(numbers: std::ops::Range<u64>) -> Vec<Entry> {
    records(numbers).into_iter().map(Entry::Decision).collect()
}

impl Store {
    /// Leaves the connection as a full disk does: `SQLite` has ended a transaction by itself, and nobody can end it any more.
    async fn strand(&self) {
        let mut writer = self.writer.lock().await;
        let mut transaction = writer
            .connection
            .begin_with("BEGIN IMMEDIATE")
            .await
            .expect("begins");
        sqlx::raw_sql("ROLLBACK")
            .execute(&mut *transaction)
            .await
            .expect("ended");
        transaction.rollback().await.expect_err("there is none");
        let error = writer.connection.begin_with("BEGIN IMMEDIATE").await.map(drop);
        error.expect_err("it counts one that goes on");
    }
}

#[tokio::test]
async fn what_had_no_room_is_taken_whole_when_there_is_some() {
    let (_directory, store) = store().await;
    store.append(&entries(0..10), None).await.expect("kept");
    // No more pages than there are.
    store.meddle("PRAGMA max_page_count = 1").await;
    for _ in 0..3 {
        let error = store.append(&entries(10..3000), None).await.expect_err("no room");
        assert!(error.to_string().contains("full"), "{error}");
        assert!(!error.is_damage(), "{error}");
    }
    store.meddle("PRAGMA max_page_count = 1073741823").await;
    store
        .append(&entries(10..3000), None)
        .await
        .expect("there is room");
    assert_eq!(store.totals().await.expect("totals").stored, 3000);
    assert_eq!(store.head().await.expect("a head").seq, 3000);
    store.close().await.expect("closed");
}

#[tokio::test]
async fn every_way_to_the_file_goes_on_after_a_transaction_that_nobody_can_end() {
    let (_directory, store) = store().await;
    store.append(&entries(0..10), None).await.expect("kept");
    store.strand().await;
    store.append(&entries(10..20), None).await.expect("kept");
    store.strand().await;
    store.prune().await.expect("pruned");
    store.strand().await;
    store.note_policy("abc").await.expect("noted");
    store.strand().await;
    store.shipping().await.expect("read");
    store.strand().await;
    store.remember(&[]).await.expect("remembered");
    store.append(&entries(20..30), None).await.expect("kept");
    assert_eq!(store.totals().await.expect("totals").stored, 30);
    assert_eq!(store.head().await.expect("a head").seq, 30);
    store.close().await.expect("closed");
}
