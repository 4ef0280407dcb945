// SPDX-License-Identifier: Apache-2.0
//! The switch to enforcing, and what it means for everyone.

use super::super::actor::place_of;
use super::super::cast::Who;
use super::super::error::DemoError;
use super::super::order::{Order, now};
use super::super::screen::duration;
use super::{Story, reached, refused, words};

/// How often one thing is done for a median.
const TIMES: u32 = 101;

impl Story {
    pub(super) fn enforce(&mut self) -> Result<(), DemoError> {
        self.screen.chapter("The switch: mode enforce")?;
        self.screen
            .say("workloads.yaml is rewritten with `mode: enforce`; the agent sees it by itself.")?;
        let order = place_of(Who::Postgres, false).map(|(to, speak)| Order::UntilRefused {
            to,
            speak,
            deadline: 10_000,
        });
        let Some(order) = order else { return Ok(()) };
        self.world.actor(Who::Chat)?.order(order)?;
        self.world.actor(Who::Chat)?.begun()?;
        let begin = now();
        self.agent.files.write_workloads(&self.world.names, "enforce")?;
        let report = self.world.actor(Who::Chat)?.report()?;
        self.attempts += u64::from(report.attempts);
        let text = format!(
            "chat, which kept trying postgres:5432, is {} {} after the file changed",
            words(&report.outcome),
            duration(report.at.saturating_sub(begin))
        );
        self.screen.expect(refused(&report), &text)
    }

    pub(super) fn who_reaches_whom(&mut self) -> Result<(), DemoError> {
        self.screen.chapter("Who reaches whom")?;
        let report = self.reach(Who::Chat, Who::Postgres, false, TIMES)?;
        let text = format!(
            "chat → postgres:5432 is {}, in {} (median of {})",
            words(&report.outcome),
            duration(report.connect_ns),
            report.attempts
        );
        self.screen
            .expect(refused(&report) && report.attempts == TIMES, &text)?;
        let report = self.reach(Who::Iam, Who::Postgres, false, 5)?;
        let text = format!(
            "iam  → postgres:5432 is connected in {}, and {}",
            duration(report.connect_ns),
            words(&report.outcome)
        );
        self.screen.expect(reached(&report), &text)?;
        self.screen.gap()?;
        self.matrix("now")?;
        let same = self.same_answers()?;
        let text = format!("POST /v1/evaluate gives the same answer as the kernel for {same} of 20 pairs");
        self.screen.expect(same == 20, &text)
    }
}
