// SPDX-License-Identifier: Apache-2.0
//! In which mode each workload of a node is: by the rollout, else by its own declaration, else by the configuration.
//!
//! A stage that selects it comes before all others. What a rollout says of everybody else (`defaultMode`, `requirePolicy`) makes
//! nobody enforce whom his declaration or `modes` has observed: those are who the cluster, and the way back, live by.

use std::borrow::Cow;
use std::sync::Arc;

use crate::identity::kubernetes::pod_around;
use crate::identity::{Mode, Modes, WorkloadRecord};
use crate::policy::{EnforcementRollout, Instance, PolicySet, Replica, Settings, Stage, StageMode};
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
        self.decide(self.reached, id, None, None)
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
        let within = Within::of(record);
        let at = self.instance(&within);
        let canary = stage.canary.as_ref();
        canary.is_none_or(|canary| canary.takes(&rollout.head.name, &record.spiffe, Some(&at)))
    }

    /// What the first `reached` stages make of a workload of this node.
    pub fn at(&self, reached: usize, record: &WorkloadRecord) -> Mode {
        if self.rollout.is_none() {
            return self.decide(reached, &record.spiffe, None, record.mode);
        }
        let within = Within::of(record);
        self.decide(
            reached,
            &record.spiffe,
            Some(&self.instance(&within)),
            record.mode,
        )
    }

    fn decide(&self, reached: usize, id: &SpiffeId, at: Option<&Instance<'_>>, own: Option<Mode>) -> Mode {
        let declared = own.or_else(|| self.configured.named(id));
        let otherwise = || declared.unwrap_or_else(|| self.configured.default_mode());
        let Some(rollout) = &self.rollout else {
            return otherwise();
        };
        if let Some(said) = rollout.mode_by_stage(reached, id, at) {
            return mode(said);
        }
        match rollout.default_at(reached) {
            Some(StageMode::Enforce) if declared == Some(Mode::Observe) => Mode::Observe,
            Some(said) => mode(said),
            None => otherwise(),
        }
    }

    fn instance<'a>(&'a self, within: &'a Within<'_>) -> Instance<'a> {
        let replica = match within {
            Within::Pod(name) => Replica::Pod(name),
            Within::Cgroup(path) => Replica::Cgroup(path),
        };
        Instance {
            node: &self.node,
            workload: Some(replica),
        }
    }
}

/// What a workload is a replica by: its containers come and go.
enum Within<'r> {
    Pod(&'r str),
    Cgroup(Cow<'r, str>),
}

impl<'r> Within<'r> {
    fn of(record: &'r WorkloadRecord) -> Self {
        match &record.pod {
            Some(pod) => Self::Pod(pod),
            None => Self::Cgroup(
                pod_around(&record.cgroup)
                    .unwrap_or(&record.cgroup)
                    .to_string_lossy(),
            ),
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
    use crate::identity::ModeRule;
    use crate::policy::{Document, parse};
    use crate::spiffe_id::Pattern;

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
    fn what_is_said_of_everybody_else_spares_whom_the_configuration_has_observed() {
        let (spared, other) = (
            "spiffe://hanzo.ai/c/kube-system/coredns",
            "spiffe://hanzo.ai/c/web",
        );
        let rule = |pattern: &str, mode| ModeRule {
            spiffe: Pattern::parse(pattern).expect("pattern"),
            mode,
        };
        let rules = [
            rule("spiffe://hanzo.ai/c/kube-system/strict", Mode::Enforce),
            rule("spiffe://hanzo.ai/c/kube-system/*", Mode::Observe),
        ];
        let said = |spec: &str, id: &str, own: Option<Mode>| {
            let modes = NodeModes {
                configured: Modes::new(&rules, Mode::Observe),
                ..modes(Mode::Observe, spec)
            };
            let mut record = record("w", own);
            record.spiffe = SpiffeId::parse(id).expect("literal");
            if own.is_none() {
                assert_eq!(modes.of(&record.spiffe), modes.of_workload(&record), "{id}");
            }
            modes.of_workload(&record)
        };
        let (observe, enforce) = (Mode::Observe, Mode::Enforce);
        let require = "stage: all, stages: [{name: all, requirePolicy: true}]";
        let default =
            "defaultMode: enforce, stages: [{name: a, identities: ['spiffe://hanzo.ai/x'], mode: observe}]";
        for spec in [require, default] {
            assert_eq!(said(spec, spared, None), observe, "{spec}");
            assert_eq!(
                said(spec, spared, Some(enforce)),
                enforce,
                "its own declaration comes first"
            );
            assert_eq!(said(spec, other, None), enforce);
            assert_eq!(said(spec, other, Some(observe)), observe);
            assert_eq!(
                said(spec, "spiffe://hanzo.ai/c/kube-system/strict", None),
                enforce
            );
        }
        let named = "stage: a, stages: [{name: a, identities: ['spiffe://hanzo.ai/c/kube-system/*']}]";
        assert_eq!(
            said(named, spared, None),
            enforce,
            "a stage that names them is meant"
        );
    }

    /// Fails where a container is what a canary counts: each start of one would be another throw of the coin.
    #[test]
    fn all_containers_of_a_pod_are_in_one_mode_however_often_they_start() {
        let modes = modes(
            Mode::Observe,
            "stage: a, stages: [{name: a, identities: ['*'], canary: {percent: 50}}]",
        );
        let slice = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod";
        let mut enforced = 0;
        for pod in 0..100 {
            let systemd = format!("{slice}1111_{pod:04}.slice");
            for around in [systemd, format!("kubepods/besteffort/pod2222-{pod:04}")] {
                let own = modes.of_workload(&record(&around, None));
                for start in 0..10 {
                    let nested = record(&format!("{around}/cri-containerd-{start:064x}.scope"), None);
                    assert_eq!(modes.of_workload(&nested), own, "{around}");
                    let named = |cgroup: &str| WorkloadRecord {
                        pod: Some(format!("hanzo/web-{pod}")),
                        ..record(cgroup, None)
                    };
                    let (here, there) = (named(&around), named(&format!("{around}/{start}")));
                    assert_eq!(modes.of_workload(&here), modes.of_workload(&there), "{around}");
                }
                enforced += usize::from(own == Mode::Enforce);
            }
        }
        assert!((60..140).contains(&enforced), "{enforced}");
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
