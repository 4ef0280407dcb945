// SPDX-License-Identifier: Apache-2.0
//! Decisions over the API, asked for by `wrk`.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::Plan;
use crate::processor;
use crate::report::{Metric, Target};
use crate::world::{World, filled};

const ENTRIES: usize = 100_000;
/// What `wrk` sends, and how it says what came of it.
const SCRIPT: &str = include_str!("http/evaluate.lua");
/// How to get what asks.
const INSTALL: &str = "wrk is not installed: run `apt-get install --no-install-recommends wrk`";

/// One way to ask.
struct Load {
    connections: u32,
    /// Requests under way on a connection.
    depth: u32,
    /// Decisions of a request.
    batch: u32,
}

const LOADS: [Load; 5] = [
    Load {
        connections: 1,
        depth: 1,
        batch: 1,
    },
    Load {
        connections: 32,
        depth: 1,
        batch: 1,
    },
    Load {
        connections: 256,
        depth: 1,
        batch: 1,
    },
    Load {
        connections: 8,
        depth: 16,
        batch: 1,
    },
    Load {
        connections: 4,
        depth: 1,
        batch: 100,
    },
];

/// What the script prints.
#[derive(Deserialize)]
struct Outcome {
    requests: u64,
    microseconds: f64,
    /// Connections, reads, writes and statuses that failed, and requests that were not answered in time.
    failed: u64,
    /// Microseconds: 50 %, 90 %, 99 % and 99.9 % of the answers came within.
    latency: [f64; 4],
}

/// With ever more connections, requests and decisions at a time.
pub(crate) fn evaluate(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    ensure!(
        Command::new("wrk").arg("-v").output().is_ok(),
        "{INSTALL}, or let `cargo xtask bench` do it"
    );
    let world = World::start("http", |_, builder| filled(builder, ENTRIES))?;
    let script = world.sandbox.directory().join("evaluate.lua");
    fs::write(&script, SCRIPT)?;
    for load in LOADS {
        let pid = world.agent.pid().context("the agent is running")?;
        let (outcome, computed) = load.run(world.agent.api(), pid, &script, plan.rounds(2, 10))?;
        let decisions = outcome.requests * u64::from(load.batch);
        let rate = decisions as f64 / outcome.microseconds * 1e6;
        metrics.push(Metric::value(load.name(), "/s", rate));
        let each = computed / decisions as f64;
        metrics.push(Metric::value(
            "  processor time of the agent for each decision",
            "µs",
            each,
        ));
        // `wrk` runs on the same processors, and takes a third of their time.
        let mut alone = Metric::value("  two processors of the agent's own answer", "/s", 2e6 / each);
        if load.connections > 1 && load.depth == 1 {
            alone = alone.target(Target::AtLeast(50_000.0));
        }
        metrics.push(alone);
        for (share, time) in ["50 %", "90 %", "99 %", "99.9 %"]
            .into_iter()
            .zip(outcome.latency)
        {
            metrics.push(Metric::value(format!("  {share} answered within"), "µs", time));
        }
    }
    Ok(())
}

impl Load {
    fn name(&self) -> String {
        let Self {
            connections,
            depth,
            batch,
        } = self;
        let what = if *batch == 1 {
            String::new()
        } else {
            format!(", {batch} decisions a request")
        };
        format!("HTTP evaluate, wrk, {connections} connection(s), {depth} request(s) under way on each{what}")
    }

    /// What came of it, and the microseconds that the agent computed.
    fn run(&self, server: SocketAddr, agent: u32, script: &Path, seconds: usize) -> Result<(Outcome, f64)> {
        // A second first: caches, and the recorder's batches.
        self.ask(server, script, 1)?;
        let before = processor::microseconds(&[agent]);
        let outcome = self.ask(server, script, seconds)?;
        let computed = processor::microseconds(&[agent]) - before;
        ensure!(
            outcome.failed == 0 && outcome.requests > 0,
            "{}: {} requests failed, {} were answered",
            self.name(),
            outcome.failed,
            outcome.requests
        );
        Ok((outcome, computed))
    }

    fn ask(&self, server: SocketAddr, script: &Path, seconds: usize) -> Result<Outcome> {
        let output = Command::new("wrk")
            .args([
                "--threads",
                if self.connections > 1 { "2" } else { "1" },
                "--connections",
                &self.connections.to_string(),
                "--duration",
                &format!("{seconds}s"),
                "--timeout",
                "10s",
                "--script",
            ])
            .arg(script)
            .arg(format!("http://{server}"))
            .args(["--", &self.depth.to_string(), &self.batch.to_string()])
            .output()
            .context(INSTALL)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = text.lines().find_map(|line| line.strip_prefix("outcome "));
        let said =
            said.with_context(|| format!("wrk said: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
        Ok(serde_json::from_str(said)?)
    }
}
