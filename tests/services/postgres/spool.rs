// SPDX-License-Identifier: Apache-2.0
//! Nothing is lost and nothing comes twice, whatever dies.

#[path = "spool/damage.rs"]
mod damage;
#[path = "spool/durable.rs"]
mod durable;
#[path = "spool/hung.rs"]
mod hung;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zt_agent::audit::export::verify;
use zt_agent::audit::postgres::Walk;
use zt_agent::audit::record::Entry;
use zt_agent::audit::seal::Keys;
use zt_agent::audit::spool::{Shipper, Spool, WhenFull};
use zt_agent::audit::sqlite;
use zt_agent::audit::store::Sink as _;
use zt_agent::audit::verify::{Noted, Report, Verifier};
use zt_tests::entries::{Maker, spread};
use zt_tests::postgres::Server;

use super::{maker, target, today, with_tables};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(600);

/// A spool in a directory of its own.
struct World {
    directory: TempDir,
    server: Server,
}

impl World {
    async fn new() -> Self {
        Self::on(with_tables().await)
    }

    fn on(server: Server) -> Self {
        Self {
            directory: tempfile::tempdir().expect("directory"),
            server,
        }
    }

    async fn open(&self, max_disk_bytes: u64, when_full: WhenFull) -> Arc<Spool> {
        let settings = sqlite::Settings {
            dsn: format!("sqlite://{}/spool.db", self.directory.path().display()),
            max_disk_bytes,
            retention_days: None,
            keys: Some(self.directory.path().join("keys")),
            sync: sqlite::Durability::default(),
        };
        Arc::new(Spool::open(settings, when_full).await.expect("a spool"))
    }

    fn ship(&self, spool: &Arc<Spool>) -> Shipping {
        let (stop, stopping) = watch::channel(false);
        let shipper = Shipper::new(Arc::clone(spool), target(&self.server, "node"), stopping);
        Shipping {
            stop,
            task: tokio::spawn(shipper.run()),
        }
    }

    fn number(&self, sql: &str) -> u64 {
        self.server.number(sql).expect("a number")
    }

    /// Checks the accounts of a trail that `count` records were made for, of which `lost` were lost on purpose.
    fn settle(&self, count: u64, lost: u64) {
        assert_eq!(self.number("SELECT count(*) FROM zt_audit.record"), count - lost);
        assert_eq!(
            self.number("SELECT count(DISTINCT id) FROM zt_audit.record"),
            count - lost
        );
        assert_eq!(
            self.number("SELECT count(DISTINCT (writer, seq)) FROM zt_audit.record"),
            count - lost
        );
        assert_eq!(
            self.number("SELECT sum(records) FROM zt_audit.bucket"),
            count - lost
        );
        assert_eq!(
            self.number("SELECT sum(last_seq - first_seq + 1) FROM zt_audit.batch"),
            count - lost
        );
        assert_eq!(self.number("SELECT sum(dropped) FROM zt_audit.batch"), lost);
    }

    /// What the verifier says of the server's trail.
    async fn report(&self) -> Report {
        let keys = self.directory.path().join("keys");
        let roots = Keys::list(&keys).expect("keys").expect("keys");
        let verifier = Verifier::new(vec![roots[0].key.clone()]);
        let mut walk = Walk::begin(&target(&self.server, "engine"))
            .await
            .expect("a walk");
        let noted = Keys::noted(&keys).expect("noted").into_iter().map(Noted::here);
        let noted: Vec<Noted> = noted.collect();
        let verifier = verify(&mut walk, verifier, &noted, &mut |_| ()).await;
        verifier.expect("reads").finish()
    }
}

/// A running shipper.
struct Shipping {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Shipping {
    async fn end(self) {
        self.stop.send_replace(true);
        self.task.await.expect("no panic");
    }
}

async fn append(spool: &Spool, maker: &Maker, numbers: std::ops::Range<u64>) -> u64 {
    let mut lost = 0;
    for first in numbers.clone().step_by(2000) {
        let entries: Vec<Entry> = (first..numbers.end.min(first + 2000))
            .map(|number| maker.single(number))
            .collect();
        if spool.append(&entries, None).await.is_err() {
            lost += entries.len() as u64;
        }
        while spool.prune().await.expect("room").more {}
    }
    lost
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < DEADLINE, "still waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until_shipped(spool: &Spool, number: u64) {
    until("all to be shipped", async || {
        spool.store().shipping().await.expect("state").shipped >= number
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_is_away_while_a_hundred_thousand_records_are_made() {
    const COUNT: u64 = 100_000;
    let world = World::new().await;
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    world.server.crash().expect("down");
    let shipping = world.ship(&spool);
    assert_eq!(append(&spool, &maker(today(), 1_000_000, 20), 0..COUNT).await, 0);
    spool.seal().await.expect("sealed");
    until("a failure", async || {
        spool
            .account()
            .failures()
            .any(|(cause, count)| cause == "unreachable" && count > 0)
    })
    .await;
    until("all to wait", async || spool.account().waiting() == COUNT).await;
    assert!(spool.account().lag() > Duration::ZERO);
    assert!(!spool.account().is_reachable());
    world.server.up().expect("up");
    until_shipped(&spool, COUNT).await;
    world.settle(COUNT, 0);
    until("the spool to be empty", async || {
        spool.store().range(1, COUNT).await.expect("rows").is_empty()
    })
    .await;
    // The numbers follow what is on disk.
    until("nothing to wait", async || spool.account().waiting() == 0).await;
    assert_eq!(spool.account().shipped_total(), COUNT);
    until("no lag", async || spool.account().lag() == Duration::ZERO).await;
    until("a checkpoint", async || {
        world.number("SELECT count(*) FROM zt_audit.checkpoint") > 0
    })
    .await;
    shipping.end().await;
    let report = world.report().await;
    assert_eq!((&report.findings[..], report.entries), (&[][..], COUNT));
    assert!(report.checkpoints > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_crashes_again_and_again_while_records_come() {
    const COUNT: u64 = 60_000;
    let world = World::new().await;
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    let shipping = world.ship(&spool);
    let maker = maker(today(), 1_000_000, 20);
    for round in 0..6 {
        append(&spool, &maker, round * COUNT / 6..(round + 1) * COUNT / 6).await;
        tokio::time::sleep(Duration::from_millis(spread(round) % 60)).await;
        world.server.crash().expect("down");
        world.server.up().expect("up");
    }
    until_shipped(&spool, COUNT).await;
    shipping.end().await;
    world.settle(COUNT, 0);
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail where it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_is_killed_again_and_again() {
    const COUNT: u64 = 100_000;
    let world = World::new().await;
    let start = || {
        let mut spooler = Command::new(env!("CARGO_BIN_EXE_zt-spooler"));
        spooler
            .arg(world.server.dsn("node"))
            .arg(world.directory.path().join("spool.db"));
        spooler
            .args([COUNT.to_string(), today().to_string()])
            .stdin(Stdio::null());
        Killed(spooler.spawn().expect("starts"))
    };
    let mut kills = 0;
    for round in 0..40 {
        let mut spooler = start();
        // From the moment that something of this round has arrived on, at any point.
        let before = world.number("SELECT count(*) FROM zt_audit.record");
        let begun = Instant::now();
        while before < COUNT && world.number("SELECT count(*) FROM zt_audit.record") == before {
            assert!(begun.elapsed() < DEADLINE, "nothing arrives");
        }
        tokio::time::sleep(Duration::from_millis(spread(round) % 80)).await;
        if spooler.0.try_wait().expect("status").is_some() {
            break;
        }
        spooler.0.kill().expect("killed");
        kills += 1;
    }
    assert!(kills > 2, "killed {kills} times");
    let status = start().0.wait().expect("status");
    assert!(status.success());
    world.settle(COUNT, 0);
    let report = world.report().await;
    assert_eq!((&report.findings[..], report.entries), (&[][..], COUNT));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_gives_up_the_oldest_and_says_how_many() {
    const COUNT: u64 = 150_000;
    let world = World::new().await;
    let spool = world.open(16 << 20, WhenFull::Oldest).await;
    world.server.crash().expect("down");
    let shipping = world.ship(&spool);
    assert_eq!(append(&spool, &maker(today(), 1_000_000, 20), 0..COUNT).await, 0);
    spool.seal().await.expect("sealed");
    let lost = spool.account().losses()[0].1;
    assert!(lost > 0 && lost < COUNT, "{lost}");
    assert!(spool.account().used_bytes() < 16 << 20);
    world.server.up().expect("up");
    until_shipped(&spool, COUNT).await;
    until("a checkpoint", async || {
        world.number("SELECT count(*) FROM zt_audit.checkpoint") > 0
    })
    .await;
    shipping.end().await;
    world.settle(COUNT, lost);
    // What was given up shows, and nothing is wrong.
    let report = world.report().await;
    assert_eq!((report.entries, report.lost()), (COUNT - lost, lost));
    assert_eq!(report.findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_takes_no_new_ones_if_told_so() {
    const COUNT: u64 = 150_000;
    let world = World::new().await;
    let spool = world.open(16 << 20, WhenFull::Newest).await;
    world.server.crash().expect("down");
    let shipping = world.ship(&spool);
    let maker = maker(today(), 1_000_000, 20);
    let lost = append(&spool, &maker, 0..COUNT).await;
    assert!(lost > 0 && lost < COUNT, "{lost}");
    assert_eq!(spool.account().losses()[1].1, lost);
    world.server.up().expect("up");
    until_shipped(&spool, COUNT).await;
    // There is room again.
    spool.prune().await.expect("looks");
    assert_eq!(append(&spool, &maker, COUNT..COUNT + 10).await, 0);
    until_shipped(&spool, COUNT + 10).await;
    shipping.end().await;
    // Those that were lost have their places in the chain.
    world.settle(COUNT + 10, lost);
    assert_eq!(world.number("SELECT max(seq) FROM zt_audit.record"), COUNT + 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_server_refuses_does_not_hold_up_the_others() {
    const COUNT: u64 = 3000;
    let world = World::new().await;
    let spool = world.open(1 << 30, WhenFull::Oldest).await;
    let maker = maker(today(), 1_000_000, 20);
    let mut entries: Vec<Entry> = (0..COUNT).map(|number| maker.entry(number)).collect();
    for number in [700, 701, 2999] {
        let Entry::Decision(record) = &mut entries[number] else {
            panic!("a decision")
        };
        (record.source.comm, record.count) = (Some("a\0b".into()), 4);
    }
    spool.append(&entries, None).await.expect("stored");
    let shipping = world.ship(&spool);
    until_shipped(&spool, COUNT).await;
    shipping.end().await;
    // Three records, each of four decisions.
    assert_eq!(spool.account().losses()[2].1, 12);
    assert_eq!(world.number("SELECT count(*) FROM zt_audit.record"), COUNT - 3);
    // The last one has no batch behind it yet that could tell.
    assert_eq!(world.number("SELECT sum(dropped) FROM zt_audit.batch"), 2);
}
