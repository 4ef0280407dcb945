// SPDX-License-Identifier: Apache-2.0
//! What a change of a rollout means: which stage is reached, and what stages say.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::policy::rollout::{EnforcementRollout, Stage, StageMode};
use crate::policy::set::PolicySet;

/// Something that a rollout says now and did not before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RolloutChange {
    /// Its name.
    pub rollout: String,
    /// What of it: `stage`, `defaultMode`, `order` (of stages), or `stages.` and the name of one.
    pub field: String,
    /// What it said; null where that is new.
    #[schema(required = true)]
    pub from: Option<String>,
    /// What it says; null where that is gone.
    #[schema(required = true)]
    pub to: Option<String>,
}

impl fmt::Display for RolloutChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let (from, to) = (said(&self.from), said(&self.to));
        write!(f, "{} {}: {from} -> {to}", self.rollout, self.field)
    }
}

/// What changes for nodes when the rollout of `after` takes the place of that of `before`. Words for people are no change.
pub(super) fn changes(before: &PolicySet, after: &PolicySet) -> Vec<RolloutChange> {
    let (before, after) = (before.rollout(), after.rollout());
    match (before, after) {
        (Some(before), Some(after)) if before.head.name == after.head.name => {
            between(&after.head.name, Some(before), Some(after))
        }
        _ => [before.map(|old| (old, true)), after.map(|new| (new, false))]
            .into_iter()
            .flatten()
            .flat_map(|(rollout, gone)| {
                let (old, new) = if gone {
                    (Some(rollout), None)
                } else {
                    (None, Some(rollout))
                };
                between(&rollout.head.name, old.map(|old| &**old), new.map(|new| &**new))
            })
            .collect(),
    }
}

fn between(
    name: &str,
    before: Option<&EnforcementRollout>,
    after: Option<&EnforcementRollout>,
) -> Vec<RolloutChange> {
    let mut changes = Vec::new();
    let mut note = |field: String, from: Option<String>, to: Option<String>| {
        if from != to {
            changes.push(RolloutChange {
                rollout: name.to_owned(),
                field,
                from,
                to,
            });
        }
    };
    let reached = |of: &EnforcementRollout| of.stage_at(of.reached()).map(|stage| stage.name.to_string());
    note(
        "stage".to_owned(),
        before.and_then(reached),
        after.and_then(reached),
    );
    let default = |of: &EnforcementRollout| of.default_mode.map(|mode| mode.name().to_owned());
    note(
        "defaultMode".to_owned(),
        before.and_then(default),
        after.and_then(default),
    );
    let stages = |of: Option<&EnforcementRollout>| of.map_or_else(Vec::new, |of| of.stages.clone());
    let (old, new) = (stages(before), stages(after));
    for stage in &old {
        let now = new.iter().find(|other| other.name == stage.name);
        note(format!("stages.{}", stage.name), Some(said(stage)), now.map(said));
    }
    for stage in new
        .iter()
        .filter(|stage| old.iter().all(|other| other.name != stage.name))
    {
        note(format!("stages.{}", stage.name), None, Some(said(stage)));
    }
    let order = |of: &[Stage], others: &[Stage]| {
        let both = of
            .iter()
            .filter(|stage| others.iter().any(|other| other.name == stage.name));
        let names: Vec<&str> = both.map(|stage| &*stage.name).collect();
        Some(names.join(", "))
    };
    note("order".to_owned(), order(&old, &new), order(&new, &old));
    changes
}

/// What a stage says, in a line.
fn said(stage: &Stage) -> String {
    let mut text = stage.mode.name().to_owned();
    if stage.require_policy {
        text.push_str(" everybody, policy required");
    }
    for (index, pattern) in stage.identities.iter().enumerate() {
        text.push_str(if index == 0 { " " } else { ", " });
        text.push_str(pattern.as_str());
    }
    if let Some(canary) = &stage.canary {
        let _ = write!(text, "; {} % by {}", canary.percent, canary.by.name());
    }
    if let Some(limit) = stage.on_denials.filter(|_| stage.mode == StageMode::Enforce) {
        let (most, action) = (limit.per_minute, limit.action.name());
        let _ = write!(text, "; {action} at more than {most} a minute");
        if let Some(attempts) = limit.attempts_per_minute {
            let _ = write!(text, " or {attempts} attempts");
        }
        let _ = write!(text, ", for {} s", limit.soak);
    }
    text
}
