// SPDX-License-Identifier: Apache-2.0
//! How fast records reach a real `PostgreSQL`, and how fast pages come back from many of them.
//!
//! `cargo run --release -p zt-tests --example postgres_bench -- [records] [spooled records] [days]`
//!
//! The server waits for the disk as by default. The plans of every question are in the log that is kept.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::watch;
use uuid::Uuid;
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Batch, Maintainer, Reader, Target, Writer};
use zt_agent::audit::query::{Cursor, Filter, GraphFilter, PartyFilter};
use zt_agent::audit::record::{Entry, Kind, Outcome, Timestamp};
use zt_agent::audit::spool::{Shipper, Spool, WhenFull};
use zt_agent::audit::sqlite;
use zt_agent::audit::store::Sink as _;
use zt_agent::spiffe_id::Pattern;
use zt_tests::entries::Maker;
use zt_tests::postgres::Server;

const DAY: i64 = 86_400_000_000_000;
const PLANS: &str = "session_preload_libraries = 'auto_explain'\nauto_explain.log_min_duration = 0\n\
                     auto_explain.log_analyze = on\nauto_explain.log_timing = off";

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let mut argument = |default: &str| words.next().unwrap_or_else(|| default.to_owned());
    let records: u64 = argument("10000000").parse()?;
    let spooled: u64 = argument("500000").parse()?;
    let days: i64 = argument("10").parse()?;
    let server = Server::start("")?;
    let target = Target::parse(&server.dsn("node"))?;
    let start = (zt_agent::audit::clock::now() / DAY - days) * DAY;
    let maker = Maker {
        start,
        step: days * DAY / records.max(1) as i64,
        parties: 100,
    };
    let keeper = Target::parse(&server.dsn("keeper"))?;
    Maintainer::open(&keeper).await?.keep(Some(365)).await?;

    through_the_spool(&target, spooled, start + days * DAY).await?;
    fill(&server, &target, &keeper, &maker, records).await?;
    ask(&server, &maker, records).await
}

/// From records in memory to the server, through the file.
async fn through_the_spool(target: &Target, count: u64, start: i64) -> Result<()> {
    let directory = tempfile::tempdir_in("/var/tmp")?;
    let settings = sqlite::Settings {
        dsn: format!("sqlite://{}/spool.db", directory.path().display()),
        max_disk_bytes: 2 << 30,
        retention_days: None,
        keys: None,
    };
    let maker = Maker {
        start,
        step: 1_000,
        parties: 100,
    };
    let entries: Vec<Entry> = (0..count).map(|number| maker.entry(number)).collect();
    let spool = Arc::new(Spool::open(settings, WhenFull::Oldest).await?);
    let (stop, stopping) = watch::channel(false);
    let shipper = tokio::spawn(Shipper::new(Arc::clone(&spool), target.clone(), stopping).run());
    let begun = Instant::now();
    for batch in entries.chunks(8192) {
        spool.append(batch, None).await?;
    }
    let stored = begun.elapsed();
    spool.shipped_so_far().await;
    let shipped = begun.elapsed();
    println!(
        "spool: {count} records on disk in {stored:?}, on the server in {shipped:?}: {:.0}/s; load {}",
        count as f64 / shipped.as_secs_f64(),
        load()
    );
    stop.send_replace(true);
    shipper.await?;
    Ok(())
}

/// Ships straight from memory; making the records is not counted.
async fn fill(server: &Server, target: &Target, keeper: &Target, maker: &Maker, records: u64) -> Result<()> {
    // Their days are past: the partitions are made when the first strays are seen.
    let mut writer = Writer::new(target.clone());
    let mut head = Head::new(Uuid::from_u128(1));
    let (mut spent, mut first_seq) = (Duration::ZERO, 1);
    for day in 0..=(maker.step * records as i64 / DAY) {
        let number = (day * DAY / maker.step) as u64;
        let kept = maker.kept(number..number + 1, &mut Head::new(Uuid::from_u128(2)));
        writer
            .ship(&Batch {
                writer: Uuid::from_u128(2),
                first_seq: 1 + day as u64,
                dropped: 0,
                records: kept,
            })
            .await?;
    }
    Maintainer::open(keeper).await?.keep(Some(365)).await?;
    for first in (0..records).step_by(8192) {
        let kept = maker.kept(first..records.min(first + 8192), &mut head);
        let batch = Batch {
            writer: head.writer,
            first_seq,
            dropped: 0,
            records: kept,
        };
        first_seq = batch.last_seq() + 1;
        let begun = Instant::now();
        writer.ship(&batch).await?;
        spent += begun.elapsed();
        if (first / 8192) % 200 == 0 {
            println!("  {first} in {spent:?}; load {}", load());
        }
    }
    println!(
        "insert: {records} records in {spent:?}: {:.0}/s; load {}",
        records as f64 / spent.as_secs_f64(),
        load()
    );
    writer.close().await;
    for (what, sql) in [
        (
            "bytes of the records with indexes",
            "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'zt_audit.record'::regclass",
        ),
        ("rows of bucket", "SELECT count(*) FROM zt_audit.bucket"),
        ("rows of shape", "SELECT count(*) FROM zt_audit.shape"),
    ] {
        println!("{what}: {}", server.number(sql)?);
    }
    let begun = Instant::now();
    server.sql("VACUUM ANALYZE")?;
    println!("vacuum and analyze: {:?}", begun.elapsed());
    Ok(())
}

#[expect(clippy::too_many_lines, reason = "a list, one filter after the other")]
fn filters(maker: &Maker) -> Result<Vec<(&'static str, Filter)>> {
    let time = |part: i64, of: i64| Some(Timestamp(maker.start + 9 * DAY / of * part));
    let exact = |text: &str| Some(PartyFilter::Exact(text.to_owned()));
    let all = Filter::default;
    Ok(vec![
        ("none", all()),
        (
            "decision=ALLOW",
            Filter {
                decision: Some(Outcome::Allow),
                ..all()
            },
        ),
        (
            "decision=DENY",
            Filter {
                decision: Some(Outcome::Deny),
                ..all()
            },
        ),
        (
            "enforced=false",
            Filter {
                enforced: Some(false),
                ..all()
            },
        ),
        (
            "source",
            Filter {
                source: exact(&maker.name(7)),
                ..all()
            },
        ),
        (
            "source=pattern",
            Filter {
                source: Some(PartyFilter::Pattern(Pattern::parse(
                    "spiffe://hanzo.ai/hanzo-k8s/monitoring/*",
                )?)),
                ..all()
            },
        ),
        (
            "destination",
            Filter {
                destination: exact("world"),
                ..all()
            },
        ),
        (
            "port",
            Filter {
                port: Some(5432),
                ..all()
            },
        ),
        (
            "port of nobody",
            Filter {
                port: Some(1),
                ..all()
            },
        ),
        (
            "policy",
            Filter {
                policy: Some("policy_3".to_owned()),
                ..all()
            },
        ),
        (
            "rule",
            Filter {
                policy: Some("policy_3/rule-3".to_owned()),
                ..all()
            },
        ),
        (
            "node",
            Filter {
                node: Some("worker-2".to_owned()),
                ..all()
            },
        ),
        (
            "type=policy_change",
            Filter {
                kind: Some(Kind::PolicyChange),
                ..all()
            },
        ),
        (
            "since, until",
            Filter {
                since: time(3, 9),
                until: time(4, 9),
                ..all()
            },
        ),
        (
            "source, destination, DENY, enforced, node, since",
            Filter {
                source: exact(&maker.name(7)),
                destination: exact(&maker.name(8)),
                decision: Some(Outcome::Deny),
                enforced: Some(true),
                node: Some("worker-1".to_owned()),
                since: time(1, 9),
                ..all()
            },
        ),
    ])
}

async fn ask(server: &Server, maker: &Maker, records: u64) -> Result<()> {
    // From here on the server logs its plans.
    for line in PLANS.lines() {
        let (name, value) = line.split_once(" = ").context("a setting")?;
        server.sql(&format!("ALTER SYSTEM SET {name} = {value}"))?;
    }
    server.sql("SELECT pg_reload_conf()")?;
    let reader = Reader::new(Target::parse(&server.dsn("engine"))?);
    let at = |part: i64| Cursor {
        time: maker.start + maker.step * records as i64 / 1000 * part,
        id: Uuid::max(),
    };
    println!(
        "{:<50} {:>7} {:>10} {:>10} {:>10}",
        "filter, pages of 100 (median of 5, ms)", "", "first", "middle", "last"
    );
    let mut worst = Duration::ZERO;
    for (what, filter) in filters(maker)? {
        for limit in [100, 1000] {
            let mut line = format!("{what:<50} {limit:>7}");
            for cursor in [None, Some(at(500)), Some(at(1))] {
                let mut times = Vec::new();
                let mut found = 0;
                for _ in 0..5 {
                    let begun = Instant::now();
                    found = reader.query(&filter, cursor, limit).await?.records.len();
                    times.push(begun.elapsed());
                }
                times.sort_unstable();
                if limit == 100 {
                    worst = worst.max(times[2]);
                }
                write!(line, " {:>7.2} ({found})", times[2].as_secs_f64() * 1000.0)?;
            }
            println!("{line}");
        }
    }
    println!("slowest page of 100: {worst:?}; load {}", load());
    let begun = Instant::now();
    let edges = reader.graph(&GraphFilter::default()).await?.edges.len();
    println!("graph: {edges} edges in {:?}", begun.elapsed());
    let log = std::fs::read_to_string(server.directory().join("log"))?;
    let to = "/tmp/zt-postgres-plans.log";
    std::fs::write(to, &log)?;
    let walks = log
        .lines()
        .filter(|line| line.contains("Seq Scan on record"))
        .count();
    println!("plans are in {to}; scans of a whole partition in them: {walks}");
    ensure!(walks == 0, "a question walked through a partition");
    Ok(())
}
