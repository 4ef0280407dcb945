// SPDX-License-Identifier: Apache-2.0
//! The rollout among the documents, of which there is at most one.

use std::sync::Arc;

use super::PolicySet;
use crate::policy::Settings;
use crate::policy::problem::Problem;
use crate::policy::rollout::{EnforcementRollout, ROLLOUT_KIND};

impl PolicySet {
    /// How they come to be enforced, where there is a rollout.
    pub fn rollout(&self) -> Option<&Arc<EnforcementRollout>> {
        self.rollout.as_ref()
    }

    /// How many stages of the rollout are in force with these settings; none without one.
    pub fn stages_in_force(&self, settings: &Settings) -> usize {
        let said = self.rollout().map_or(0, |rollout| rollout.reached());
        settings.most_stages.map_or(said, |most| said.min(most))
    }

    /// Whether whom no policy names is refused, whatever policies say to everybody.
    pub fn requires_policy(&self, settings: &Settings) -> bool {
        self.rollout()
            .is_some_and(|rollout| rollout.requires_policy(self.stages_in_force(settings)))
    }
}

/// The one rollout, and what is wrong with the others: each would say in which mode a workload is.
pub(super) fn only(rollouts: &[&Arc<EnforcementRollout>]) -> (Option<Arc<EnforcementRollout>>, Vec<Problem>) {
    let Some((first, others)) = rollouts.split_first() else {
        return (None, Vec::new());
    };
    let problem = |other: &&Arc<EnforcementRollout>| Problem {
        file: other.head.file.clone(),
        line: other.head.line,
        column: other.head.column,
        field: "metadata.name".to_owned(),
        message: format!(
            "`{}` conflicts with the {ROLLOUT_KIND} `{}` in {}:{}: there is one at a time, put their stages into it",
            other.head.name, first.head.name, first.head.file, first.head.line
        ),
    };
    (Some(Arc::clone(first)), others.iter().map(problem).collect())
}
