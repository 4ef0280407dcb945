// SPDX-License-Identifier: Apache-2.0
//! Decisions in user space by a call, beside those of other engines: what `zt-peers` measured, as lines of the table.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::Plan;
use crate::report::{Metric, Target};
use crate::samples::{Summary, ratio};

/// The engine that the others are compared with.
const ZT: &str = "zt";

/// What `zt-peers` says of one engine.
#[derive(Deserialize)]
struct Measured {
    engine: String,
    rules: usize,
    threads: usize,
    nanoseconds: Vec<f64>,
}

/// By a call, from one thread and from all, with ever more rules.
pub(crate) fn in_process(plan: &Plan, metrics: &mut Vec<Metric>) -> Result<()> {
    let peers = std::env::current_exe()?.with_file_name("zt-peers");
    ensure!(
        peers.exists(),
        "{} is not there: `cargo xtask bench` builds it",
        peers.display()
    );
    let output = Command::new(peers)
        .args(["--rounds", &plan.rounds(5, 15).to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "zt-peers ended with {}", output.status);
    let all: Vec<Measured> = serde_json::from_slice(&output.stdout).context("what zt-peers printed")?;
    for one in &all {
        let same = |threads: usize| {
            all.iter()
                .find(|other| other.engine == ZT && other.rules == one.rules && other.threads == threads)
                .map(|other| &*other.nanoseconds)
        };
        let line = format!(
            "{}: {} rules, {} thread(s), time for each",
            one.engine, one.rules, one.threads
        );
        let mut metric = Metric::summed(line, "ns", Summary::of(&one.nanoseconds));
        let with = if one.engine != ZT {
            metric.name.push_str("; ratio to zt");
            same(one.threads)
        } else if one.threads > 1 {
            metric.name.push_str("; ratio to one thread");
            same(1)
        } else {
            metric = metric.target(Target::AtMost(300.0));
            None
        };
        metric.ratio = with.and_then(|with| ratio(&one.nanoseconds, with));
        metrics.push(metric);
    }
    Ok(())
}
