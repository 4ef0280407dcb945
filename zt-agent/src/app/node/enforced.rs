// SPDX-License-Identifier: Apache-2.0
//! By which name each cgroup came to enforce. Who loses his name stays as strict as he was; but where a rollout goes back that made
//! him so, it does for him too: a cluster whose identities have all expired must not be beyond help.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zt_common::abi::{MODE_ENFORCE, Workload};
use zt_common::identity;

use super::cgroups::Cgroups;
use crate::identity::{Mode, WorkloadRecord, kept};
use crate::spiffe_id::SpiffeId;
use crate::state::NodeModes;

/// The file in which it is kept of those that have no name.
const FILE: &str = "enforced.json";
/// Most bytes of that file.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The names, by cgroup.
#[derive(Debug, Default)]
pub(super) struct EnforcedAs {
    names: HashMap<u64, Arc<WorkloadRecord>>,
    file: PathBuf,
    /// What the file says.
    kept: BTreeMap<u64, Name>,
    /// It could not be written.
    failed: bool,
}

/// A name, for the next agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Name {
    cgroup: PathBuf,
    spiffe: String,
    mode: Option<Mode>,
    pod: Option<String>,
}

impl EnforcedAs {
    /// Goes on with what the last agent knew of cgroups that are still there.
    pub(super) fn open(directory: &Path, cgroups: &Cgroups) -> Self {
        let file = directory.join(FILE);
        let kept: BTreeMap<u64, Name> =
            kept::read(&file, MAX_BYTES, "names by which cgroups enforce").unwrap_or_default();
        let record = |(id, name): (&u64, &Name)| {
            let is_there = cgroups.path(*id) == Some(name.cgroup.as_path());
            let spiffe = SpiffeId::parse(&name.spiffe).ok().filter(|_| is_there)?;
            let record = WorkloadRecord {
                spiffe,
                cgroup: name.cgroup.clone(),
                cgroup_id: Some(*id),
                addresses: Vec::new(),
                mode: name.mode,
                pod: name.pod.clone(),
            };
            Some((*id, Arc::new(record)))
        };
        Self {
            names: kept.iter().filter_map(record).collect(),
            file,
            kept,
            failed: false,
        }
    }

    /// This cgroup enforces, by this name.
    pub(super) fn note(&mut self, id: u64, record: &Arc<WorkloadRecord>) {
        self.names.insert(id, Arc::clone(record));
    }

    /// A cgroup has gone.
    pub(super) fn removed(&mut self, id: u64) {
        self.names.remove(&id);
    }

    /// Whether whoever came to enforce there by a name does not by these modes.
    pub(super) fn is_released(&self, id: u64, modes: &NodeModes) -> bool {
        let name = self.names.get(&id);
        name.is_some_and(|record| modes.of_workload(record) == Mode::Observe)
    }

    /// Those that enforce, or would, for the stage that was reached last.
    pub(super) fn newly_enforced<'n>(&'n self, modes: &'n NodeModes) -> impl Iterator<Item = u64> + 'n {
        let newly =
            |(id, record): (&u64, &Arc<WorkloadRecord>)| modes.is_newly_enforced(record).then_some(*id);
        self.names.iter().filter_map(newly)
    }

    /// Has the next agent know it of those that have no name now: of all others it is told again.
    pub(super) fn keep(&mut self, known: &HashMap<u64, Workload>) {
        let is_nobody = |id: &u64| {
            known.get(id).is_some_and(|workload| {
                workload.identity == identity::UNKNOWN && workload.mode == MODE_ENFORCE
            })
        };
        let nobodies = self.names.iter().filter(|(id, _)| is_nobody(id));
        let now: BTreeMap<u64, Name> = nobodies
            .map(|(id, record)| {
                let name = Name {
                    cgroup: record.cgroup.clone(),
                    spiffe: record.spiffe.to_string(),
                    mode: record.mode,
                    pod: record.pod.clone(),
                };
                (*id, name)
            })
            .collect();
        if now == self.kept {
            return;
        }
        let written = serde_json::to_vec(&now)
            .map_err(std::io::Error::other)
            .and_then(|text| kept::replace(&self.file, &text));
        match written {
            Ok(()) => (self.kept, self.failed) = (now, false),
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(file = %self.file.display(), %error, "by which names cgroups enforce is not kept: after a restart, a rollback would not free those that have none; trying again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{self, Settings};

    fn modes(stage: &str) -> NodeModes {
        let text = format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: EnforcementRollout\nmetadata: {{name: r}}\nspec: {{{stage}stages: [{{name: a, identities: ['spiffe://hanzo.ai/web']}}]}}\n"
        );
        let document = policy::Document {
            file: "r.yaml".to_owned(),
            text,
        };
        let settings = Settings::default();
        let policies = policy::parse(&[document], &settings).expect("valid");
        NodeModes::new(Mode::Observe.into(), &policies, &settings, "node-1")
    }

    #[test]
    fn who_came_to_enforce_by_a_stage_is_released_with_it_whoever_the_agent_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let cgroups = Cgroups::new(BTreeMap::from([("r/web".into(), 1), ("r/own".into(), 2)]));
        let record = |cgroup: &str, mode| {
            Arc::new(WorkloadRecord {
                spiffe: SpiffeId::parse("spiffe://hanzo.ai/web").expect("literal"),
                cgroup: cgroup.into(),
                cgroup_id: None,
                addresses: Vec::new(),
                mode,
                pod: None,
            })
        };
        let mut enforced = EnforcedAs::open(directory.path(), &cgroups);
        enforced.note(1, &record("r/web", None));
        enforced.note(2, &record("r/own", Some(Mode::Enforce)));
        let (reached, back) = (modes("stage: a, "), modes(""));
        assert!(!enforced.is_released(1, &reached) && enforced.is_released(1, &back));
        assert!(!enforced.is_released(2, &back), "it says so itself");
        assert!(!enforced.is_released(3, &back), "nobody knows why");
        let newly: Vec<u64> = enforced.newly_enforced(&reached).collect();
        assert_eq!(newly, [1]);
        // Only those without a name are for the next agent to know.
        let workload = |identity| Workload {
            identity,
            mode: MODE_ENFORCE,
            reserved: [0; 7],
        };
        enforced.keep(&HashMap::from([
            (1, workload(identity::UNKNOWN)),
            (2, workload(1 << 40)),
        ]));
        let next = EnforcedAs::open(directory.path(), &cgroups);
        assert!(next.is_released(1, &back) && next.names.len() == 1);
        // Another cgroup has that number by now.
        let others = Cgroups::new(BTreeMap::from([("r/other".into(), 1)]));
        assert!(EnforcedAs::open(directory.path(), &others).names.is_empty());
        enforced.removed(1);
        enforced.keep(&HashMap::new());
        assert!(EnforcedAs::open(directory.path(), &cgroups).names.is_empty());
    }
}
