// SPDX-License-Identifier: Apache-2.0
//! What a node does by itself where those that a stage newly enforced are refused too much: it stays at that stage, or goes back to
//! the one before. A state machine: documents and counts of denials go in, how many stages are in force comes out.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{DenialAction, EnforcementRollout};

/// The seconds that denials are counted over.
pub const WINDOW: u64 = 60;

/// Where a node stopped, and why. It is kept for the next start.
///
/// It holds while the document is at this stage or beyond, and says the same of it. To try again, go back behind the stage and
/// to it, or change what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The rollout.
    pub rollout: String,
    /// Its stage.
    pub stage: String,
    /// What that says, as [`Stage::digest`](super::Stage::digest).
    pub definition: String,
    /// What was done.
    pub action: DenialAction,
    /// Denials in the minute before.
    pub denials: u64,
    /// As many would have been borne.
    pub per_minute: u64,
    /// When, in milliseconds of Unix time.
    pub at: u64,
}

impl Stop {
    /// The index of its stage, if the rollout still has that stage and it says the same.
    fn place_in(&self, rollout: &EnforcementRollout) -> Option<usize> {
        let mut stages = rollout.stages.iter();
        let place = stages.position(|stage| *stage.name == *self.stage)?;
        let same = rollout.head.name == self.rollout
            && rollout
                .stages
                .get(place)
                .is_some_and(|stage| stage.digest() == self.definition);
        same.then_some(place)
    }
}

/// Says how many stages of a rollout are in force on a node.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    stop: Option<Stop>,
    /// Denials by the second in which they were told of.
    window: VecDeque<(u64, u64)>,
    /// The stage that they are of: what it says.
    watched: Option<String>,
}

impl Guard {
    /// Goes on where an agent left off that had stopped, or begins.
    pub fn new(stop: Option<Stop>) -> Self {
        Self {
            stop,
            ..Self::default()
        }
    }

    /// Where it stopped, if it did.
    pub fn stop(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// How many stages are in force when this is the document. What it stopped at is forgotten where that is no longer so.
    pub fn reached(&mut self, rollout: Option<&EnforcementRollout>) -> usize {
        let place = rollout.and_then(|rollout| {
            let place = self.stop.as_ref()?.place_in(rollout)?;
            (place < rollout.reached()).then_some(place)
        });
        if place.is_none() {
            self.stop = None;
        }
        let said = rollout.map_or(0, EnforcementRollout::reached);
        let reached = match (&self.stop, place) {
            (Some(stop), Some(place)) => place + usize::from(stop.action == DenialAction::Hold),
            _ => said,
        };
        let watched = rollout
            .and_then(|rollout| rollout.stage_at(reached))
            .map(super::Stage::digest);
        if watched != self.watched {
            self.window.clear();
            self.watched = watched;
        }
        reached
    }

    /// Takes up `denials` of those that the stage in force newly enforced, at `now` in seconds of a clock that never goes back, and
    /// `unix` in milliseconds. Whether it stops for that: then [`Self::reached`] says something else, or will when the document
    /// goes on.
    pub fn count(
        &mut self,
        rollout: &EnforcementRollout,
        (now, unix): (u64, u64),
        denials: u64,
    ) -> Option<&Stop> {
        let reached = self.reached(Some(rollout));
        let stage = rollout.stage_at(reached)?;
        let limit = stage.on_denials?;
        let stopped = self.stop.as_ref().and_then(|stop| stop.place_in(rollout));
        if stopped == reached.checked_sub(1) {
            // It is held here already.
            return None;
        }
        while self
            .window
            .front()
            .is_some_and(|(second, _)| second + WINDOW <= now)
        {
            self.window.pop_front();
        }
        if denials > 0 {
            self.window.push_back((now, denials));
        }
        let in_window = self
            .window
            .iter()
            .fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
        if in_window <= limit.per_minute {
            return None;
        }
        self.window.clear();
        Some(self.stop.insert(Stop {
            rollout: rollout.head.name.clone(),
            stage: stage.name.to_string(),
            definition: stage.digest(),
            action: limit.action,
            denials: in_window,
            per_minute: limit.per_minute,
            at: unix,
        }))
    }
}
