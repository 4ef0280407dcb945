// SPDX-License-Identifier: Apache-2.0
//! An address that was one workload's is another's now, and nobody has told the directory.

use serde_json::{Value, json};

use super::super::actor::place_of;
use super::super::cast::Who;
use super::super::error::DemoError;
use super::super::network;
use super::super::order::Order;
use super::{Story, reached, words};

impl Story {
    pub(super) fn borrow_an_address(&mut self) -> Result<(), DemoError> {
        self.screen.chapter("A borrowed address")?;
        let Some((to, speak)) = place_of(Who::Postgres, false) else {
            return Ok(());
        };
        let address = Who::Iam.ipv4();
        let text = format!(
            "iam may reach postgres, and is at {address} by the directory. Now chat has that address, and its end only observes:"
        );
        self.screen.say(&text)?;
        network::lend(&self.world.names)?;
        self.switch_chat("observe", 1)?;
        let from = Some(address);
        let report = self.call(Who::Chat, Order::ReachFrom { from, to, speak })?;
        let text = format!("chat, from {address}, → postgres:5432 {}", words(&report.outcome));
        self.screen.expect(!reached(&report), &text)?;
        let query = [
            ("destination", Who::Postgres.spiffe()),
            ("decision", "DENY".to_owned()),
            ("limit", "20".to_owned()),
        ];
        let by_postgres = |answer: &Value| {
            let records = answer["records"].as_array().cloned().unwrap_or_default();
            records.into_iter().find(|record| {
                record["observer"] == "destination" && record["source"]["address"] == json!(address)
            })
        };
        let found = self
            .agent
            .get_until("/v1/audit", &query, |answer| by_postgres(answer).is_some())?;
        let record = found.as_ref().and_then(by_postgres).unwrap_or_default();
        let named = record["source"]["spiffe_id"] == Who::Chat.spiffe()
            && record["proof"] == "source"
            && record["enforced"] == true;
        self.screen.expect(
            named,
            "... refused by postgres' end under its true name, which its SYN had to prove:",
        )?;
        let shown = json!({
            "decision": record["decision"], "enforced": record["enforced"], "reason": record["reason"],
            "proof": record["proof"],
            "source": { "address": record["source"]["address"], "spiffe_id": record["source"]["spiffe_id"] },
        });
        self.screen.faint(&shown.to_string())?;
        network::give_back(&self.world.names)?;
        self.switch_chat("enforce", 0)?;
        let report = self.reach(Who::Iam, Who::Postgres, false, 1)?;
        let text = format!(
            "iam, with its address back, → postgres:5432 {}",
            words(&report.outcome)
        );
        self.screen.expect(reached(&report), &text)
    }

    /// Gives chat another mode, and waits until as many workloads observe as then do.
    fn switch_chat(&self, mode: &str, observing: usize) -> Result<(), DemoError> {
        let of = |who| if who == Who::Chat { mode } else { "enforce" };
        self.agent.files.write_modes(&self.world.names, of)?;
        self.agent.get_until("/v1/status", &[], |status| {
            status["modes"]["observe"] == observing
        })?;
        Ok(())
    }
}
