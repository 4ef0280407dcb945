// SPDX-License-Identifier: Apache-2.0
//! What a node says of the rollout: words and numbers within bounds, or it is refused.

use serde::Deserialize;
use utoipa::ToSchema;

use super::{MOST, is_digest};
use crate::api::body::Object;
use crate::api::problem::field;
use crate::audit::record::Timestamp;
use crate::policy::{DenialAction, Stop, StopCause, StopCounts, is_label};
use crate::problem::Problem;
use crate::state::MOST_SELECTING;

/// How far a node is in the rollout that is in force there.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RolloutReport {
    /// What it is called.
    #[schema(max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    name: String,
    /// The stage in force there; null before the first.
    #[schema(max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    stage: Option<String>,
    /// Break-glass is on: nothing is refused there.
    #[serde(default)]
    observe_all: bool,
    /// Stages to come that select workloads there; null where it does not say.
    #[schema(max_items = 32)]
    selects: Option<Vec<String>>,
    /// Where it stopped of its own accord; null where it did not.
    #[schema(value_type = Option<StopReport>)]
    stopped: Option<Object<StopReport>>,
}

/// Where a node stopped, and why.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct StopReport {
    /// The stage.
    #[schema(max_length = 63, pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    stage: String,
    /// SHA-256 of what that says to nodes.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    definition: String,
    /// What was done.
    action: DenialAction,
    /// Why.
    cause: StopCause,
    /// Different connections that were refused in the minute before.
    #[schema(maximum = 9_223_372_036_854_775_807_i64)]
    denials: u64,
    /// As many would have been borne.
    #[schema(maximum = 9_223_372_036_854_775_807_i64)]
    per_minute: u64,
    /// How often any connection was refused in the minute before.
    #[schema(maximum = 9_223_372_036_854_775_807_i64)]
    attempts: u64,
    /// As often would have been borne, where that was limited.
    #[schema(maximum = 9_223_372_036_854_775_807_i64)]
    attempts_per_minute: Option<u64>,
    /// When.
    #[schema(value_type = String)]
    at: Timestamp,
}

/// What a node said of the rollout, as far as it can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) rollout: String,
    /// The stage in force there.
    pub(super) stage: Option<String>,
    /// Nothing is refused there.
    pub(super) observe_all: bool,
    /// Stages to come that select workloads there, where it says so.
    pub(super) selects: Option<Vec<String>>,
    /// Where it stopped.
    pub(super) stopped: Option<Stop>,
}

impl RolloutReport {
    /// What it says; what cannot be is told in `errors`.
    pub(super) fn checked(self, errors: &mut Vec<Problem>) -> Said {
        label("rollout.name", &self.name, errors);
        if let Some(stage) = &self.stage {
            label("rollout.stage", stage, errors);
        }
        let selects = self.selects.as_deref().unwrap_or_default();
        if selects.len() > MOST_SELECTING {
            errors.push(field(
                "rollout.selects",
                format!("has at most {MOST_SELECTING} stages"),
            ));
        } else {
            for stage in selects {
                label("rollout.selects", stage, errors);
            }
        }
        let stopped = self.stopped.map(|Object(stop)| stop.checked(&self.name, errors));
        Said {
            rollout: self.name,
            stage: self.stage,
            observe_all: self.observe_all,
            selects: self.selects,
            stopped,
        }
    }
}

impl StopReport {
    fn checked(self, rollout: &str, errors: &mut Vec<Problem>) -> Stop {
        label("rollout.stopped.stage", &self.stage, errors);
        if !is_digest(&self.definition) {
            errors.push(field("rollout.stopped.definition", "is 64 hexadecimal digits"));
        }
        for (name, number) in [
            ("denials", Some(self.denials)),
            ("per_minute", Some(self.per_minute)),
            ("attempts", Some(self.attempts)),
            ("attempts_per_minute", self.attempts_per_minute),
        ] {
            if number.is_some_and(|number| number > MOST) {
                errors.push(field(
                    format!("rollout.stopped.{name}"),
                    format!("is a number up to {MOST}"),
                ));
            }
        }
        let counts = StopCounts {
            denials: self.denials,
            per_minute: self.per_minute,
            attempts: self.attempts,
            attempts_per_minute: self.attempts_per_minute,
        };
        let place = (self.stage, self.definition);
        Stop::told(rollout, place, (self.action, self.cause), counts, self.at.0)
    }
}

fn label(name: &str, text: &str, errors: &mut Vec<Problem>) {
    if !is_label(text) {
        let rule = "1 to 63 of a-z, 0-9 and `-`, neither first nor last a `-`";
        errors.push(field(name, format!("is a name of {rule}")));
    }
}
