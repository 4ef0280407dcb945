// SPDX-License-Identifier: Apache-2.0
//! In which mode each workload of a node is: by the rollout, else by its own declaration, else by the configuration.

use std::sync::Arc;

use crate::identity::{Mode, Modes, WorkloadRecord};
use crate::policy::{EnforcementRollout, Instance, PolicySet, Settings, Stage, StageMode};
use crate::spiffe_id::SpiffeId;

/// The modes of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeModes {
    configured: Modes,
    rollout: Option<Arc<EnforcementRollout>>,
    /// How many stages of the rollout are in force here.
    reached: usize,
    node: Arc<str>,
}

impl NodeModes {
    /// The modes of `node` under these policies: of whom no rollout speaks, `configured` says.
    pub fn new(configured: Modes, policies: &PolicySet, settings: &Settings, node: &str) -> Self {
        Self {
            configured,
            rollout: policies.rollout().cloned(),
            reached: policies.stages_in_force(settings),
            node: Arc::from(node),
        }
    }

    /// The mode of a workload of this node.
    pub fn of_workload(&self, record: &WorkloadRecord) -> Mode {
        self.at(self.reached, record)
    }

    /// Whether a workload of this node enforces for the stage that was reached last, and did not for those before it.
    pub fn is_newly_enforced(&self, record: &WorkloadRecord) -> bool {
        let before = self.reached.checked_sub(1);
        self.at(self.reached, record) == Mode::Enforce
            && before.is_some_and(|before| self.at(before, record) == Mode::Observe)
    }

    /// The mode in which somebody would be who is not here, as far as that does not depend on where he is.
    pub fn of(&self, id: &SpiffeId) -> Mode {
        let said = self
            .rollout
            .as_ref()
            .and_then(|rollout| rollout.mode_of(self.reached, id, None));
        said.map_or_else(|| self.configured.of(id), mode)
    }

    /// The mode of those that nothing names.
    pub fn default_mode(&self) -> Mode {
        let said = self
            .rollout
            .as_ref()
            .and_then(|rollout| rollout.default_at(self.reached));
        said.map_or_else(|| self.configured.default_mode(), mode)
    }

    /// The rollout, and how many of its stages are in force here.
    pub fn rollout(&self) -> Option<(&Arc<EnforcementRollout>, usize)> {
        self.rollout.as_ref().map(|rollout| (rollout, self.reached))
    }

    /// Whether a stage of the rollout that selects a workload of this node takes it.
    pub fn takes(&self, stage: &Stage, record: &WorkloadRecord) -> bool {
        let Some(rollout) = &self.rollout else {
            return false;
        };
        let cgroup = record.cgroup.to_string_lossy();
        let canary = stage.canary.as_ref();
        canary.is_none_or(|canary| {
            canary.takes(&rollout.head.name, &record.spiffe, Some(&self.instance(&cgroup)))
        })
    }

    /// What the first `reached` stages make of a workload of this node.
    pub fn at(&self, reached: usize, record: &WorkloadRecord) -> Mode {
        let said = self.rollout.as_ref().and_then(|rollout| {
            let cgroup = record.cgroup.to_string_lossy();
            rollout.mode_of(reached, &record.spiffe, Some(&self.instance(&cgroup)))
        });
        said.map(mode)
            .or(record.mode)
            .unwrap_or_else(|| self.configured.of(&record.spiffe))
    }

    fn instance<'a>(&'a self, cgroup: &'a str) -> Instance<'a> {
        Instance {
            node: &self.node,
            workload: Some(cgroup),
        }
    }
}

const fn mode(said: StageMode) -> Mode {
    match said {
        StageMode::Observe => Mode::Observe,
        StageMode::Enforce => Mode::Enforce,
    }
}

impl From<Modes> for NodeModes {
    /// Without a rollout.
    fn from(configured: Modes) -> Self {
        Self::new(configured, &PolicySet::default(), &Settings::default(), "")
    }
}

impl From<Mode> for NodeModes {
    /// Everybody in one mode.
    fn from(mode: Mode) -> Self {
        Modes::from(mode).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Document, parse};

    fn record(cgroup: &str, own: Option<Mode>) -> WorkloadRecord {
        WorkloadRecord {
            spiffe: SpiffeId::parse("spiffe://hanzo.ai/c/web").expect("literal"),
            cgroup: cgroup.into(),
            cgroup_id: None,
            addresses: Vec::new(),
            mode: own,
            pod: None,
        }
    }

    fn modes(configured: Mode, spec: &str) -> NodeModes {
        let text = format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: EnforcementRollout\nmetadata: {{name: r}}\nspec: {{{spec}}}\n"
        );
        let documents = [Document {
            file: "r.yaml".to_owned(),
            text,
        }];
        let settings = Settings::default();
        let policies = parse(&documents, &settings).unwrap_or_else(|problems| panic!("{problems:#?}"));
        NodeModes::new(configured.into(), &policies, &settings, "node-1")
    }

    #[test]
    fn a_rollout_comes_before_the_workload_itself_and_that_before_the_configuration() {
        let stage = "stages: [{name: a, identities: ['spiffe://hanzo.ai/c/*'], mode: enforce}]";
        let (plain, own) = (record("w", None), record("w", Some(Mode::Observe)));
        let reached = modes(Mode::Observe, &format!("stage: a, {stage}"));
        assert_eq!(reached.of_workload(&own), Mode::Enforce);
        assert!(reached.is_newly_enforced(&own));
        assert_eq!(reached.of(&plain.spiffe), Mode::Enforce);
        let waiting = modes(Mode::Enforce, stage);
        assert_eq!(waiting.of_workload(&own), Mode::Observe);
        assert_eq!(waiting.of_workload(&plain), Mode::Enforce);
        let default = modes(Mode::Enforce, &format!("defaultMode: observe, {stage}"));
        assert_eq!(default.of_workload(&plain), Mode::Observe);
        assert_eq!(default.default_mode(), Mode::Observe);
        // It enforced before: nothing is new about it.
        let before = modes(Mode::Enforce, &format!("stage: a, {stage}"));
        assert!(!before.is_newly_enforced(&plain) && before.is_newly_enforced(&own));
    }

    #[test]
    fn a_canary_is_about_workloads_that_are_somewhere() {
        let spec = "stage: a, stages: [{name: a, identities: ['*'], canary: {percent: 50}}]";
        let modes = modes(Mode::Observe, spec);
        let enforced = (0..200)
            .filter(|n| modes.of_workload(&record(&format!("pod-{n}"), None)) == Mode::Enforce)
            .count();
        assert!((60..140).contains(&enforced), "{enforced}");
        assert_eq!(
            modes.of(&record("", None).spiffe),
            Mode::Observe,
            "nobody can tell"
        );
    }
}
