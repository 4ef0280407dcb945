// SPDX-License-Identifier: Apache-2.0
//! Tampering with what queries and the graph go by: the entries stay as they were.

use super::store::tamper;
use super::*;
use crate::audit::query::HOUR;

/// What is done, and what each finding of it says.
const CHANGES: [(&str, &str); 14] = [
    (
        "UPDATE bucket SET connections = connections + 1 WHERE shape = 1",
        "connections, from",
    ),
    (
        "UPDATE bucket SET connections = 1 WHERE shape = 1",
        "says 1 connections, from",
    ),
    (
        "UPDATE bucket SET first_seen = first_seen + 1 WHERE shape = 1",
        "connections, from",
    ),
    (
        "UPDATE bucket SET last_seen = last_seen - 1 WHERE shape = 1",
        "connections, from",
    ),
    (
        "DELETE FROM bucket WHERE shape = 1",
        "says nothing, and its entries say",
    ),
    (
        "INSERT INTO bucket SELECT shape, hour - 1, 1, first_seen, last_seen FROM bucket WHERE shape = 1",
        "its entries say nothing",
    ),
    (
        "INSERT INTO bucket SELECT 999, hour, 1, first_seen, last_seen FROM bucket WHERE shape = 1",
        "shape 999, which is not there",
    ),
    (
        "UPDATE bucket SET hour = hour - 1 WHERE shape = 1",
        "says nothing, and its entries say",
    ),
    (
        "UPDATE shape SET part = 2 WHERE id = 1",
        "says part 2, and its entries say part 0",
    ),
    (
        "DELETE FROM span WHERE shape = 1",
        "says nothing, and its entries say that it has some of",
    ),
    ("UPDATE segment SET max_time = max_time - 1", "that they are from"),
    ("UPDATE segment SET min_time = max_time", "that they are from"),
    (
        "DELETE FROM segment",
        "says nothing, and its entries say that they are from",
    ),
    (
        "INSERT INTO segment SELECT segment + 7, min_time, max_time FROM segment",
        "says that it has entries",
    ),
];

#[tokio::test]
async fn a_count_that_is_changed_lacks_or_was_made_up_is_named_with_its_edge() {
    let world = World::new().await;
    assert!(world.report(&world.file()).await.is_clean());
    let copy = world.directory.path().join("copy.db");
    for (sql, said) in CHANGES {
        std::fs::copy(world.file(), &copy).expect("copies");
        tamper(&copy, sql).await;
        let report = world.report(&copy).await;
        let miscounts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert!(
            miscounts.iter().any(|finding| finding.contains(said)),
            "{sql}: {miscounts:#?}"
        );
        assert!(world.of_entries(&copy).await.is_empty(), "{sql}: {miscounts:#?}");
    }
    std::fs::copy(world.file(), &copy).expect("copies");
    tamper(&copy, "UPDATE bucket SET connections = 7000 WHERE shape = 1").await;
    let report = world.report(&copy).await;
    let [Finding::Miscounted { what, .. }] = &report.findings[..] else {
        panic!("one finding: {:?}", report.findings)
    };
    // The entry whose shape is the first one.
    let Entry::Decision(record) = entry(0) else {
        panic!("a decision")
    };
    let hour = Timestamp(record.timestamp.0 / HOUR * HOUR);
    for part in [
        record.source.name().to_owned(),
        record.destination.name().to_owned(),
        format!("{}/{}", record.protocol, record.destination.port),
        record.decision.to_string(),
        format!("in the hour from {hour}"),
    ] {
        assert!(what.contains(&part), "{part}: {what}");
    }
}

#[tokio::test]
async fn a_trail_that_was_pruned_is_counted_exactly() {
    let world = World::new().await;
    let store = world.open().await;
    // In the middle of an hour and of a segment, twice, and with a clock that was set back in between.
    store.prune_before(entry(20).timestamp()).await.expect("prunes");
    let back: Vec<Entry> = [7, 3, 9, 1, 30].map(entry).into();
    store.append(&back, None).await.expect("stores");
    store.prune_before(entry(60).timestamp()).await.expect("prunes");
    store.close().await.expect("closes");
    let report = world.report(&world.file()).await;
    assert_eq!(report.findings, [], "after pruning");
    assert!(report.entries < ENTRIES);
    for sql in [
        "UPDATE bucket SET connections = connections - 1",
        "UPDATE bucket SET first_seen = first_seen + 1",
        "UPDATE bucket SET last_seen = last_seen - 1",
    ] {
        let copy = world.directory.path().join("copy.db");
        std::fs::copy(world.file(), &copy).expect("copies");
        tamper(&copy, sql).await;
        assert!(!world.report(&copy).await.is_clean(), "{sql}");
    }
}

#[tokio::test]
async fn what_was_joined_is_added_up() {
    let world = World {
        directory: tempfile::tempdir().expect("directory"),
    };
    let store = world.open().await;
    let mut entries: Vec<Entry> = (0..10).map(entry).collect();
    let mut joined = 0;
    for (entry, count) in entries.iter_mut().zip(1..) {
        if let Entry::Decision(record) = entry {
            record.count = count;
            joined += count - 1;
        }
    }
    store.append(&entries, None).await.expect("stores");
    store.seal().await.expect("seals");
    store.close().await.expect("closes");
    let report = world.report(&world.file()).await;
    assert_eq!((&report.findings[..], report.entries), (&[][..], 10));
    assert_eq!(report.joined, joined);
    let summary = crate::audit::export::summary(&report);
    let wanted = format!("10 entries with {joined} more decisions in their counts, ");
    assert!(summary.starts_with(&wanted), "{summary}");
}
