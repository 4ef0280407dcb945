// SPDX-License-Identifier: Apache-2.0
//! What an agent says about decisions: its records, and the kernel's counters.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::linux;
use crate::wait::{eventually, wait_for};

/// How long a record may take from the decision to the trail.
pub const RECORDED: Duration = Duration::from_secs(60);
/// The most that one answer of the API holds.
const PAGE: usize = 1000;

impl Agent {
    /// Records of the audit trail, newest first. `query` is `decision=DENY&limit=10` and the like.
    pub fn audit(&self, query: &str) -> Result<Vec<Value>> {
        let answer = self.get(&format!("/v1/audit?{query}"))?;
        let records = answer["records"].as_array().cloned();
        records.with_context(|| format!("no records in {answer}"))
    }

    /// Asks for records until `enough` says so.
    pub fn wait_audit(
        &self,
        query: &str,
        deadline: Duration,
        enough: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>> {
        let mut last = Vec::new();
        let found = wait_for(&format!("audit records for {query}"), deadline, || {
            last = self.audit(query)?;
            Ok(enough(&last).then(|| last.clone()))
        });
        found.with_context(|| format!("the {} records were: {}", last.len(), json!(last)))
    }

    /// All records of a query, oldest first, however many pages they are.
    pub fn all_records(&self, query: &str) -> Result<Vec<Value>> {
        let mut records = Vec::new();
        let mut cursor = String::new();
        loop {
            let mut page = self.get(&format!("/v1/audit?limit={PAGE}&{query}{cursor}"))?;
            let found = page["records"]
                .as_array_mut()
                .context("an answer without records")?;
            records.append(found);
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        records.reverse();
        Ok(records)
    }

    /// Waits until records that satisfy the query and `wanted` stand for `count` decisions, and returns them, oldest first. More
    /// are a failure. Denials that repeat more than ten times in a second share a record.
    pub fn records(&self, query: &str, count: usize, wanted: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        let found = wait_for(&format!("{count} records of {query:?}"), RECORDED, || {
            all = self.all_records(query)?;
            let found: Vec<Value> = all.iter().filter(|record| wanted(record)).cloned().collect();
            Ok((decided(&found) >= count as u64).then_some(found))
        });
        let found = found.with_context(|| format!("the records were: {}", listing(&all)))?;
        ensure!(
            decided(&found) == count as u64,
            "records of {} decisions instead of {count}: {}",
            decided(&found),
            listing(&found)
        );
        Ok(found)
    }

    /// A counter of the kernel programs, by its name in `/v1/status`.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let status = self.get("/v1/status")?;
        let counter = status["counters"][name].as_u64();
        counter.with_context(|| format!("no counter {name} in {status}"))
    }

    /// Whether packet sockets and the like are decided on, by the agent's status. On a kernel that can for certain they are to be.
    pub fn decides_packet_sockets(&self) -> Result<bool> {
        let status = self.get("/v1/status")?;
        let said = &status["packet_sockets"];
        let decided = said["decided"].as_bool();
        let decided = decided.with_context(|| format!("no packet_sockets in {status}"))?;
        ensure!(
            decided || !linux::has_lsm_for_certain(),
            "this kernel has BPF LSM, and packet sockets are not decided on: {said}"
        );
        ensure!(decided == said["reason"].is_null(), "{said}");
        Ok(decided)
    }

    /// The decisions that the kernel programs have counted.
    pub fn decisions(&self) -> Result<u64> {
        let status = self.get("/v1/status")?;
        let counters = [
            "allowed_observed",
            "allowed_enforced",
            "denied_observed",
            "denied_enforced",
        ];
        counters
            .into_iter()
            .map(|name| {
                let counter = status["counters"][name].as_u64();
                counter.with_context(|| format!("no counter {name} in {status}"))
            })
            .sum()
    }

    /// How many decisions were lost for a cause that this run of the agent has counted.
    pub fn lost(&self, cause: &str) -> Result<u64> {
        Ok(self.metrics()?.sum("zt_events_lost_total", &[("cause", cause)]))
    }

    /// Waits until every decision is a record, or was counted as lost: in the ring buffer, or for `cause`, `before` of them in
    /// earlier runs of the agent. No record may be there twice, and no decision be both.
    pub fn settled(&self, cause: &str, before: u64) -> Result<()> {
        let mut accounts = (0, 0, 0, 0);
        let all = eventually("all decisions to be settled", RECORDED, || {
            let records = self.all_records("type=decision")?;
            let ids: HashSet<&str> = records
                .iter()
                .filter_map(|record| record["id"].as_str())
                .collect();
            ensure!(ids.len() == records.len(), "a record is there twice");
            let (lost, ring) = (before + self.lost(cause)?, self.counter("events_lost")?);
            accounts = (self.decisions()?, decided(&records), lost, ring);
            let (decisions, stored, lost, ring) = accounts;
            ensure!(stored + lost + ring <= decisions, "more than was decided");
            Ok(stored + lost + ring == decisions)
        });
        all.with_context(|| self.log_tail())
            .with_context(|| format!("decisions, records of them, lost, lost in the ring: {accounts:?}"))
    }

    /// Puts a policy in force in place of the one that a scene's agent began with, and waits until it is.
    pub fn change_policy(&self, text: &str) -> Result<u64> {
        let before = self.revision()?;
        self.files.write_policy("policy.yaml", text)?;
        self.wait_revision_after(before)
    }
}

/// For how many decisions records stand.
pub fn decided(records: &[Value]) -> u64 {
    let count = |record: &Value| record["count"].as_u64().unwrap_or(1);
    records.iter().map(count).sum()
}

/// Records in a form in which many can be read.
fn listing(records: &[Value]) -> String {
    let lines = records.iter().map(|record| format!("\n  {record}"));
    lines.collect()
}

/// A record says this of who, whom, what and why; `name` is a SPIFFE ID or an entity.
pub fn says(record: &Value, source: &str, destination: &str, decision: &str, reason: &str) -> bool {
    party(&record["source"]) == source
        && party(&record["destination"]) == destination
        && record["decision"] == decision
        && record["reason"] == reason
}

/// The SPIFFE ID, or else the entity.
pub fn party(party: &Value) -> &str {
    let name = party["spiffe_id"].as_str().or(party["entity"].as_str());
    name.unwrap_or("nobody")
}
