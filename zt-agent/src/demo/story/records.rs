// SPDX-License-Identifier: Apache-2.0
//! What is on record of all this.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::agent::DEADLINE;
use super::super::cast::{Who, short};
use super::super::error::DemoError;
use super::super::screen::{Cell, Look, plain};
use super::Story;

/// How many of the last refusals are shown.
const SHOWN: usize = 6;

impl Story {
    pub(super) fn look_at_the_records(&mut self) -> Result<(), DemoError> {
        self.screen.chapter("What is on record")?;
        let recorded = self.count_records()?;
        let text = format!(
            "{} connections were tried since the agent came, also while it was dead: {recorded} decisions on record",
            self.attempts
        );
        self.screen.expect(recorded == self.attempts, &text)?;
        self.screen.gap()?;
        self.screen
            .say("The last ones that policy refused (zt-agent audit query --decision deny):")?;
        let query = [("decision", "DENY".to_owned()), ("limit", "1000".to_owned())];
        let answer = self.agent.get("/v1/audit", &query)?;
        let records = answer["records"].as_array().into_iter().flatten();
        self.screen
            .table(&["TIME", "DECISION", "FROM", "TO", "BECAUSE"], &latest(records))?;
        self.screen.gap()?;
        self.screen
            .say("Who talks to whom (zt-agent graph, also -o dot and -o mermaid):")?;
        let graph = self.agent.get("/v1/graph", &[])?;
        let edges: Vec<Value> = graph["edges"].as_array().cloned().unwrap_or_default();
        let rows: Vec<_> = Who::ALL.into_iter().map(|who| edges_of(who, &edges)).collect();
        let places = Who::SERVERS.map(Who::place_name);
        let header: Vec<&str> = std::iter::once("FROM / TO")
            .chain(places.iter().map(String::as_str))
            .collect();
        self.screen.table(&header, &rows)?;
        // Those that nobody allows by a rule are allowed to themselves.
        let missing = Who::POLICY.iter().filter(|(from, to)| {
            !edges.iter().any(|edge| {
                edge["source"] == from.spiffe()
                    && edge["destination"] == to.spiffe()
                    && count(edge, "allowed") > 0
                    && count(edge, "denied") == 0
            })
        });
        let missing = missing.count();
        self.screen.expect(
            missing == 0,
            "the graph has every way that policy opens, and no refusal on any of them",
        )
    }

    /// The decisions of connecting ends on record: asked until they are all there, or for as long as is reasonable.
    pub(super) fn count_records(&self) -> Result<u64, DemoError> {
        let begin = Instant::now();
        loop {
            let recorded = self.read_records()?;
            if recorded >= self.attempts || begin.elapsed() > DEADLINE / 6 {
                return Ok(recorded);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn read_records(&self) -> Result<u64, DemoError> {
        let mut sum = 0;
        let mut cursor: Option<String> = None;
        loop {
            let mut query = vec![("limit", "1000".to_owned())];
            query.extend(cursor.map(|cursor| ("cursor", cursor)));
            let page = self.agent.get("/v1/audit", &query)?;
            let records = page["records"].as_array().into_iter().flatten();
            // What the API was asked and what was revoked later is no connection that was tried.
            let tried = records.filter(|record| {
                record["observer"] == "source" && record["hook"] != "api" && record["reason"] != "revoked"
            });
            sum += tried
                .map(|record| record["count"].as_u64().unwrap_or(1))
                .sum::<u64>();
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                return Ok(sum);
            }
        }
    }
}

/// The latest of each kind of refusal, as rows: one that was repeated a thousand times says no more than once.
fn latest<'a>(records: impl Iterator<Item = &'a Value>) -> Vec<Vec<Cell>> {
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    for row in records.map(record) {
        if rows.len() < SHOWN && !rows.iter().any(|shown| shown.get(1..) == row.get(1..)) {
            rows.push(row);
        }
    }
    rows
}

fn record(record: &Value) -> Vec<Cell> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let time = text(&record["timestamp"]).get(11..23).unwrap_or("-").to_owned();
    let decision = if record["enforced"] == true {
        (text(&record["decision"]), Look::Bad)
    } else {
        (format!("{} (observed)", text(&record["decision"])), Look::Caution)
    };
    let party = |end: &Value| {
        short(
            end["spiffe_id"]
                .as_str()
                .or(end["entity"].as_str())
                .unwrap_or("?"),
        )
        .to_owned()
    };
    vec![
        (time, Look::Faint),
        decision,
        plain(party(&record["source"])),
        plain(format!(
            "{}:{}",
            party(&record["destination"]),
            record["destination"]["port"]
        )),
        (
            record["policy_matched"]
                .as_str()
                .map_or_else(|| text(&record["reason"]), str::to_owned),
            Look::Faint,
        ),
    ]
}

/// What `who` did, one cell for each server.
fn edges_of(who: Who, edges: &[Value]) -> Vec<Cell> {
    let cell = |server: Who| {
        let ends = |edge: &&Value| edge["source"] == who.spiffe() && edge["destination"] == server.spiffe();
        let sum = |field: &str| {
            edges
                .iter()
                .filter(ends)
                .map(|edge| count(edge, field))
                .sum::<u64>()
        };
        match (sum("allowed"), sum("denied"), sum("would_deny")) {
            (0, 0, 0) => ("-".to_owned(), Look::Faint),
            (allowed, 0, 0) => (format!("{allowed} allowed"), Look::Good),
            (0, denied, 0) => (format!("{denied} denied"), Look::Bad),
            (0, denied, observed) => (format!("{denied} denied, {observed} observed"), Look::Caution),
            (allowed, denied, observed) => (
                format!("{allowed} allowed, {} denied", denied + observed),
                Look::Caution,
            ),
        }
    };
    std::iter::once(plain(who.name()))
        .chain(Who::SERVERS.map(cell))
        .collect()
}

fn count(edge: &Value, field: &str) -> u64 {
    edge[field].as_u64().unwrap_or(0)
}
