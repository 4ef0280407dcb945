// SPDX-License-Identifier: Apache-2.0
//! An agent's audit path without its kernel side, to be killed by tests: makes records into a spool and ships them. Started
//! again, it goes on where it was. Ends when all are made and shipped.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use tokio::sync::watch;
use zt_agent::audit::postgres::Target;
use zt_agent::audit::spool::{Shipper, Spool, WhenFull};
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
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let settings = sqlite::Settings {
        dsn: format!("sqlite://{}", arguments.spool.display()),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: arguments.spool.parent().map(|directory| directory.join("keys")),
    };
    let spool = Arc::new(Spool::open(settings, WhenFull::Oldest).await?);
    let (stop, stopping) = watch::channel(false);
    let shipper =
        tokio::spawn(Shipper::new(Arc::clone(&spool), Target::parse(&arguments.dsn)?, stopping).run());
    let maker = Maker {
        start: arguments.start,
        step: 1_000_000,
        parties: 20,
    };
    // The number of a record is its place in the chain: what was made before is not made again.
    let mut next = spool.store().head().await?.seq;
    while next < arguments.count {
        let end = arguments.count.min(next + 500);
        let entries: Vec<_> = (next..end).map(|number| maker.entry(number)).collect();
        spool.append(&entries, None).await?;
        spool.prune().await?;
        next = end;
    }
    spool.seal().await?;
    while spool.store().shipping().await?.shipped < arguments.count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.send_replace(true);
    shipper.await?;
    Ok(())
}
