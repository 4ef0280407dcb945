// SPDX-License-Identifier: Apache-2.0
//! What the policies say at a stage of the rollout that is still to come: what enforcing would deny is judged as at the next one,
//! so that what `requirePolicy` refuses is known before it does.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::answer::{Replay, would_deny};
use super::uncompiled;
use crate::api::problem::{ApiProblem, field};
use crate::policy::{self, AllowTable, CompileError, Settings, Stage};
use crate::spiffe_id::SpiffeId;
use crate::state::Snapshot;
use crate::traffic::Range;

/// A stage of the rollout in force.
pub(super) struct Ahead {
    name: Arc<str>,
    /// How many stages are reached there.
    reached: usize,
}

impl Ahead {
    /// The stage that is called so; without a name the next one, if there is one.
    pub(super) fn of(snapshot: &Snapshot, named: Option<&str>) -> Result<Option<Self>, ApiProblem> {
        let rollout = snapshot.policies.rollout();
        let stages = rollout.map_or(&[][..], |rollout| rollout.stages.as_slice());
        let place = match named {
            None => snapshot.policies.stages_in_force(&snapshot.settings),
            Some(name) => stages
                .iter()
                .position(|stage| &*stage.name == name)
                .ok_or_else(|| unknown(stages))?,
        };
        Ok(stages.get(place).map(|stage| Self {
            name: Arc::clone(&stage.name),
            reached: place + 1,
        }))
    }

    /// Has what would be denied judged as at that stage; `table` is what the policies say now.
    pub(super) fn look(
        self,
        replay: &mut Replay,
        (range, table): (&Range, &AllowTable),
        snapshot: &Snapshot,
    ) -> Result<(), ApiProblem> {
        let there = self.table(snapshot, &range.workloads());
        if let Some(there) = there.map_err(|error| uncompiled(&error))? {
            (replay.would_deny, replay.denied) = would_deny(range, &there, Some(table));
        }
        replay.stage = Some(self.name.to_string());
        Ok(())
    }

    /// The table there, for these workloads; `None` where it is the one that is in force.
    fn table(
        &self,
        snapshot: &Snapshot,
        workloads: &BTreeSet<SpiffeId>,
    ) -> Result<Option<AllowTable>, CompileError> {
        let settings = Settings {
            // It goes on where it had stopped.
            most_stages: None,
            ..Settings::clone(&snapshot.settings)
        };
        let there = snapshot.policies.at_stage(self.reached);
        let now = snapshot.policies.requires_policy(&snapshot.settings);
        if there.requires_policy(&settings) == now {
            return Ok(None);
        }
        policy::compile(&there, workloads, &settings, snapshot.revision).map(Some)
    }
}

fn unknown(stages: &[Stage]) -> ApiProblem {
    let names: Vec<&str> = stages.iter().map(|stage| &*stage.name).collect();
    let message = if names.is_empty() {
        "there is no rollout in force, and no stage".to_owned()
    } else {
        format!(
            "is no stage of the rollout in force, which has {}",
            names.join(", ")
        )
    };
    ApiProblem::fields("invalid_parameter", vec![field("stage", message)])
}
