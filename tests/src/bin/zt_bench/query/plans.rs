// SPDX-License-Identifier: Apache-2.0
//! How `PostgreSQL` finds its answers: `EXPLAIN (ANALYZE, BUFFERS)` of every statement of every question, as the server
//! itself notes it (`auto_explain`) while the agent's own code asks.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;
use zt_tests::entries::Maker;
use zt_tests::wait_for;

use super::fill::Full;
use super::{places, questions};
use crate::Plan;
use crate::report::{Metric, Target};

/// What the server is started with. Nothing is noted until the library is loaded, for the connections of [`write`]. Timing
/// every node would make slow what is quick; how often each ran and what it read is what matters.
pub(super) const SETTINGS: &str = "auto_explain.log_min_duration = 0\nauto_explain.log_analyze = on\n\
                                   auto_explain.log_buffers = on\nauto_explain.log_timing = off\n\
                                   auto_explain.log_format = json\n";

const PATIENCE: Duration = Duration::from_secs(30);

/// How one page was found.
#[derive(Serialize)]
struct Found {
    question: String,
    page: &'static str,
    records: usize,
    /// Pages of 8 KiB, in memory or on disk, of all its statements.
    blocks: u64,
    statements: Vec<Value>,
}

/// Asks every question once more and writes down how it was answered.
pub(super) async fn write(plan: &Plan, full: &Full, maker: &Maker, metrics: &mut Vec<Metric>) -> Result<()> {
    full.server
        .sql("ALTER SYSTEM SET session_preload_libraries = 'auto_explain'")?;
    full.server.sql("SELECT pg_reload_conf()")?;
    wait_for("the server to have read its settings", PATIENCE, || {
        let loaded = full.server.sql("SHOW session_preload_libraries")?;
        Ok((loaded == "auto_explain").then_some(()))
    })?;
    let log = Log::new(full.server.directory().join("log"));
    let reader = full.reader()?;
    let mut all = Vec::new();
    for question in questions::all(maker)? {
        for (page, cursor) in places(plan, maker) {
            let before = log.length()?;
            let answer = reader.query(&question.filter, cursor, super::LIMIT).await?;
            let statements = log.plans_after(before)?;
            all.push(Found {
                question: question.name.clone(),
                page,
                records: answer.records.len(),
                blocks: statements.iter().map(blocks).sum(),
                statements,
            });
        }
    }
    let most = all.iter().max_by_key(|found| found.blocks).context("no plan")?;
    let line = format!(
        "  PostgreSQL: most blocks of 8 KiB that a page reads: {}, {} page",
        most.question, most.page
    );
    metrics.push(Metric::value(line, "blocks", most.blocks as f64));
    let scans = all
        .iter()
        .flat_map(|found| &found.statements)
        .filter(|plan| scans_records(plan));
    let line = format!(
        "  PostgreSQL: scans of a whole partition in the plans of {} pages",
        all.len()
    );
    metrics.push(Metric::value(line, "", scans.count() as f64).target(Target::AtMost(0.0)));
    fs::write(&plan.plans, serde_json::to_string(&all)?)
        .with_context(|| format!("cannot write {}", plan.plans.display()))?;
    eprintln!("  the plans are in {}", plan.plans.display());
    Ok(())
}

/// Blocks that a statement touched: its topmost node counts for all below.
fn blocks(statement: &Value) -> u64 {
    let number = |field: &str| statement["Plan"][field].as_u64().unwrap_or(0);
    number("Shared Hit Blocks") + number("Shared Read Blocks")
}

/// Whether a node of a plan walks through a partition of records from end to end.
fn scans_records(value: &Value) -> bool {
    match value {
        Value::Object(node) => {
            let name = node.get("Relation Name").and_then(Value::as_str);
            let scans = node.get("Node Type").is_some_and(|kind| kind == "Seq Scan");
            // An empty partition is read in no time, and by no index.
            let some = node.get("Actual Rows").and_then(Value::as_f64) > Some(0.0)
                || node.get("Rows Removed by Filter").and_then(Value::as_f64) > Some(0.0);
            scans && some && name.is_some_and(|name| name.starts_with("record"))
                || node.values().any(scans_records)
        }
        Value::Array(values) => values.iter().any(scans_records),
        _ => false,
    }
}

/// The server's log.
struct Log {
    path: PathBuf,
}

impl Log {
    fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn length(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path)?.len())
    }

    /// The plans that were noted behind a place. A statement is answered when its plan is noted.
    fn plans_after(&self, place: u64) -> Result<Vec<Value>> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut file = fs::File::open(&self.path)?;
        file.seek(SeekFrom::Start(place))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        plans(&text)
    }
}

/// The plans in a log. Lines of an entry after its first begin with a tab.
fn plans(log: &str) -> Result<Vec<Value>> {
    let mut plans = Vec::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.ends_with("plan:") {
            continue;
        }
        let mut json = String::new();
        while let Some(more) = lines.next_if(|line| line.starts_with('\t')) {
            json.push_str(more.trim_start_matches('\t'));
            json.push('\n');
        }
        plans.push(serde_json::from_str(&json).context("a plan in the server's log")?);
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_found_between_other_lines() -> Result<()> {
        let log = "2026-11-26 LOG:  duration: 1.2 ms  plan:\n\t{\n\t  \"Plan\": {\"Shared Hit Blocks\": 3, \"Shared Read Blocks\": 2}\n\t}\n\
                   2026-11-26 LOG:  else\n\tmore\n2026-11-26 LOG:  duration: 0.1 ms  plan:\n\t{}\n";
        let plans = plans(log)?;
        assert_eq!(plans.len(), 2);
        assert_eq!(blocks(&plans[0]), 5);
        Ok(())
    }

    #[test]
    fn a_scan_counts_wherever_it_is() {
        let scan = serde_json::json!({"Plan": {"Plans": [
            {"Node Type": "Seq Scan", "Relation Name": "record_20261126", "Actual Rows": 7}
        ]}});
        assert!(scans_records(&scan));
        let index =
            serde_json::json!({"Plan": {"Node Type": "Index Scan", "Relation Name": "record_20261126"}});
        assert!(!scans_records(&index));
    }
}
