// SPDX-License-Identifier: Apache-2.0
//! An agent's audit path without its kernel side, to be killed by tests: makes records into a spool and ships them. Started
//! again, it goes on where it was. Ends when all are made and shipped. It prints a line of JSON when all are made, and one
//! when all are shipped.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use serde_json::json;
use tokio::sync::watch;
use zt_agent::audit::postgres::Target;
use zt_agent::audit::spool::{Account, Shipper, Spool, WhenFull};
use zt_agent::audit::sqlite;
use zt_agent::audit::store::Sink as _;
use zt_tests::entries::Maker;

#[derive(Parser)]
struct Arguments {
    dsn: String,
    spool: PathBuf,
    /// Records in all.
    count: u64,
    /// Time of the first.
    start: i64,
    /// Most bytes of the spool.
    #[arg(long, default_value_t = 1 << 30)]
    max_bytes: u64,
    /// The newest are lost when it is full, not the oldest.
    #[arg(long)]
    newest: bool,
    /// Records that are made behind these, while what waits is shipped.
    #[arg(long, default_value_t = 0)]
    more: u64,
    /// Records that are stored at a time.
    #[arg(long, default_value_t = 500)]
    batch: u64,
}

/// Looks at the numbers of the spool as who watches a node would.
#[derive(Default)]
struct Watched {
    looks: u64,
    /// Records waited, the server was away, and nothing said so.
    silent: u64,
    peak_bytes: u64,
}

impl Watched {
    fn look(&mut self, account: &Account) {
        self.peak_bytes = self.peak_bytes.max(account.used_bytes());
        // The first attempt to ship says how it stands.
        if account.failures().all(|(_, count)| count == 0) || account.is_reachable() {
            return;
        }
        self.looks += 1;
        if account.waiting() == 0 || account.lag().is_zero() {
            self.silent += 1;
        }
    }

    fn tell(&self, what: &str, spool: &Spool, begun: Instant) {
        let account = spool.account();
        let losses: BTreeMap<_, _> = account.losses().into_iter().collect();
        let line = json!({
            "what": what, "seconds": begun.elapsed().as_secs_f64(), "waiting": account.waiting(),
            "bytes": account.used_bytes(), "peak_bytes": self.peak_bytes, "lag_seconds": account.lag().as_secs_f64(),
            "looks": self.looks, "silent": self.silent, "losses": losses, "shipped": account.shipped_total(),
            "memory": most_memory(),
        });
        println!("{line}");
    }
}

/// The most memory that this process has taken, in bytes; the most that there is where the kernel does not say. It is asked here: of a
/// process that has ended, nobody else can tell any more.
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib << 10)
}

/// Whether the server still lacks something that was signed.
async fn is_signing(spool: &Spool) -> Result<bool> {
    let (store, noted) = (spool.store(), spool.store().shipping().await?);
    let checkpoints = store.checkpoints_after(noted.checkpoint, noted.shipped).await?;
    Ok(!checkpoints.is_empty() || !store.stated_gaps(u64::MAX).await?.is_empty())
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let settings = sqlite::Settings {
        dsn: format!("sqlite://{}", arguments.spool.display()),
        max_disk_bytes: arguments.max_bytes,
        retention_days: None,
        keys: arguments.spool.parent().map(|directory| directory.join("keys")),
        sync: sqlite::Durability::default(),
    };
    let when_full = if arguments.newest {
        WhenFull::Newest
    } else {
        WhenFull::Oldest
    };
    let spool = Arc::new(Spool::open(settings, when_full).await?);
    let (stop, stopping) = watch::channel(false);
    let shipper =
        tokio::spawn(Shipper::new(Arc::clone(&spool), Target::parse(&arguments.dsn)?, stopping).run());
    let maker = Maker {
        start: arguments.start,
        step: 1_000_000,
        parties: 20,
    };
    // The number of a record is its place in the chain: what was made before is not made again.
    let (begun, mut watched) = (Instant::now(), Watched::default());
    let mut next = spool.store().head().await?.seq;
    let all = arguments.count + arguments.more;
    while next < all {
        let goal = if next < arguments.count {
            arguments.count
        } else {
            all
        };
        let end = goal.min(next + arguments.batch);
        let entries: Vec<_> = (next..end).map(|number| maker.single(number)).collect();
        // What there is no room for is counted there.
        let taken = spool.append(&entries, None).await;
        ensure!(taken.is_ok() || arguments.newest, "not taken: {taken:?}");
        while spool.prune().await?.more {}
        watched.look(spool.account());
        if end == arguments.count {
            spool.seal().await?;
            watched.tell("made", &spool, begun);
        }
        next = end;
    }
    spool.seal().await?;
    while spool.store().shipping().await?.shipped < all {
        watched.look(spool.account());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while spool.account().waiting() > 0 || !spool.account().lag().is_zero() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What was signed goes behind the records.
    while is_signing(&spool).await? {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    spool.prune().await?;
    watched.tell("shipped", &spool, begun);
    stop.send_replace(true);
    shipper.await?;
    Ok(())
}
