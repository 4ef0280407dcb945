// SPDX-License-Identifier: Apache-2.0
//! The database is away while a node decides at full load, and comes back while it goes on: what waits, what that takes of
//! the disk, how long it is until all is there, and whether anything was lost. `--outage 3600` is an hour.
//!
//! The spool is as large as `docs/postgresql.md` says that it must be for that time at that rate.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use zt_tests::postgres::Server;
use zt_tests::wait_for;

use crate::Plan;
use crate::report::{Metric, Target};
use crate::trail::{Counts, at_rest, connects, recording};
use crate::world::World;

/// Bytes of a record in the spool, as the documentation says.
const RECORD: u64 = 120;
/// Between two looks at the spool, milliseconds.
const LOOK: u32 = 1000;
/// How much longer than the outage it may take until all is there.
const PATIENCE: u32 = 5;
const DRAIN: Duration = Duration::from_secs(300);
const MIB: f64 = 1024.0 * 1024.0;

/// The most of what was seen.
#[derive(Default)]
struct Peak {
    waiting: u64,
    bytes: u64,
    lag: f64,
    memory: u64,
}

impl Peak {
    /// Looks at the node. How many records wait.
    fn look(&mut self, world: &World) -> Result<u64> {
        let spool = &world.agent.get("/v1/status")?["audit"]["spool"];
        let waiting = spool["waiting"].as_u64().context("the status has the spool")?;
        self.waiting = self.waiting.max(waiting);
        self.bytes = self.bytes.max(spool["bytes"].as_u64().unwrap_or(0));
        self.lag = self.lag.max(spool["lag_seconds"].as_f64().unwrap_or(0.0));
        let pid = world.agent.pid().context("the agent is running")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        self.memory = self.memory.max(kibibytes.unwrap_or(0));
        Ok(waiting)
    }
}

/// The decisions that the server has records of.
fn arrived(server: &Server) -> Result<u64> {
    server.number(
        "SELECT coalesce(sum(b.connections), 0) FROM zt_audit.bucket b
         WHERE EXISTS (SELECT FROM zt_audit.shape s WHERE s.id = b.shape AND s.type = 'decision')",
    )
}

/// The database goes, and comes back.
pub(crate) fn of_database(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let thousands = plan.outage_rate.unwrap_or(if plan.quick { 20 } else { 50 });
    let seconds = plan.outage.unwrap_or(if plan.quick { 5 } else { 20 });
    let records = u64::from(thousands) * 1000 * u64::from(seconds);
    // An eighth is kept free; and room for what comes until the first batch is on its way again.
    let room = (records + u64::from(thousands) * 5000) * RECORD * 8 / 7;
    let server = Server::start("")?;
    let (world, mut workers) = recording(Some(&server), room.max(16 << 20))?;
    at_rest(&world)?;
    // Where nothing was recorded yet, the tables may still be under way.
    let arrived_before = wait_for("the tables to be made", DRAIN, || Ok(arrived(&server).ok()))?;
    let before = Counts::read(&world)?;
    let mut peak = Peak::default();

    server.crash()?;
    let begun = Instant::now();
    let mut asked = 0;
    while begun.elapsed().as_secs() < u64::from(seconds) {
        asked += connects(&mut workers, thousands, LOOK)?;
        peak.look(&world)?;
    }
    let (away, rate) = (begun.elapsed(), asked as f64 / begun.elapsed().as_secs_f64());
    let waited = peak.waiting;
    server.up()?;
    let back = Instant::now();
    // Half of it goes on, so that what waits can get less.
    while peak.look(&world)? > u64::from(thousands) * 1000 {
        ensure!(
            back.elapsed() < away * PATIENCE + DRAIN,
            "after {:.0} s there still wait {} records",
            back.elapsed().as_secs_f64(),
            peak.look(&world)?
        );
        asked += connects(&mut workers, thousands / 2, LOOK)?;
    }
    let caught = back.elapsed();
    wait_for("every decision to be shipped or counted as lost", DRAIN, || {
        let counts = Counts::read(&world)?;
        let settled = counts.stored + counts.lost() - before.stored - before.lost();
        Ok((settled >= counts.decided - before.decided).then_some(()))
    })?;
    // And whatever else is recorded: from here on nothing moves.
    at_rest(&world)?;
    let after = Counts::read(&world)?;
    let decided = after.decided - before.decided;
    ensure!(
        decided == asked,
        "{asked} connects were refused, and the kernel counted {decided} decisions"
    );
    let arrived = arrived(&server)? - arrived_before;
    let lost = after.lost() - before.lost();
    ensure!(
        arrived + lost == decided,
        "{decided} decisions, and {arrived} of them in the database, {lost} counted as lost"
    );
    let (seconds, mebibytes) = (away.as_secs_f64(), |bytes: u64| bytes as f64 / MIB);
    metrics.push(Metric::value(
        format!("decisions while PostgreSQL was away for {seconds:.0} s"),
        "/s",
        rate,
    ));
    let line = format!("  of {asked} of them and until all was there, lost");
    metrics.push(Metric::value(line, "", lost as f64).target(Target::AtMost(0.0)));
    metrics.push(Metric::value("  records that waited", "", waited as f64));
    let line = format!("  spool at its largest, of {:.0} MiB", mebibytes(room));
    metrics.push(Metric::value(line, "MiB", mebibytes(peak.bytes)));
    metrics.push(Metric::value("  oldest record that waited", "s", peak.lag));
    let line = "  until less than a second's records waited, with half the rate going on";
    metrics.push(Metric::value(line, "s", caught.as_secs_f64()));
    metrics.push(Metric::value(
        "  agent memory at its largest",
        "MiB",
        peak.memory as f64 / 1024.0,
    ));
    Ok(())
}
