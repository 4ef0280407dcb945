// SPDX-License-Identifier: Apache-2.0
//! The model of an `EnforcementRollout`: the stages in which a cluster goes from observing to enforcing, and which of them is
//! reached. In which mode a workload is at a stage follows from the document, from who the workload is and where it runs, and from
//! nothing else: every node finds the same, and finds it again.

mod canary;
mod canonical;
mod guard;
mod read;
mod redundant;
mod selected;
mod soak;
mod window;

use std::sync::Arc;

use serde_json::Value as Json;

use super::envelope::{Head, hex_digest};
use crate::spiffe_id::{Pattern, SpiffeId};

pub use canary::{Canary, CanaryBy, Instance, Replica};
pub use guard::{Armed, DeniedEdge, Edge, Guard, Outcome, Refusals, Stop, StopCause, StopCounts};
pub(super) use read::read;
pub(super) use soak::PATTERN as SOAK_PATTERN;
pub use window::WINDOW;

/// The `kind` of these documents.
pub const ROLLOUT_KIND: &str = "EnforcementRollout";

/// The fields of a `spec`.
pub(super) const ROLLOUT_SPEC_FIELDS: [&str; 4] = ["defaultMode", "stage", "stages", "description"];
/// The fields of an item of `stages`.
pub(super) const STAGE_FIELDS: [&str; 7] = [
    "name",
    "identities",
    "mode",
    "canary",
    "onDenials",
    "requirePolicy",
    "description",
];
/// The fields of a stage's `canary`.
pub(super) const CANARY_FIELDS: [&str; 2] = ["percent", "by"];
/// The fields of a stage's `onDenials`.
pub(super) const ON_DENIALS_FIELDS: [&str; 4] = ["perMinute", "attemptsPerMinute", "action", "for"];
/// The most different connections a minute that a limit may name.
pub(super) const MOST_PER_MINUTE: u64 = 1_000_000;
/// So many are told apart, and one more: a limit beyond that stands for this one.
const TOLD_APART: u64 = 65_535;
/// The most denials a minute, of whichever connection, that a limit may name.
pub(super) const MOST_ATTEMPTS_PER_MINUTE: u64 = 1_000_000;

/// How a cluster goes from observing to enforcing.
#[derive(Clone, Debug)]
pub struct EnforcementRollout {
    /// Its name, and where it stands.
    pub head: Head,
    /// `spec.description`.
    pub spec_description: Option<String>,
    /// `spec.defaultMode`: of whom no stage that is reached selects. Without it, that is for the configuration to say.
    pub default_mode: Option<StageMode>,
    /// `spec.stages`, in order.
    pub stages: Vec<Stage>,
    /// How many of them the document says are reached: those up to `spec.stage`.
    reached: usize,
    digest: String,
}

/// One step of a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// `name`, unique in its rollout.
    pub name: Arc<str>,
    /// `description`.
    pub description: Option<String>,
    /// `identities`: whom it is about; empty where it is about everybody ([`Self::require_policy`]).
    pub identities: Vec<Pattern>,
    /// `mode`: what they do from then on.
    pub mode: StageMode,
    /// `canary`: only this part of them.
    pub canary: Option<Canary>,
    /// `onDenials`: what happens by itself where that costs too much.
    pub on_denials: Option<OnDenials>,
    /// `requirePolicy`: everybody enforces whom no stage says otherwise of, and whom no policy names is refused.
    pub require_policy: bool,
}

/// What a workload does with policy's verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StageMode {
    /// Records it.
    Observe,
    /// Refuses what policy refuses.
    #[default]
    Enforce,
}

/// What happens by itself on a node where those that a stage newly enforced are refused too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnDenials {
    /// `perMinute`: as many different connections that are refused in a minute, on one node, are borne.
    pub per_minute: u64,
    /// `attemptsPerMinute`: so often may any of them be refused in a minute, if that counts.
    pub attempts_per_minute: Option<u64>,
    /// `action`: what happens at one more.
    pub action: DenialAction,
    /// `for`: how many seconds after the stage came in force on a node it may happen.
    pub soak: u64,
}

impl OnDenials {
    /// How many different connections are borne: [`Self::per_minute`], as far as they are told apart.
    pub fn borne(&self) -> u64 {
        self.per_minute.min(TOLD_APART)
    }
}

/// What happens when there are too many denials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DenialAction {
    /// The node stays at this stage, whatever comes after it.
    Hold,
    /// The node goes back to the stage before.
    Rollback,
}

impl StageMode {
    /// Every mode, by name.
    pub const NAMES: [&'static str; 2] = ["observe", "enforce"];

    /// The mode called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "observe" => Some(Self::Observe),
            "enforce" => Some(Self::Enforce),
            _ => None,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

impl DenialAction {
    /// Every action, by name.
    pub const NAMES: [&'static str; 2] = ["hold", "rollback"];

    /// The action called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "hold" => Some(Self::Hold),
            "rollback" => Some(Self::Rollback),
            _ => None,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Rollback => "rollback",
        }
    }
}

impl Stage {
    /// Whether it speaks of this identity at all.
    pub fn selects(&self, id: &SpiffeId) -> bool {
        self.identities.iter().any(|pattern| pattern.matches(id))
    }

    /// SHA-256 of what it says to nodes, in hexadecimal: what it says to people is not in it.
    pub fn digest(&self) -> String {
        // Nothing in it can fail to be JSON.
        let said = canonical::Stage::from(self).without_description();
        hex_digest(&serde_json::to_string(&said).unwrap_or_default())
    }
}

impl EnforcementRollout {
    /// The document in its canonical form.
    pub fn document(&self) -> Json {
        self.canonical().document()
    }

    /// SHA-256 of the canonical form, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// How many stages the document says are reached. What is in force on a node may be fewer ([`Guard`]).
    pub fn reached(&self) -> usize {
        self.reached
    }

    /// The stage of that many that are reached which came last; `None` where none is.
    pub fn stage_at(&self, reached: usize) -> Option<&Stage> {
        self.stages.get(reached.checked_sub(1)?)
    }

    /// The same document at another stage: the first `reached` ones are.
    #[must_use]
    pub fn at(&self, reached: usize) -> Self {
        let mut other = self.clone();
        other.reached = reached.min(self.stages.len());
        other.sealed()
    }

    /// A sentence about each limit that is beyond what is told apart.
    pub fn limits_beyond_reach(&self) -> Vec<String> {
        let limits = self.stages.iter().filter_map(|stage| {
            let limit = stage.on_denials.as_ref()?;
            (limit.per_minute > limit.borne()).then(|| {
                format!(
                    "`perMinute` of stage `{}` is {}, and acts as {}: no more connections are told apart",
                    stage.name,
                    limit.per_minute,
                    limit.borne()
                )
            })
        });
        limits.collect()
    }

    /// How many stages of this one are reached at the stage that `said`, another version of it, is at, if these are fewer.
    pub fn earlier_by(&self, said: &Self) -> Option<usize> {
        let place = match said.stage_at(said.reached) {
            None => 0,
            Some(stage) => 1 + self.stages.iter().position(|own| own.name == stage.name)?,
        };
        (said.head.name == self.head.name && place < self.reached).then_some(place)
    }

    /// What the first `reached` stages make of a workload that one of them selects; `None` where none does. The last one that
    /// does decides. `at` is where it runs: without that, a canary that takes but a part takes nobody.
    pub fn mode_by_stage(
        &self,
        reached: usize,
        id: &SpiffeId,
        at: Option<&Instance<'_>>,
    ) -> Option<StageMode> {
        let stages = self.stages.get(..reached.min(self.stages.len()))?;
        let takes = |stage: &&Stage| {
            let chosen = |canary: &Canary| canary.takes(&self.head.name, id, at);
            stage.selects(id) && stage.canary.as_ref().is_none_or(chosen)
        };
        stages.iter().rev().find(takes).map(|stage| stage.mode)
    }

    /// The same, or else what it says of whom no stage selects; `None` where that is for others to say.
    pub fn mode_of(&self, reached: usize, id: &SpiffeId, at: Option<&Instance<'_>>) -> Option<StageMode> {
        self.mode_by_stage(reached, id, at)
            .or_else(|| self.default_at(reached))
    }

    /// The mode of whom none of the first `reached` stages selects, if the rollout has one for them. To enforce is not for
    /// those of whom the node's own configuration says that they observe.
    pub fn default_at(&self, reached: usize) -> Option<StageMode> {
        if self.requires_policy(reached) {
            Some(StageMode::Enforce)
        } else {
            self.default_mode
        }
    }

    /// Whether whom no policy names is refused once `reached` stages are.
    pub fn requires_policy(&self, reached: usize) -> bool {
        self.stage_at(reached).is_some_and(|stage| stage.require_policy)
    }

    fn sealed(mut self) -> Self {
        self.digest = self.canonical().digest();
        self
    }
}
