// SPDX-License-Identifier: Apache-2.0
//! Answers while records wait to be shipped: what this writer has stored is in them, once, wherever it lies.

use std::time::Duration;

use tokio::sync::watch;
use zt_agent::audit::archive::{Archive, Settings};
use zt_agent::audit::query::{Cursor, Filter};
use zt_agent::audit::record::{Entry, Kind, Outcome};
use zt_agent::audit::spool::WhenFull;
use zt_agent::audit::sqlite;
use zt_agent::audit::store::Sink as _;
use zt_tests::entries::Maker;
use zt_tests::postgres::Server;

use super::{maker, ship, today, with_tables};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

async fn open(server: &Server, directory: &tempfile::TempDir) -> Archive {
    let settings = Settings {
        dsn: server.dsn("engine"),
        read_dsn: None,
        maintain_dsn: None,
        spool: directory.path().join("spool.db"),
        max_disk_bytes: 1 << 30,
        api_share: 100,
        when_full: WhenFull::Oldest,
        retention_days: 365,
        keys: None,
        sync: sqlite::Durability::default(),
    };
    Archive::open(settings).await.expect("an archive")
}

/// All records that an archive answers with, page by page, newest first.
async fn all(archive: &Archive, filter: &Filter, limit: u32) -> Vec<Entry> {
    let (mut found, mut cursor): (Vec<Entry>, Option<Cursor>) = (Vec::new(), None);
    loop {
        let page = archive.query(filter, cursor, limit).await.expect("page");
        found.extend(page.records.into_iter().map(|kept| kept.entry));
        match page.next {
            Some(next) => cursor = Some(next),
            None => return found,
        }
    }
}

fn expected(maker: &Maker, number: u64, filter: &Filter) -> Vec<Entry> {
    let mut entries: Vec<Entry> = (0..number).map(|number| maker.entry(number)).collect();
    entries.retain(|entry| filter.takes(entry));
    entries.sort_by_key(|entry| std::cmp::Reverse((entry.timestamp(), entry.id())));
    entries
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_the_spool_is_answered_as_if_it_had_been_shipped() {
    const RECORDS: u64 = 3000;
    let server = with_tables().await;
    let directory = tempfile::tempdir().expect("directory");
    let archive = open(&server, &directory).await;
    let maker = maker(today(), 1_000_003, 12);
    let entries: Vec<Entry> = (0..RECORDS).map(|number| maker.entry(number)).collect();
    archive.append(&entries, None).await.expect("stored");
    let filters = [
        Filter::default(),
        Filter {
            decision: Some(Outcome::Deny),
            ..Filter::default()
        },
        Filter {
            policy: Some("policy_3".to_owned()),
            port: Some(8080),
            ..Filter::default()
        },
        Filter {
            kind: Some(Kind::PolicyChange),
            ..Filter::default()
        },
    ];
    // Nothing ships: all of it waits.
    for filter in &filters {
        let wanted = expected(&maker, RECORDS, filter);
        assert_eq!(all(&archive, filter, 97).await, wanted, "{filter:?}");
    }
    assert_eq!(server.number("SELECT count(*) FROM zt_audit.record").unwrap(), 0);

    // It ships while it is asked for: what was read in the spool and on the server is told once, what left is not missed.
    let (stop, stopping) = watch::channel(false);
    let tasks = archive.start(&stopping);
    let mut shipped = Box::pin(archive.settle());
    let mut rounds = 0;
    loop {
        for filter in &filters {
            let wanted = expected(&maker, RECORDS, filter);
            assert_eq!(
                all(&archive, filter, 211).await,
                wanted,
                "{filter:?}, round {rounds}"
            );
        }
        rounds += 1;
        if tokio::time::timeout(Duration::ZERO, &mut shipped).await.is_ok() {
            break;
        }
        assert!(rounds < 10_000, "nothing is shipped");
    }
    drop(shipped);
    assert_eq!(
        server.number("SELECT count(*) FROM zt_audit.record").unwrap(),
        RECORDS
    );
    for filter in &filters {
        let wanted = expected(&maker, RECORDS, filter);
        assert_eq!(all(&archive, filter, 97).await, wanted, "{filter:?}");
    }
    stop.send_replace(true);
    for task in tasks {
        tokio::time::timeout(DEADLINE, task)
            .await
            .expect("ends")
            .expect("no panic");
    }
    archive.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_other_writers_and_those_that_wait_are_one_answer() {
    let server = with_tables().await;
    // Every other record is another writer's, and on the server.
    let theirs = maker(today(), 2_000_000, 5);
    let arrived = ship(&server, &theirs, 500).await;
    let directory = tempfile::tempdir().expect("directory");
    let archive = open(&server, &directory).await;
    let ours = maker(today() + 1_000_000, 2_000_000, 7);
    let waiting: Vec<Entry> = (0..500).map(|number| ours.entry(number)).collect();
    archive.append(&waiting, None).await.expect("stored");
    let mut wanted: Vec<Entry> = arrived
        .into_iter()
        .map(|kept| kept.entry)
        .chain(waiting)
        .collect();
    wanted.sort_by_key(|entry| std::cmp::Reverse((entry.timestamp(), entry.id())));
    for limit in [1, 7, 100, 1000] {
        assert_eq!(all(&archive, &Filter::default(), limit).await, wanted, "{limit}");
    }
    archive.close().await.expect("closes");
}
