// SPDX-License-Identifier: Apache-2.0
//! The audit trail in a real `PostgreSQL`, which each test starts for itself.

#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "postgres/agent.rs"]
mod agent;
#[path = "postgres/attacker.rs"]
mod attacker;
#[path = "postgres/cluster.rs"]
mod cluster;
#[path = "postgres/columns.rs"]
mod columns;
#[path = "postgres/days.rs"]
mod days;
#[path = "postgres/examined.rs"]
mod examined;
#[path = "postgres/facets.rs"]
mod facets;
#[path = "postgres/filters.rs"]
mod filters;
#[path = "postgres/hits.rs"]
mod hits;
#[path = "postgres/hours.rs"]
mod hours;
#[path = "postgres/killed.rs"]
mod killed;
#[path = "postgres/kinds.rs"]
mod kinds;
#[path = "postgres/lag.rs"]
mod lag;
#[path = "postgres/logins.rs"]
mod logins;
#[path = "postgres/migrations.rs"]
mod migrations;
#[path = "postgres/nasty.rs"]
mod nasty;
#[path = "postgres/network.rs"]
mod network;
#[path = "postgres/ocsf.rs"]
mod ocsf;
#[path = "postgres/outage.rs"]
mod outage;
#[path = "postgres/paging.rs"]
mod paging;
#[path = "postgres/partitions.rs"]
mod partitions;
#[path = "postgres/raw.rs"]
mod raw;
#[path = "postgres/roles.rs"]
mod roles;
#[path = "postgres/shapes.rs"]
mod shapes;
#[path = "postgres/silent.rs"]
mod silent;
#[path = "postgres/spool.rs"]
mod spool;
#[path = "postgres/stated.rs"]
mod stated;
#[path = "postgres/sums.rs"]
mod sums;
#[path = "postgres/traffic.rs"]
mod traffic;
#[path = "postgres/trail.rs"]
mod trail;
#[path = "postgres/verify.rs"]
mod verify;

use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Batch, Maintainer, Target, Writer};
use zt_agent::audit::record::{Entry, Kept};
use zt_agent::audit::sqlite::{Durability, Settings, Store};
use zt_agent::audit::store::Sink as _;
use zt_tests::entries::Maker;
use zt_tests::postgres::Server;
use zt_tests::{Policy, TCP};

use self::cluster::until;

/// A server without the wait for the disk: no test here pulls the plug of the machine.
fn server() -> Server {
    Server::start("fsync = off").expect("PostgreSQL starts")
}

fn target(server: &Server, login: &str) -> Target {
    Target::parse(&server.dsn(login)).expect("a DSN")
}

/// A server with tables and the partitions of today.
async fn with_tables() -> Server {
    with_tables_in(server()).await
}

/// The same in a server of other settings.
async fn with_tables_in(server: Server) -> Server {
    let mut maintainer = Maintainer::open(&target(&server, "keeper"))
        .await
        .expect("tables");
    maintainer.keep(None).await.expect("partitions");
    server
}

/// What is in force where an agent or an engine is asked.
fn policy() -> Policy {
    Policy::new("core").allow("client", "server", TCP, "5432")
}

/// The beginning of today, in Unix nanoseconds.
fn today() -> i64 {
    const DAY: i64 = 86_400_000_000_000;
    zt_agent::audit::clock::now() / DAY * DAY
}

fn maker(start: i64, step: i64, parties: u64) -> Maker {
    Maker { start, step, parties }
}

/// Consecutive batches of at most `size`.
fn batches(writer: Uuid, records: &[Kept], size: usize) -> Vec<Batch> {
    let mut first_seq = 1;
    records
        .chunks(size)
        .map(|chunk| {
            let batch = Batch {
                writer,
                first_seq,
                dropped: 0,
                records: chunk.to_vec(),
            };
            first_seq += chunk.len() as u64;
            batch
        })
        .collect()
}

/// Ships records of a writer of its own, and returns them.
async fn ship(server: &Server, maker: &Maker, number: u64) -> Vec<Kept> {
    let mut head = Head::new(Uuid::from_u128(7));
    let records = maker.kept(0..number, &mut head);
    ship_kept(server, head.writer, &records).await;
    records
}

/// Ships the first records of a writer.
async fn ship_kept(server: &Server, of: Uuid, records: &[Kept]) {
    let mut writer = Writer::new(target(server, "node"));
    for batch in batches(of, records, 1000) {
        assert!(writer.ship(&batch).await.expect("shipped"));
    }
    writer.close().await;
}

/// A file with these entries, in which nothing is signed; its DSN.
async fn file<'e>(entries: impl Iterator<Item = &'e Entry>) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let dsn = format!("sqlite://{}", directory.path().join("audit.db").display());
    let store = Store::open(Settings {
        dsn: dsn.clone(),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: None,
        sync: Durability::default(),
    });
    let store = store.await.expect("opens");
    let entries: Vec<Entry> = entries.cloned().collect();
    store.append(&entries, None).await.expect("kept");
    store.close().await.expect("closes");
    (directory, dsn)
}

/// Blocks of the trail's tables and indexes that connections which have ended since have looked at.
async fn blocks(server: &Server) -> u64 {
    // Each tells at its end.
    until("readers to be gone", async || {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'engine'";
        server.number(open).expect("a count") == 0
    })
    .await;
    let blocks = "SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit + idx_blks_read, 0))
                  FROM pg_statio_user_tables WHERE schemaname = 'zt_audit'";
    server.number(blocks).expect("a count")
}

/// SQL that puts the rows of one table into another one of the same columns; those that are generated cannot be put by name.
fn put_back(table: &str, from: &str) -> String {
    format!(
        "DO $$ DECLARE names text; BEGIN
             SELECT string_agg(quote_ident(attname), ',') INTO names FROM pg_attribute
             WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
             EXECUTE format('INSERT INTO {table} (%s) SELECT %s FROM {from}', names, names);
         END $$;"
    )
}
