// SPDX-License-Identifier: Apache-2.0
//! The receiving end decides for itself, whatever the sending end does, and by who the sender is and not by his address.

use serde_json::json;

use super::super::super::cast::Who;
use super::super::super::error::DemoError;
use super::super::super::network;
use super::super::super::order::Order;
use super::super::super::story::words;
use super::super::report::Row;
use super::Trial;
use super::flows::{is_of, on_record, was_stopped, ways};

/// How long it is waited for an answer that must not come, in ms.
const SHORT: u64 = 300;

impl Trial {
    /// Chat observes, and would be let through by its own end.
    pub(super) fn at_the_destination(&mut self) -> Result<(), DemoError> {
        const CHECK: &str = "deny at the destination";
        const EXPECTED: &str = "stopped there, recorded";
        self.switch_chat("observe", 1)?;
        for way in ways() {
            if self.skips(CHECK, EXPECTED, way) {
                continue;
            }
            let report = self.reach((Who::Chat, Who::Postgres), way, SHORT)?;
            let record = self.record(Some(Who::Chat), Who::Postgres, |record| {
                is_of(record, Who::Postgres, way)
                    && record["observer"] == "destination"
                    && record["decision"] == "DENY"
                    && record["enforced"] == true
            })?;
            let found = format!("{}{}", words(&report.outcome), on_record(record.is_some()));
            let holds = was_stopped(&report.outcome) && record.is_some();
            let row = Row::new(CHECK, EXPECTED, holds, found);
            self.note(row.over(way.1, way.0.name()));
        }
        self.borrow_an_address()?;
        self.switch_chat("enforce", 0)
    }

    /// Iam may reach postgres. Chat has its address now, and nobody has told the directory.
    fn borrow_an_address(&mut self) -> Result<(), DemoError> {
        const CHECK: &str = "borrowed address";
        const EXPECTED: &str = "refused under its true name";
        if !self.proves() {
            let row = Row::not_applicable(CHECK, EXPECTED, "`handshake` is off in the configuration");
            self.note(row.over(false, "TCP"));
            return Ok(());
        }
        let (to, speak) = Self::place(Who::Postgres, false)?;
        let address = Who::Iam.ipv4();
        network::lend(&self.world.names)?;
        let order = Order::ReachFrom {
            from: Some(address),
            to,
            speak,
        };
        let report = self.world.actor(Who::Chat)?.call(order)?;
        let record = self.record(None, Who::Postgres, |record| {
            record["observer"] == "destination"
                && record["source"]["address"] == json!(address)
                && record["decision"] == "DENY"
        })?;
        network::give_back(&self.world.names)?;
        let who = record.as_ref().map_or("nobody", |record| {
            record["source"]["spiffe_id"].as_str().unwrap_or("unknown")
        });
        let enforced = record.as_ref().is_some_and(|record| record["enforced"] == true);
        let holds = was_stopped(&report.outcome) && enforced && who == Who::Chat.spiffe();
        let found = format!("{}; on record as {who}", words(&report.outcome));
        self.note(Row::new(CHECK, EXPECTED, holds, found).over(false, "TCP"));
        Ok(())
    }

    fn switch_chat(&mut self, mode: &str, observing: usize) -> Result<(), DemoError> {
        let of = |who| if who == Who::Chat { mode } else { "enforce" };
        self.agent.files.write_modes(&self.world.names, of)?;
        if !self.wait_observing(observing)? {
            let found = format!("chat is not in mode {mode}");
            self.note(Row::new(
                "enforce",
                "the mode of one workload changes",
                false,
                found,
            ));
        }
        Ok(())
    }
}
