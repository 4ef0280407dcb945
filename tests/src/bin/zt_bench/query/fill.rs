// SPDX-License-Identifier: Apache-2.0
//! Filling the stores: with the chain, and with a checkpoint a minute.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Batch, Maintainer, Reader, Target as Place, Writer};
use zt_agent::audit::record::{Entry, Kept};
use zt_agent::audit::sqlite::{Durability, Settings, Store};
use zt_agent::audit::store::Sink as _;
use zt_tests::entries::Maker;
use zt_tests::postgres::Server;

use super::{DAY, DAYS};
use crate::Plan;
use crate::report::{Metric, Target};

/// Records of a batch, as the recorder and the shipper have them.
const BATCH: u64 = 8192;
/// As often as the recorder signs.
const SEAL: Duration = Duration::from_secs(60);
/// How often a fill says how far it is.
const TELL: Duration = Duration::from_secs(10);

/// A server with a full trail.
pub(super) struct Full {
    pub(super) server: Server,
}

impl Full {
    pub(super) fn reader(&self) -> Result<Reader> {
        Ok(Reader::new(Place::parse(&self.server.dsn("engine"))?))
    }
}

/// Batches made by another thread, so that making them is not measured.
fn batches<T: Send + 'static>(
    rows: u64,
    mut make: impl FnMut(std::ops::Range<u64>) -> T + Send + 'static,
) -> mpsc::Receiver<(u64, T)> {
    let (send, receive) = mpsc::sync_channel(4);
    thread::spawn(move || {
        for first in (0..rows).step_by(BATCH as usize) {
            // Nobody receives any more when the fill has failed.
            if send.send((first, make(first..rows.min(first + BATCH)))).is_err() {
                return;
            }
        }
    });
    receive
}

/// What was measured while a store was filled.
struct Filling {
    rows: u64,
    spent: Duration,
    told: Instant,
}

impl Filling {
    fn begin(rows: u64) -> Self {
        Self {
            rows,
            spent: Duration::ZERO,
            told: Instant::now(),
        }
    }

    /// A batch took this long.
    fn took(&mut self, name: &str, first: u64, took: Duration) {
        self.spent += took;
        if self.told.elapsed() > TELL {
            self.told = Instant::now();
            eprintln!("  {name}: {first} of {} records", self.rows);
        }
    }

    fn metric(&self, name: &str, limit: f64) -> Metric {
        let line = format!(
            "{name}: {} records in batches of {BATCH}, one writer, for {:.0} s",
            self.rows,
            self.spent.as_secs_f64()
        );
        let rate = self.rows as f64 / self.spent.as_secs_f64();
        Metric::value(line, "/s", rate).target(Target::AtLeast(limit))
    }
}

/// A file with so many records.
pub(super) async fn sqlite(
    plan: &Plan,
    maker: &Maker,
    metrics: &mut Vec<Metric>,
) -> Result<(TempDir, Store)> {
    let directory = tempfile::tempdir_in("/var/tmp")?;
    let store = Store::open(Settings {
        dsn: format!("sqlite://{}", directory.path().join("audit.db").display()),
        max_disk_bytes: 1 << 40,
        retention_days: None,
        keys: Some(directory.path().join("keys")),
        sync: Durability::default(),
    })
    .await?;
    let made = maker.clone();
    let batches = batches(plan.rows, move |numbers| {
        numbers.map(|number| made.entry(number)).collect::<Vec<Entry>>()
    });
    let mut filling = Filling::begin(plan.rows);
    let mut sealed = Instant::now();
    for (first, entries) in batches {
        let begun = Instant::now();
        store.append(&entries, None).await?;
        if sealed.elapsed() > SEAL {
            store.seal().await?;
            sealed = Instant::now();
        }
        filling.took("SQLite", first, begun.elapsed());
    }
    store.seal().await?;
    metrics.push(filling.metric("SQLite", 100_000.0));
    let mut bytes = std::fs::metadata(store.path())?.len();
    // Its log, as far as it has not been written back.
    let log = store.path().with_extension("db-wal");
    bytes += std::fs::metadata(log).map_or(0, |log| log.len());
    let bytes = bytes as f64 / plan.rows as f64;
    metrics.push(Metric::value("  SQLite: bytes of a record", "B", bytes));
    Ok((directory, store))
}

/// A server with so many records.
pub(super) async fn postgres(plan: &Plan, maker: &Maker, metrics: &mut Vec<Metric>) -> Result<Full> {
    let full = Full {
        server: Server::start(super::plans::SETTINGS)?,
    };
    let server = &full.server;
    keep(server).await?;
    let mut writer = Writer::new(Place::parse(&server.dsn("node"))?);
    // Partitions are made ahead. For days that are past they are made when a record of each has come.
    let strays = Uuid::from_u128(2);
    let mut head = Head::new(strays);
    for day in 0..DAYS {
        let early = Maker {
            // A nanosecond aside from the records that are counted.
            start: maker.start + day * DAY + 1,
            ..maker.clone()
        };
        let records = early.kept(0..1, &mut head);
        writer
            .ship(&batch(strays, 1 + day.unsigned_abs(), records))
            .await?;
    }
    keep(server).await?;
    // As while they lasted: days are added up when they are over.
    server.sql("TRUNCATE zt_audit.whole_day, zt_audit.bucket_day")?;
    let id = Uuid::from_u128(1);
    let (made, mut head) = (maker.clone(), Head::new(id));
    let batches = batches(plan.rows, move |numbers| made.kept(numbers, &mut head));
    let mut filling = Filling::begin(plan.rows);
    for (first, records) in batches {
        let batch = batch(id, first + 1, records);
        let begun = Instant::now();
        writer.ship(&batch).await?;
        filling.took("PostgreSQL", first, begun.elapsed());
    }
    writer.close().await;
    metrics.push(filling.metric("PostgreSQL", 50_000.0));
    keep(server).await?;
    let strays = server.number("SELECT count(*) FROM zt_audit.record_other")?;
    anyhow::ensure!(strays == 0, "{strays} records have no partition");
    let bytes = server.number(
        "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits
         WHERE inhparent = 'zt_audit.record'::regclass",
    )?;
    let bytes = bytes as f64 / plan.rows as f64;
    metrics.push(Metric::value(
        "  PostgreSQL: bytes of a record, with its indexes",
        "B",
        bytes,
    ));
    // Autovacuum does it in its own time.
    eprintln!("  PostgreSQL: VACUUM ANALYZE");
    server.sql("VACUUM ANALYZE").context("VACUUM ANALYZE")?;
    Ok(full)
}

async fn keep(server: &Server) -> Result<()> {
    let mut keeper = Maintainer::open(&Place::parse(&server.dsn("keeper"))?).await?;
    keeper.keep(Some(365)).await?;
    keeper.close().await?;
    Ok(())
}

fn batch(writer: Uuid, first_seq: u64, records: Vec<Kept>) -> Batch {
    Batch {
        writer,
        first_seq,
        dropped: 0,
        records,
    }
}
