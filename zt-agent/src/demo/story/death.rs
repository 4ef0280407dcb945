// SPDX-License-Identifier: Apache-2.0
//! The agent dies; the kernel goes on.

use super::super::actor::{Actor, place_of};
use super::super::cast::Who;
use super::super::error::DemoError;
use super::super::order::{Order, Outcome};
use super::super::screen::duration;
use super::{Story, reached, words};

/// How long chat goes on trying at most, in ms: through the death and the new start.
const TRYING: u64 = 60_000;

impl Story {
    pub(super) fn kill_the_agent(&mut self) -> Result<(), DemoError> {
        self.screen.chapter("kill -9 of the agent")?;
        let (Some((database, sql)), Some((cache, ping))) =
            (place_of(Who::Postgres, false), place_of(Who::Redis, false))
        else {
            return Ok(());
        };
        let before = self.agent.get("/v1/policies", &[])?;
        let session = self.call(
            Who::Iam,
            Order::Keep {
                to: database,
                speak: sql,
            },
        )?;
        let text = format!("iam has a session with postgres; it {}", words(&session.outcome));
        self.screen.expect(reached(&session), &text)?;
        let mut second = Actor::start(&self.world.names, Who::Chat, &[])?;
        let pid = self.agent.pid();
        self.agent.kill()?;
        second.order(Order::UntilReached {
            to: cache,
            speak: ping,
            deadline: TRYING,
        })?;
        second.begun()?;
        self.screen
            .say(&format!("kill -9 {pid}. There is no agent now."))?;
        self.screen
            .say("From here on a second process of chat tries redis:6379 again and again.")?;
        self.screen.gap()?;
        self.matrix("without an agent")?;
        let asked = self.call(Who::Iam, Order::Ask)?;
        let same = asked.outcome == session.outcome;
        self.screen.expect(
            same,
            &format!("iam's session lives: postgres {}", words(&asked.outcome)),
        )?;

        let took = self.agent.start()?;
        let after = self.agent.get("/v1/policies", &[])?;
        let text = format!(
            "a new agent, process {}, has taken over {} after its start, with the same policy (digest {}...)",
            self.agent.pid(),
            duration(took.as_nanos() as u64),
            after["digest"]
                .as_str()
                .and_then(|digest| digest.get(..12))
                .unwrap_or("-")
        );
        let same = after["digest"].is_string() && after["digest"] == before["digest"];
        self.screen.expect(same, &text)?;
        self.screen.gap()?;
        self.matrix("with the new agent")?;
        let asked = self.call(Who::Iam, Order::Ask)?;
        let same = asked.outcome == session.outcome;
        self.screen.expect(
            same,
            &format!("iam's session lives: postgres {}", words(&asked.outcome)),
        )?;
        second.order(Order::Stop)?;
        let tried = second.report()?;
        self.attempts += u64::from(tried.attempts);
        let text = format!(
            "chat's second process tried {} times through all of it and was refused {} times",
            tried.attempts, tried.refused
        );
        self.screen.expect(
            tried.outcome == Outcome::Late && tried.refused == tried.attempts,
            &text,
        )
    }
}
