// SPDX-License-Identifier: Apache-2.0
//! Decisions on their way from the kernel into the store: at which rate none is lost, and how fast they are there.
//!
//! In `PostgreSQL` a record counts when the server has it, not when the spool has.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};
use zt_tests::postgres::Server;
use zt_tests::wait_for;

use crate::Plan;
use crate::crew::Worker;
use crate::order::Order;
use crate::processor;
use crate::report::{Metric, Target};
use crate::world::{World, filled};

/// How long a backlog may take to be stored.
const DRAIN: Duration = Duration::from_secs(120);
/// A store that is further behind at the end of a storm does not keep up.
const BEHIND: f64 = 2.0;

/// What became of the decisions of one storm.
struct Outcome {
    /// Decisions that were asked for, each second.
    asked: f64,
    /// Records stored, each second, until the last was.
    stored: f64,
    lost: u64,
    seconds: f64,
    /// Seconds after the last decision until the last record was stored.
    behind: f64,
    /// Microseconds of processor time for each record: of the agent, and of the database's server.
    computed: (f64, f64),
}

impl Outcome {
    fn keeps_up(&self) -> bool {
        self.behind <= BEHIND
    }

    fn line(&self) -> Metric {
        let line = format!(
            "  {:.0} decisions/s for {:.1} s: {} lost, {:.1} s behind, stored at",
            self.asked, self.seconds, self.lost, self.behind
        );
        Metric::value(line, "/s", self.stored)
    }

    /// What a record costs.
    fn costs(&self, kept: Kept) -> Vec<Metric> {
        let (agent, server) = self.computed;
        let cost = |of: &str, time| {
            Metric::value(
                format!("  processor time of the {of} for each record"),
                "µs",
                time,
            )
        };
        let mut costs = vec![cost("agent", agent)];
        if kept == Kept::Postgres {
            costs.push(cost("server", server));
        }
        costs
    }
}

/// The store to fill.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Sqlite,
    Postgres,
}

impl Kept {
    const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }

    /// Thousands of decisions a second to try, one after the other.
    const fn rates(self, quick: bool) -> &'static [u32] {
        match (self, quick) {
            (Self::Sqlite, false) => &[60, 90, 120, 150, 180],
            (Self::Sqlite, true) => &[110],
            (Self::Postgres, false) => &[25, 40, 55, 70, 85],
            (Self::Postgres, true) => &[30],
        }
    }

    const fn target(self) -> f64 {
        match self {
            Self::Sqlite => 100_000.0,
            Self::Postgres => 50_000.0,
        }
    }
}

/// Into both stores, each with chain and checkpoints as by default.
pub(crate) fn rates(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    into(plan, Kept::Sqlite, None, metrics)?;
    let server = Server::start("")?;
    into(plan, Kept::Postgres, Some(&server), metrics)
}

/// Storms of refused connects at rising rates, and then for long at the best of them.
fn into(plan: &Plan, kept: Kept, server: Option<&Server>, metrics: &mut Vec<Metric>) -> Result<()> {
    let (world, mut workers) = recording(server, 2 << 30)?;
    let mut best = None;
    for &rate in kept.rates(plan.quick) {
        let outcome = storm(&world, server, &mut workers, rate, plan.rounds(2000, 4000))?;
        metrics.push(outcome.line());
        metrics.extend(outcome.costs(kept));
        if outcome.lost > 0 || !outcome.keeps_up() {
            break;
        }
        best = Some(rate);
    }
    let name = kept.name();
    // For half a minute, and less each time that something is lost or left behind.
    let mut rate = best.unwrap_or(kept.rates(true)[0]);
    for _ in 0..3 {
        let outcome = storm(&world, server, &mut workers, rate, plan.rounds(3000, 30_000))?;
        if outcome.lost == 0 && outcome.keeps_up() {
            let line = format!(
                "records into {name} without loss, for {:.0} s, {:.1} s behind at the end",
                outcome.seconds, outcome.behind
            );
            metrics.push(Metric::value(line, "/s", outcome.stored).target(Target::AtLeast(kept.target())));
            metrics.extend(outcome.costs(kept));
            return tail(&world, &mut workers, plan, kept, metrics);
        }
        metrics.push(outcome.line());
        metrics.extend(outcome.costs(kept));
        rate = rate * 4 / 5;
    }
    let line = format!("records into {name} without loss: none of the rates above");
    metrics.push(Metric::value(line, "/s", 0.0).target(Target::AtLeast(kept.target())));
    tail(&world, &mut workers, plan, kept, metrics)
}

/// A node that records, with so much room on its disk, and two workers whose connects it refuses.
pub(crate) fn recording(server: Option<&Server>, room: u64) -> Result<(World, [Worker; 2])> {
    let mut cgroup = None;
    let world = World::start("trail", |sandbox, builder| {
        let (client, workload) = World::member(sandbox, "client")?;
        cgroup = Some(client);
        let mut builder = filled(builder.workload(workload), 100)?;
        if let Some(server) = server {
            server.sql("GRANT zt_audit_maintainer TO engine")?;
            let directory = sandbox.directory();
            let audit = json!({
                "dsn": server.dsn("engine"),
                "spool": directory.join("spool.db"),
                "keys": directory.join("keys"),
                "maxDiskBytes": room,
            });
            builder = builder.config("audit", audit);
        }
        Ok(builder)
    })?;
    let cgroup = cgroup.context("the world was prepared")?;
    let worker = || Worker::start(&cgroup, None, None);
    let workers = [worker()?, worker()?];
    Ok((world, workers))
}

/// What is lost when there is more than can be taken.
fn tail(
    world: &World,
    workers: &mut [Worker],
    plan: &Plan,
    kept: Kept,
    metrics: &mut Vec<Metric>,
) -> Result<()> {
    let outcome = storm(world, None, workers, 0, plan.rounds(1000, 3000))?;
    let line = format!(
        "  {}: as fast as two processes go, {:.0}/s: {} lost, stored at",
        kept.name(),
        outcome.asked,
        outcome.lost
    );
    metrics.push(Metric::value(line, "/s", outcome.stored));
    Ok(())
}

/// So many thousand decisions a second, from all workers together.
fn storm(
    world: &World,
    server: Option<&Server>,
    workers: &mut [Worker],
    thousands: u32,
    milliseconds: usize,
) -> Result<Outcome> {
    let milliseconds = milliseconds as u32;
    eprintln!("  {thousands} thousand decisions a second for {milliseconds} ms");
    at_rest(world)?;
    let agent = [world.agent.pid().context("the agent is running")?];
    let server = server.map(processes).transpose()?.unwrap_or_default();
    let computed = || (processor::microseconds(&agent), processor::microseconds(&server));
    let before = Counts::read(world)?;
    let (start, computed_before) = (Instant::now(), computed());
    let asked = connects(workers, thousands, milliseconds)?;
    let seconds = start.elapsed().as_secs_f64();
    let after = settled(world, &before)?;
    let (drained, computed) = (start.elapsed().as_secs_f64(), computed());
    let stored = (after.stored - before.stored) as f64;
    let decided = after.decided - before.decided;
    ensure!(
        decided == asked,
        "{asked} connects were refused, and the kernel counted {decided} decisions"
    );
    let settled = after.stored + after.lost() - before.stored - before.lost();
    ensure!(
        settled == decided,
        "{decided} decisions, and {settled} records and losses"
    );
    Ok(Outcome {
        asked: asked as f64 / seconds,
        stored: stored / drained,
        computed: (
            (computed.0 - computed_before.0) / stored,
            (computed.1 - computed_before.1) / stored,
        ),
        lost: after.lost() - before.lost(),
        seconds,
        behind: drained - seconds,
    })
}

/// Waits until every decision is stored or counted as lost, and gives what the agent counts then.
pub(crate) fn settled(world: &World, before: &Counts) -> Result<Counts> {
    wait_for("every decision to be stored or counted as lost", DRAIN, || {
        let counts = Counts::read(world)?;
        let settled = counts.stored + counts.lost() - before.stored - before.lost();
        Ok((settled >= counts.decided - before.decided).then_some(counts))
    })
}

/// Has the workers connect so many thousand times a second in all. How often they did.
pub(crate) fn connects(workers: &mut [Worker], thousands: u32, milliseconds: u32) -> Result<u64> {
    let to = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7009);
    let per_millisecond = thousands / workers.len() as u32;
    for worker in workers.iter_mut() {
        worker.send(&Order::Storm {
            to,
            per_millisecond,
            milliseconds,
        })?;
    }
    let mut asked = 0;
    for worker in workers.iter_mut() {
        let done = worker.wait()?;
        ensure!(
            done.errno == libc::EPERM,
            "refused connects fail with {}",
            done.errno
        );
        asked += done.count;
    }
    Ok(asked)
}

/// The processes of a server that work on what is inserted.
fn processes(server: &Server) -> Result<Vec<u32>> {
    let pids = server.sql("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()")?;
    Ok(pids.lines().map(str::parse).collect::<Result<_, _>>()?)
}

/// Waits until all that there was to record is stored: what the agent's start left to record, too.
pub(crate) fn at_rest(world: &World) -> Result<()> {
    wait_for("the trail to be at rest", DRAIN, || {
        let status = world.agent.get("/v1/status")?;
        let audit = &status["audit"];
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let settled = number(&audit["stored"]) + audit["lost"].as_object().map_or(0, sum);
        let waits = number(&audit["spool"]["waiting"]);
        Ok((number(&audit["received"]) <= settled && waits == 0).then_some(()))
    })
}

fn sum(losses: &Map<String, Value>) -> u64 {
    losses.values().filter_map(Value::as_u64).sum()
}

/// What the agent counts.
pub(crate) struct Counts {
    pub(crate) decided: u64,
    /// With a spool, what has arrived.
    pub(crate) stored: u64,
    lost_in_ring: u64,
    lost_later: u64,
}

impl Counts {
    pub(crate) fn read(world: &World) -> Result<Self> {
        let status = world.agent.get("/v1/status")?;
        let counter = |name: &str| {
            status["counters"][name]
                .as_u64()
                .context("the status has the kernel's counters")
        };
        let decided = [
            "allowed_observed",
            "allowed_enforced",
            "denied_observed",
            "denied_enforced",
        ];
        let later = status["audit"]["lost"]
            .as_object()
            .context("the status has the losses")?;
        let spool = &status["audit"]["spool"];
        let stored = match spool {
            Value::Null => &status["audit"]["stored"],
            spool => &spool["shipped"],
        };
        Ok(Self {
            decided: decided.into_iter().map(counter).sum::<Result<u64>>()?,
            lost_in_ring: counter("events_lost")?,
            lost_later: sum(later) + spool["lost"].as_object().map_or(0, sum),
            stored: stored.as_u64().context("the status has the records stored")?,
        })
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost_in_ring + self.lost_later
    }
}
