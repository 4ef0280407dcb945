// SPDX-License-Identifier: Apache-2.0
//! The store over real files.

mod churn;
mod clock;
mod damaged;
mod durability;
mod full;
mod graph;
mod hits;
pub(super) mod intents;
mod limits;
mod migrations;
mod paging;
mod query;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use proptest::prelude::*;
use sqlx::sqlite::SqliteConnection;
use tempfile::TempDir;
use zt_common::identity;
use zt_common::verdict::Reason;

use super::*;
use crate::audit::names::Kind;
use crate::audit::query::{Edge, NodeKind, PartyFilter};
use crate::audit::record::{AuditRecord, Entry, Hook, Kept, Outcome, Timestamp};
use crate::audit::sample::{CHAT, GATEWAY, RULE, decision, record, record_of};
use crate::spiffe_id::Pattern;

fn settings(directory: &TempDir) -> Settings {
    Settings {
        dsn: format!("sqlite://{}/state/audit.db", directory.path().display()),
        max_disk_bytes: 2 << 30,
        retention_days: None,
        keys: None,
        sync: Durability::default(),
    }
}

impl Store {
    /// Runs what no code of ours would: tests of what happens when the store fails use it.
    pub(crate) async fn meddle(&self, sql: &'static str) {
        let mut writer = self.writer.lock().await;
        sqlx::raw_sql(sql)
            .execute(&mut writer.connection)
            .await
            .expect("meddled");
    }
}

/// What makes the store refuse every record, and what ends that.
pub(crate) const REFUSE: &str =
    "CREATE TRIGGER refuse BEFORE INSERT ON record BEGIN SELECT RAISE(ABORT, 'the test refuses it'); END";
pub(crate) const TAKE_AGAIN: &str = "DROP TRIGGER refuse";

pub(super) async fn store() -> (TempDir, Store) {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(settings(&directory)).await.expect("opens");
    (directory, store)
}

/// Records in the order of their numbers, a second apart, from different parties.
fn records(numbers: std::ops::Range<u64>) -> Vec<AuditRecord> {
    numbers
        .map(|number| {
            let mut decision = decision();
            decision.time += number * 1_000_000_000;
            decision.source = if number % 3 == 0 { CHAT } else { GATEWAY };
            decision.allowed = number % 3 != 0;
            decision.enforced = number % 2 == 0;
            decision.rule = if decision.allowed { RULE } else { 0 };
            decision.reason = if decision.allowed {
                Reason::Rule
            } else {
                Reason::NoRule
            };
            decision.pid = number as u32 + 1;
            record_of(&decision, u128::from(number))
        })
        .collect()
}

async fn keep(store: &Store, records: &[AuditRecord]) {
    let entries: Vec<Entry> = records.iter().cloned().map(Entry::Decision).collect();
    store.append(&entries, None).await.expect("stores");
}

fn decided(kept: Vec<Kept>) -> Vec<AuditRecord> {
    let decision = |kept: Kept| match kept.entry {
        Entry::Decision(record) => record,
        other => panic!("not a decision: {other:?}"),
    };
    kept.into_iter().map(decision).collect()
}

async fn all(store: &Store, filter: &Filter) -> Vec<AuditRecord> {
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.query(filter, cursor, 7).await.expect("answers");
        found.extend(decided(page.records));
        cursor = page.next;
        if cursor.is_none() {
            return found;
        }
    }
}

#[tokio::test]
async fn directory_and_file_are_this_user_s_only() {
    let (directory, store) = store().await;
    keep(&store, &records(0..1)).await;
    let mode = |path: &Path| std::fs::metadata(path).expect("exists").permissions().mode() & 0o777;
    assert_eq!(mode(&directory.path().join("state")), 0o700);
    assert_eq!(mode(store.path()), 0o600);
    assert_eq!(mode(&store.path().with_extension("db-wal")), 0o600);
}

#[tokio::test]
async fn what_is_stored_is_found_newest_first_and_survives_reopening() {
    let (directory, store) = store().await;
    let stored = records(0..50);
    keep(&store, &stored[..20]).await;
    keep(&store, &stored[20..]).await;
    store.close().await.expect("closes");
    let store = Store::open(settings(&directory)).await.expect("opens again");
    let newest_first: Vec<AuditRecord> = stored.iter().rev().cloned().collect();
    assert_eq!(all(&store, &Filter::default()).await, newest_first);
    assert_eq!(
        store.totals().await.expect("totals"),
        Totals {
            stored: 50,
            pruned: 0
        }
    );
}

#[tokio::test]
async fn another_file_is_left_alone() {
    let directory = tempfile::tempdir().expect("directory");
    let settings = settings(&directory);
    let path = dsn::path(&settings.dsn).expect("path");
    dsn::create(&path).expect("creates");

    std::fs::write(
        &path,
        "not a database, just text that is long enough to look at".repeat(100),
    )
    .expect("writes");
    let error = Store::open(settings.clone()).await.expect_err("text").to_string();
    assert!(error.contains("cannot open the audit store"), "{error}");

    std::fs::remove_file(&path).expect("removes");
    dsn::create(&path).expect("creates");
    let mut foreign = SqliteConnection::connect_with(&connections::writing(&path, Durability::default()))
        .await
        .expect("opens");
    sqlx::raw_sql("CREATE TABLE cookies (crumb TEXT)")
        .execute(&mut foreign)
        .await
        .expect("table");
    let error = Store::open(settings.clone())
        .await
        .expect_err("foreign")
        .to_string();
    assert!(error.contains("not an audit store"), "{error}");

    sqlx::raw_sql("DROP TABLE cookies")
        .execute(&mut foreign)
        .await
        .expect("drops");
    Store::open(settings.clone())
        .await
        .expect("empty is fine")
        .close()
        .await
        .expect("closes");
    sqlx::raw_sql("PRAGMA user_version = 99")
        .execute(&mut foreign)
        .await
        .expect("marks");
    let error = Store::open(settings).await.expect_err("newer").to_string();
    assert!(error.contains("layout 99"), "{error}");
}

#[tokio::test]
async fn a_batch_given_up_leaves_nothing_and_the_next_is_whole() {
    let (directory, store) = store().await;
    let batch = records(0..5000);
    {
        let entries: Vec<Entry> = batch.iter().cloned().map(Entry::Decision).collect();
        let append = store.append(&entries, None);
        tokio::pin!(append);
        // Started, and dropped somewhere in the middle.
        tokio::select! { biased; result = &mut append => result.expect("stores"), () = tokio::time::sleep(Duration::from_millis(2)) => {} }
    }
    keep(&store, &records(7000..7010)).await;
    let reopened = Store::visit(settings(&directory)).await.expect("opens");
    let totals = reopened.totals().await.expect("totals");
    assert!(totals.stored == 10 || totals.stored == 5010, "{totals:?}");
    let newest = reopened
        .query(&Filter::default(), None, 10)
        .await
        .expect("answers")
        .records;
    assert_eq!(
        decided(newest),
        records(7000..7010).into_iter().rev().collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_chain_that_another_process_has_moved_is_gone_on_with() {
    let (directory, first) = store().await;
    let second = Store::visit(settings(&directory)).await.expect("opens");
    for round in 0..10 {
        keep(&first, &records(round * 10..round * 10 + 5)).await;
        keep(&second, &records(round * 10 + 5..round * 10 + 10)).await;
    }
    let expected: Vec<AuditRecord> = records(0..100).into_iter().rev().collect();
    assert_eq!(all(&first, &Filter::default()).await, expected);
}

#[tokio::test]
async fn names_of_earlier_runs_are_remembered() {
    let (_directory, store) = store().await;
    let named = |number: u64, text: &str| Named {
        kind: Kind::Rule,
        number,
        text: Arc::from(text),
    };
    store
        .remember(&[named(u64::MAX, "p/rule-1"), named(5, "p/rule-2")])
        .await
        .expect("stores");
    store
        .remember(&[named(u64::MAX, "p/rule-9")])
        .await
        .expect("stores");
    assert_eq!(
        store.remembered(10).await.expect("reads"),
        [named(u64::MAX, "p/rule-9"), named(5, "p/rule-2")]
    );
    assert_eq!(store.remembered(1).await.expect("reads").len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_numbers_lead_back(
        latency in any::<u32>(), revision in any::<u64>(), port in any::<u16>(), pid in any::<u32>(),
        time in any::<u64>(), protocol in any::<u8>(), address in any::<[u8; 16]>(), source in any::<u64>(),
    ) {
        let mut changed = decision();
        (changed.latency, changed.revision, changed.target_port, changed.pid) = (latency, revision, port, pid);
        (changed.time, changed.protocol, changed.source) = (time, protocol, source);
        changed.source_address = zt_common::address::Address(address);
        let stored = record_of(&changed, 3);
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let found = runtime.block_on(async {
            let (_directory, store) = store().await;
            keep(&store, std::slice::from_ref(&stored)).await;
            all(&store, &Filter::default()).await
        });
        prop_assert_eq!(found, [stored]);
    }
}
