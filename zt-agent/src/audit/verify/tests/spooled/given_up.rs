// SPDX-License-Identifier: Apache-2.0
//! What a spool gave up stands for is known, and for as long as it must be.

use super::*;

#[tokio::test]
async fn what_was_given_up_is_known_until_the_entries_before_it_have_gone() {
    let mut node = node().await;
    let spool = node.open().await;
    for _ in 0..2 {
        node.give_up(&spool, 3).await;
        node.append(&spool, 2).await;
    }
    let head = spool.store().head().await.expect("reads").seq;
    node.state(&spool, head).await;
    drop(spool);
    node.is_whole("killed before what was shipped had gone").await;
    let spool = node.open().await;
    assert_eq!(spool.store().next_gap(1).await.expect("reads"), Some(16));
    node.ship(&spool, head).await;
    node.state(&spool, head).await;
    assert_eq!(spool.store().next_gap(1).await.expect("reads"), None);
}

#[tokio::test]
async fn what_is_given_up_is_counted_with_all_that_it_stands_for() {
    let mut node = Node::new();
    let spool = node.open().await;
    let mut entries = node.entries(10);
    for entry in &mut entries {
        if let Entry::Decision(record) = entry {
            record.count = 1000;
        }
    }
    spool.append(&entries, None).await.expect("kept");
    node.ship(&spool, 2).await;
    node.drop_oldest(&spool, 7).await;
    let dropped = spool.store().shipping().await.expect("reads").dropped;
    let decisions: u64 = entries[2..7].iter().map(Entry::weight).sum();
    assert!(decisions > 2000, "{decisions}");
    assert_eq!(dropped, decisions);
}
