// SPDX-License-Identifier: Apache-2.0
//! A rule comes, and goes again under a live connection.

use super::super::actor::place_of;
use super::super::cast::Who;
use super::super::error::DemoError;
use super::super::order::{Order, Outcome, now};
use super::super::screen::duration;
use super::{Story, reached, words};

const DEADLINE: u64 = 10_000;

impl Story {
    pub(super) fn change_a_rule(&mut self) -> Result<(), DemoError> {
        self.screen.chapter("A rule comes and goes")?;
        let Some((to, speak)) = place_of(Who::Redis, false) else {
            return Ok(());
        };
        self.screen.say(
            "chat is refused at redis:6379. A second policy file allows just that, while chat keeps trying:",
        )?;
        let chat = self.world.actor(Who::Chat)?;
        chat.order(Order::UntilReached {
            to,
            speak,
            deadline: DEADLINE,
        })?;
        chat.begun()?;
        let begin = now();
        self.agent.files.add_rule()?;
        let report = self.world.actor(Who::Chat)?.report()?;
        self.attempts += u64::from(report.attempts);
        let text = format!(
            "chat → redis:6379 works {} after the file appeared (refused {} times until then); it {}",
            duration(report.at.saturating_sub(begin)),
            report.refused,
            words(&report.outcome)
        );
        self.screen
            .expect(reached(&report) && report.refused > 0, &text)?;
        if !reached(&report) {
            return Ok(());
        }

        self.screen
            .say("chat opens a connection and sends PING after PING. The file is removed under it:")?;
        let kept = self.call(Who::Chat, Order::Keep { to, speak })?;
        let Some(local) = kept.local else {
            return self.screen.expect(false, "chat keeps a connection to redis");
        };
        let redis = self.world.actor(Who::Redis)?;
        redis.order(Order::UntilGone {
            local: to,
            peer: local,
            deadline: DEADLINE,
        })?;
        redis.begun()?;
        let chat = self.world.actor(Who::Chat)?;
        chat.order(Order::Hold { deadline: DEADLINE })?;
        chat.begun()?;
        // Some go well before the end comes, or it would not be a live connection.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let begin = now();
        self.agent.files.remove_rule()?;
        let here = self.world.actor(Who::Chat)?.report()?;
        let there = self.world.actor(Who::Redis)?.report()?;
        let after = |at: u64| duration(at.saturating_sub(begin));
        let text = format!(
            "chat's end is dead {} after that, having had {} answers ({})",
            after(here.at),
            here.attempts,
            words(&here.outcome)
        );
        self.screen.expect(
            matches!(here.outcome, Outcome::Broken { .. }) && here.attempts > 0,
            &text,
        )?;
        let text = format!(
            "redis' end is {} {} after that",
            words(&there.outcome),
            after(there.at)
        );
        self.screen.expect(there.outcome == Outcome::Gone, &text)?;
        let again = self.reach(Who::Chat, Who::Redis, false, 1)?;
        let text = format!("a new connection is {}", words(&again.outcome));
        self.screen.expect(super::refused(&again), &text)
    }
}
