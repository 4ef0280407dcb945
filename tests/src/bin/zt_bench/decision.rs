// SPDX-License-Identifier: Apache-2.0
//! What one decision costs in the kernel, by the kernel's own measure, and which programs a connection runs.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use crate::Plan;
use crate::crew::Worker;
use crate::order::Order;
use crate::report::{Metric, Target};
use crate::samples::Summary;
use crate::traffic::{Stage, far};
use crate::world::{World, wide};
use zt_tests::programs::Measuring;

const CONNECT: &str = "zt_connect4";
/// Connections of one batch.
const COUNT: u32 = 1000;

/// One decision with ever larger tables.
pub(crate) fn cost(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let stage = Stage::set(plan, "decision")?;
    let mut worker = stage.managed_client()?;
    let order = Order::Connects {
        to: far(),
        count: COUNT,
    };
    let measuring = Measuring::begin(stage.world.programs()?)?;
    let mut smallest = None;
    let sizes: &[usize] = if plan.quick {
        &[10, 1000, 100_000]
    } else {
        &[10, 1000, 100_000, 1_000_000]
    };
    for &entries in sizes {
        match entries {
            10 => {}
            // So many that they are written as patterns: what is decided by is the same table.
            1_000_000 => {
                stage.world.agent.files.write_policy("wide.yaml", &wide(1000))?;
                stage.world.wait_entries(entries)?;
            }
            _ => stage.world.fill(entries)?,
        }
        let mut samples = Vec::new();
        for _ in 0..plan.rounds(20, 40) {
            let did = measuring.during(|| worker.ask(&order).map(drop))?;
            samples.push(did.get(CONNECT).context("zt_connect4 is attached")?.nanoseconds());
        }
        let summary = Summary::of(&samples);
        let median = summary.map(|summary| summary.median);
        let mut metric = Metric::summed(format!("one decision, {entries} entries"), "ns", summary);
        match smallest {
            None => smallest = median,
            Some(first) => {
                metric.ratio = median.map(|median| median / first);
                metric = metric.target(Target::RatioAtMost(1.10));
            }
        }
        metrics.push(metric);
    }
    Ok(())
}

/// Runs, time and size of each program, for one connection of `worker` to `to`.
pub(crate) fn profile(
    world: &World,
    worker: &mut Worker,
    to: SocketAddr,
    name: &str,
    metrics: &mut Vec<Metric>,
) -> Result<()> {
    let measuring = Measuring::begin(world.programs()?)?;
    let order = Order::Connects {
        to,
        count: 10 * COUNT,
    };
    worker.ask(&order)?;
    let did = measuring.during(|| worker.ask(&order).map(drop))?;
    let connections = f64::from(10 * COUNT);
    let mut total = 0.0;
    for (program, did) in did.iter().filter(|(_, did)| did.runs > 0) {
        let runs = did.runs as f64 / connections;
        let line = format!(
            "  {program}, {name}: {runs:.2} runs × {:.0} ns, {} instructions, {} verified",
            did.nanoseconds(),
            did.translated / 8,
            did.verified
        );
        total += runs * did.nanoseconds();
        metrics.push(Metric::value(line, "ns", runs * did.nanoseconds()));
    }
    metrics.push(Metric::value(
        format!("programs for one connection, {name}"),
        "ns",
        total,
    ));
    Ok(())
}
