// SPDX-License-Identifier: Apache-2.0
//! Observe mode: nothing is refused, and it is known what would be.

use serde_json::{Value, json};

use super::super::cast::Who;
use super::super::error::DemoError;
use super::super::screen::duration;
use super::{Story, reached, words};

impl Story {
    pub(super) fn observe(&mut self) -> Result<(), DemoError> {
        self.screen.chapter("The agent arrives, and only watches")?;
        let ready = self.agent.start()?;
        let status = format!(
            "zt-agent is process {}, in mode observe; its hooks were attached {} after it was started",
            self.agent.pid(),
            duration(ready.as_nanos() as u64)
        );
        self.screen.say(&status)?;
        self.screen
            .say("Policy does not let chat talk to postgres. It tries:")?;
        let report = self.reach(Who::Chat, Who::Postgres, false, 1)?;
        let text = format!(
            "chat → postgres:5432 is let through; it {}",
            words(&report.outcome)
        );
        self.screen.expect(reached(&report), &text)?;
        let query = [
            ("source", Who::Chat.spiffe()),
            ("destination", Who::Postgres.spiffe()),
            ("limit", "10".to_owned()),
        ];
        let found = self.agent.get_until("/v1/audit", &query, |answer| {
            answer["records"]
                .as_array()
                .is_some_and(|records| !records.is_empty())
        })?;
        let record = found
            .map(|answer| answer["records"][0].clone())
            .unwrap_or_default();
        let would_be = record["decision"] == "DENY" && record["enforced"] == false;
        self.screen
            .expect(would_be, "... and on record as what enforcing would refuse:")?;
        self.screen.faint(&extract(&record))
    }
}

/// The fields of a record that matter here.
fn extract(record: &Value) -> String {
    let line = |value: Value| {
        let text = value.to_string();
        format!(
            "    {}",
            text.get(1..text.len().saturating_sub(1)).unwrap_or_default()
        )
    };
    let end = |end: &Value| {
        let fields = ["spiffe_id", "address", "port"]
            .into_iter()
            .filter(|field| !end[field].is_null());
        fields
            .map(|field| (field.to_owned(), end[field].clone()))
            .collect::<Value>()
    };
    [
        line(json!({"timestamp": record["timestamp"]})),
        line(json!({"decision": record["decision"]})),
        line(json!({"enforced": record["enforced"]})),
        line(json!({"source": end(&record["source"])})),
        line(json!({"destination": end(&record["destination"])})),
        line(json!({"policy_matched": record["policy_matched"]})),
        line(json!({"reason": record["reason"]})),
        line(json!({"latency_us": record["latency_us"]})),
    ]
    .join("\n")
}
