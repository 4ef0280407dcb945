// SPDX-License-Identifier: Apache-2.0
//! What a node does by itself where those that a stage newly enforced are refused too much: it stays at that stage, or goes back to
//! the one before. A state machine: documents and refused connections go in, how many stages are in force comes out.
//!
//! Different connections count: a client that tries again and again is one broken connection, and so is a nightly job. How often
//! they are refused all together counts only where a limit says so. And they count for a while after the stage came in force:
//! whoever can be refused would have a switch by which enforcement ends, for ever.

use serde::{Deserialize, Serialize};

use super::window::Window;
use super::{DenialAction, EnforcementRollout, Stage};

/// As many of them are told of where a node stops.
const MOST_TOLD: usize = 10;

/// Who was refused what: kernel numbers, and the port that policy speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// The source.
    pub source: u64,
    /// The destination.
    pub destination: u64,
    /// The port.
    pub port: u16,
}

/// How often that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusals {
    /// IP protocol number, of the last time.
    pub protocol: u8,
    /// Times.
    pub times: u64,
    /// When, in seconds of a clock that never goes back.
    pub last: u64,
}

/// A connection that was refused, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedEdge {
    /// Who wanted to.
    pub source: String,
    /// To whom.
    pub destination: String,
    /// At which port.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// How often, in the minute before.
    pub times: u64,
}

/// Why a node stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// There were too many denials.
    #[default]
    Denials,
    /// The file in which an agent leaves where it stopped cannot be read: it may have.
    Unreadable,
}

/// Where a node stopped, and why. It is kept for the next start.
///
/// It holds while the document is at this stage or beyond, and says the same of it to nodes. To try again, go back behind the
/// stage and to it, or change what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The rollout.
    pub rollout: String,
    /// Its stage.
    pub stage: String,
    /// What that says, as [`Stage::digest`].
    pub definition: String,
    /// What was done.
    pub action: DenialAction,
    /// Different connections that were refused in the minute before.
    pub denials: u64,
    /// As many would have been borne.
    pub per_minute: u64,
    /// How often any connection was refused in the minute before.
    #[serde(default)]
    pub attempts: u64,
    /// As often would have been borne, where that was limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts_per_minute: Option<u64>,
    /// When, in milliseconds of Unix time.
    pub at: u64,
    /// Those that were refused most often.
    #[serde(default)]
    pub edges: Vec<DeniedEdge>,
    /// Why.
    #[serde(default)]
    pub cause: StopCause,
}

/// How much a [`Stop`] was about, as its fields of the same names say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopCounts {
    /// Different connections that were refused in the minute before.
    pub denials: u64,
    /// As many would have been borne.
    pub per_minute: u64,
    /// How often any connection was refused in the minute before.
    pub attempts: u64,
    /// As often would have been borne, where that was limited.
    pub attempts_per_minute: Option<u64>,
}

/// The time in which the limit of a stage holds. It is kept for the next start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// The stage: what its rollout is called, and what it says.
    pub stage: String,
    /// When it came in force on this node, in milliseconds of Unix time.
    pub since: u64,
    /// The revision with which it did. What was decided before is of another stage.
    pub revision: u64,
    /// The time has passed, and that has been told.
    pub over: bool,
}

/// What came of a look at the denials.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// Nothing.
    Goes,
    /// It stopped: [`Guard::reached`] says something else now, or will when the document goes on.
    Stopped(&'a Stop),
    /// The time in which the limit of this stage holds is over.
    Over,
}

/// Says how many stages of a rollout are in force on a node.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    stop: Option<Stop>,
    /// It is not known where the last agent stopped, since this moment in milliseconds of Unix time.
    unread: Option<u64>,
    /// What was refused at the stage in force.
    window: Window,
    /// That stage, as in [`Armed::stage`].
    watched: Option<String>,
    armed: Option<Armed>,
}

impl Stop {
    /// One that another process tells of, without its connections: at a moment in nanoseconds of Unix time.
    pub fn told(
        rollout: &str,
        (stage, definition): (String, String),
        (action, cause): (DenialAction, StopCause),
        counts: StopCounts,
        at_nanos: i64,
    ) -> Self {
        Self {
            rollout: rollout.to_owned(),
            stage,
            definition,
            action,
            denials: counts.denials,
            per_minute: counts.per_minute,
            attempts: counts.attempts,
            attempts_per_minute: counts.attempts_per_minute,
            at: (at_nanos.max(0) / 1_000_000).unsigned_abs(),
            edges: Vec::new(),
            cause,
        }
    }

    /// One of rollout `r` for tests: 5 different connections where 4 are borne.
    #[cfg(test)]
    pub(crate) fn sample(stage: &str, definition: String, action: DenialAction) -> Self {
        let counts = StopCounts {
            denials: 5,
            per_minute: 4,
            attempts: 9,
            attempts_per_minute: None,
        };
        let place = (stage.to_owned(), definition);
        Self::told(
            "r",
            place,
            (action, StopCause::Denials),
            counts,
            1_772_442_645_000_000_000,
        )
    }

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

    /// How many stages are in force where it holds; `None` where it does not, or no more: the document is not at the stage, or the
    /// stage says something else.
    pub fn reached_in(&self, rollout: &EnforcementRollout) -> Option<usize> {
        let place = self.place_in(rollout)?;
        (place < rollout.reached()).then_some(place + usize::from(self.action == DenialAction::Hold))
    }

    /// When, in nanoseconds of Unix time.
    pub fn at_nanos(&self) -> i64 {
        let millis = i64::try_from(self.at).unwrap_or(i64::MAX);
        millis.saturating_mul(1_000_000)
    }

    fn at(rollout: &EnforcementRollout, stage: &Stage, unix: u64) -> Option<Self> {
        let limit = stage.on_denials?;
        Some(Self {
            rollout: rollout.head.name.clone(),
            stage: stage.name.to_string(),
            definition: stage.digest(),
            action: limit.action,
            denials: 0,
            per_minute: limit.borne(),
            attempts: 0,
            attempts_per_minute: limit.attempts_per_minute,
            at: unix,
            edges: Vec::new(),
            cause: StopCause::Denials,
        })
    }
}

impl Guard {
    /// Goes on where an agent left off, or begins.
    pub fn new(stop: Option<Stop>, armed: Option<Armed>) -> Self {
        Self {
            stop,
            armed,
            ..Self::default()
        }
    }

    /// Goes on where it is not known where an agent left off: not beyond the last stage at which it may have stopped, since `unix`
    /// in milliseconds.
    pub fn unread(unix: u64) -> Self {
        Self {
            unread: Some(unix),
            ..Self::default()
        }
    }

    /// Where it stopped, if it did.
    pub fn stop(&self) -> Option<&Stop> {
        self.stop.as_ref()
    }

    /// Since when the limit of the stage in force holds, if it has one.
    pub fn armed(&self) -> Option<&Armed> {
        self.armed.as_ref()
    }

    /// Whether all is known that the next start should know: until then, nothing takes the place of what cannot be read.
    pub fn is_known(&self) -> bool {
        self.unread.is_none()
    }

    /// How many stages are in force when this is the document. What it stopped at is forgotten where that is no longer so; a document
    /// that is gone says nothing about that.
    pub fn reached(&mut self, rollout: Option<&EnforcementRollout>) -> usize {
        let Some(rollout) = rollout else {
            self.watch(None);
            return 0;
        };
        self.suspect(rollout);
        let held = self.stop.as_ref().and_then(|stop| stop.reached_in(rollout));
        if held.is_none() {
            self.stop = None;
        }
        let reached = held.unwrap_or_else(|| rollout.reached());
        let stage = rollout.stage_at(reached);
        self.watch(stage.map(|stage| format!("{} {}", rollout.head.name, stage.digest())));
        reached
    }

    /// What could not be read may have been a stop, at the latest at the last stage that has a limit.
    fn suspect(&mut self, rollout: &EnforcementRollout) {
        let Some(unix) = self.unread.take() else { return };
        let reached = rollout.stages.get(..rollout.reached()).unwrap_or_default();
        let limited = reached.iter().rev().find(|stage| stage.on_denials.is_some());
        self.stop = limited
            .and_then(|stage| Stop::at(rollout, stage, unix))
            .map(|stop| Stop {
                cause: StopCause::Unreadable,
                ..stop
            });
    }

    fn watch(&mut self, stage: Option<String>) {
        if self.watched != stage {
            self.window.clear();
            self.watched = stage;
        }
        if self.armed.as_ref().map(|armed| &armed.stage) != self.watched.as_ref() {
            self.armed = None;
        }
    }

    /// The stage of which [`Self::reached`] told has come in force, with this `revision`, at `unix` in milliseconds. Its time begins,
    /// unless it has begun, or the node is there because it stopped.
    pub fn begin(&mut self, unix: u64, revision: u64) {
        if self.stop.is_some() {
            return;
        }
        let Some(stage) = &self.watched else { return };
        self.armed.get_or_insert_with(|| Armed {
            stage: stage.clone(),
            since: unix,
            revision,
            over: false,
        });
    }

    /// Somebody has it go on as the document says. Where it had stopped, if it had; its time begins anew.
    pub fn resume(&mut self) -> Option<Stop> {
        self.window.clear();
        self.armed = None;
        self.unread = None;
        self.stop.take()
    }

    /// Takes up what those that the stage in force newly enforced were `refused`, which is one item for a connection and a second, at
    /// `now` in seconds of a clock that never goes back, and `unix` in milliseconds. `tell` says it for people.
    pub fn count(
        &mut self,
        rollout: &EnforcementRollout,
        (now, unix): (u64, u64),
        refused: impl IntoIterator<Item = (Edge, Refusals)>,
        tell: impl Fn(&Edge, &Refusals) -> DeniedEdge,
    ) -> Outcome<'_> {
        let reached = self.reached(Some(rollout));
        let limited = rollout
            .stage_at(reached)
            .and_then(|stage| Some((stage, stage.on_denials?)));
        let Some((stage, limit)) = limited else {
            return Outcome::Goes;
        };
        if self.stop.is_some() {
            // Held here, or back at a stage that had been passed: whoever presses one limit after the other takes a node no further back.
            return Outcome::Goes;
        }
        self.begin(unix, 0);
        let Some(armed) = &mut self.armed else {
            return Outcome::Goes;
        };
        if armed.over {
            return Outcome::Goes;
        }
        if unix.saturating_sub(armed.since) >= limit.soak.saturating_mul(1000) {
            armed.over = true;
            self.window.clear();
            return Outcome::Over;
        }
        for (edge, refusals) in refused {
            self.window.take(edge, refusals);
        }
        self.window.pass(now);
        let (denials, attempts) = (self.window.denials(), self.window.attempts());
        let is_borne = denials <= limit.borne();
        if is_borne && limit.attempts_per_minute.is_none_or(|most| attempts <= most) {
            return Outcome::Goes;
        }
        let worst = self.window.drain_worst(MOST_TOLD);
        let stop = Stop::at(rollout, stage, unix).map(|stop| Stop {
            denials,
            attempts,
            edges: worst
                .iter()
                .map(|(edge, refusals)| tell(edge, refusals))
                .collect(),
            ..stop
        });
        self.stop = stop;
        self.stop.as_ref().map_or(Outcome::Goes, Outcome::Stopped)
    }
}
