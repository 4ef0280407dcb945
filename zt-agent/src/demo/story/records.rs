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
        let rows = self.latest()?;
        self.screen
            .table(&["TIME", "DECISION", "FROM", "TO", "BECAUSE"], &rows)?;
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
    fn count_records(&self) -> Result<u64, DemoError> {
        let begin = Instant::now();
        loop {
            let recorded = self.read_records()?;
            if recorded >= self.attempts || begin.elapsed() > DEADLINE / 6 {
                return Ok(recorded);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The latest of each kind of refusal, as rows: one that was repeated a thousand times says no more than once.
    fn latest(&self) -> Result<Vec<Vec<Cell>>, DemoError> {
        let mut rows: Vec<Vec<Cell>> = Vec::new();
        self.each_record(&[("decision", "DENY".to_owned())], |found| {
            let row = record(found);
            if rows.len() < SHOWN && !rows.iter().any(|shown| shown.get(1..) == row.get(1..)) {
                rows.push(row);
            }
        })?;
        Ok(rows)
    }

    fn read_records(&self) -> Result<u64, DemoError> {
        let mut sum = 0;
        self.each_record(&[], |record| {
            // What the API was asked and what was revoked later is no connection that was tried.
            if record["observer"] == "source" && record["hook"] != "api" && record["reason"] != "revoked" {
                sum += record["count"].as_u64().unwrap_or(1);
            }
        })?;
        Ok(sum)
    }

    /// Every record that `filter` lets through, newest first.
    fn each_record(
        &self,
        filter: &[(&'static str, String)],
        mut see: impl FnMut(&Value),
    ) -> Result<(), DemoError> {
        let mut cursor: Option<String> = None;
        loop {
            let mut query = filter.to_vec();
            query.push(("limit", "1000".to_owned()));
            query.extend(cursor.map(|cursor| ("cursor", cursor)));
            let page = self.agent.get("/v1/audit", &query)?;
            page["records"]
                .as_array()
                .into_iter()
                .flatten()
                .for_each(&mut see);
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                return Ok(());
            }
        }
    }
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
