// SPDX-License-Identifier: Apache-2.0
//! Decisions on their way into the store: at which rate none is lost.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use zt_tests::wait_for;

use crate::Plan;
use crate::crew::Worker;
use crate::order::Order;
use crate::report::{Metric, Target};
use crate::world::{World, filled};

/// How long a backlog may take to be stored.
const DRAIN: Duration = Duration::from_secs(30);

/// What became of the decisions of one storm.
struct Outcome {
    /// Decisions that were asked for, each second.
    asked: f64,
    /// Records stored, each second, until the last was.
    stored: f64,
    lost: u64,
    seconds: f64,
}

/// Storms of refused connects at rising rates, then as fast as it goes.
pub(crate) fn rates(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let mut cgroup = None;
    let world = World::start("trail", |sandbox, builder| {
        let (client, workload) = World::member(sandbox, "client")?;
        cgroup = Some(client);
        filled(builder.workload(workload), 100)
    })?;
    let cgroup = cgroup.context("the world was prepared")?;
    let mut workers = [
        Worker::start(&cgroup, None, None)?,
        Worker::start(&cgroup, None, None)?,
    ];
    let milliseconds = if plan.quick { 2000 } else { 5000 };
    let rates: &[u32] = if plan.quick {
        &[110]
    } else {
        &[50, 80, 110, 140, 170, 200]
    };
    let mut best = 0.0;
    for &rate in rates {
        let outcome = storm(&world, &mut workers, rate, milliseconds)?;
        metrics.push(Metric::value(
            format!(
                "  {:.0} decisions/s for {:.1} s: {} lost, stored at",
                outcome.asked, outcome.seconds, outcome.lost
            ),
            "/s",
            outcome.stored,
        ));
        if outcome.lost > 0 {
            break;
        }
        best = outcome.asked;
    }
    let outcome = storm(&world, &mut workers, 0, milliseconds)?;
    if outcome.lost == 0 {
        best = outcome.asked.max(best);
    }
    let name = "decisions recorded into SQLite without loss, highest rate tried";
    metrics.push(Metric::value(name, "/s", best).target(Target::AtLeast(100_000.0)));
    let name = format!(
        "  as fast as two processes go, {:.0}/s: {} lost, stored at",
        outcome.asked, outcome.lost
    );
    metrics.push(Metric::value(name, "/s", outcome.stored));
    Ok(())
}

/// So many thousand decisions a second, from all workers together.
fn storm(world: &World, workers: &mut [Worker], thousands: u32, milliseconds: u32) -> Result<Outcome> {
    let to = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7009);
    let before = Counts::read(world)?;
    let start = Instant::now();
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
    let seconds = start.elapsed().as_secs_f64();
    let after = wait_for("every decision to be stored or counted as lost", DRAIN, || {
        let counts = Counts::read(world)?;
        let settled = counts.stored + counts.lost() - before.stored - before.lost();
        Ok((settled >= counts.decided - before.decided).then_some(counts))
    })?;
    let drained = start.elapsed().as_secs_f64();
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
        stored: (after.stored - before.stored) as f64 / drained,
        lost: after.lost() - before.lost(),
        seconds,
    })
}

/// What the agent counts.
struct Counts {
    decided: u64,
    stored: u64,
    lost_in_ring: u64,
    lost_later: u64,
}

impl Counts {
    fn read(world: &World) -> Result<Self> {
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
        Ok(Self {
            decided: decided.into_iter().map(counter).sum::<Result<u64>>()?,
            lost_in_ring: counter("events_lost")?,
            lost_later: later.values().filter_map(Value::as_u64).sum(),
            stored: status["audit"]["stored"]
                .as_u64()
                .context("the status has the records stored")?,
        })
    }

    fn lost(&self) -> u64 {
        self.lost_in_ring + self.lost_later
    }
}
