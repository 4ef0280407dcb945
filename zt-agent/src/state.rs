// SPDX-License-Identifier: Apache-2.0
//! What is in force on this node at one moment: immutable, published whole.
//!
//! One task merges policy and identities into [`Snapshot`]s and sends them; everybody else holds a receiver and never
//! waits.

mod configured;
mod followers;
pub mod merge;
mod modes;
mod publisher;
pub mod services;
mod source;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::identity::{Mode, WorkloadRecord};
use crate::policy::{AllowTable, PolicySet, Problem, Settings, Stop};
use crate::spiffe_id::SpiffeId;

pub use self::configured::Configured;
pub use self::followers::{
    Elsewhere, FORGET_AFTER, Followers, MISSED_AFTER, MOST_SELECTING, MissedNode, REPORT_EVERY, SILENT_AFTER,
    StoppedNode,
};
pub use self::modes::NodeModes;
pub use self::publisher::{InForce, PoliciesInForce, Publisher};
pub use self::services::{Front, Fronts};
pub use self::source::{SOURCE_REFUSALS, SourceStatus};

/// Policy, identities and modes that belong together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Counts the policies that came into force on this node; 0 while there is none.
    pub revision: u64,
    /// The policies of that revision.
    pub policies: Arc<PolicySet>,
    /// What they were compiled to, for the identities known now.
    pub table: Arc<AllowTable>,
    /// The workloads of this node.
    pub workloads: Arc<Vec<Placed>>,
    /// Not all that is said of workloads here is in the kernel yet.
    pub behind: bool,
    /// Cgroups of this node that have no name and are refused nothing, below the cgroup2 mount, in order.
    pub left_alone: Arc<[PathBuf]>,
    /// Pods of this node that have addresses and no name: what each is called is what Kubernetes calls it, and nobody has said so.
    pub nameless: Arc<[Arc<WorkloadRecord>]>,
    /// The virtual places that lead to workloads, here or elsewhere.
    pub fronts: Arc<Fronts>,
    /// Why the documents on disk are not in force, if they are not.
    pub policy_error: Option<Arc<Vec<Problem>>>,
    /// Break-glass: nothing is refused on this node.
    pub observe_all: bool,
    /// The modes of workloads: by the rollout, by themselves, by the configuration.
    pub modes: NodeModes,
    /// Where this node stopped of its own accord, short of what the rollout says.
    pub stopped: Option<Arc<Stop>>,
    /// Cgroups of this node that have lost their name and enforce as they did.
    pub enforced_nameless: usize,
    /// What policy depends on besides its documents.
    pub settings: Arc<Settings>,
}

/// A workload and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// As its source declares it.
    pub record: Arc<WorkloadRecord>,
    /// Ids of its cgroup and of those nested in it; empty while the cgroup does not exist. The kernel knows the first
    /// kind only.
    pub cgroup_ids: Vec<u64>,
    /// Its own mode, whatever [`Snapshot::observe_all`] says.
    pub mode: Mode,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            revision: 0,
            policies: Arc::default(),
            table: Arc::default(),
            workloads: Arc::default(),
            behind: false,
            left_alone: Arc::default(),
            nameless: Arc::default(),
            fronts: Arc::default(),
            policy_error: None,
            observe_all: false,
            modes: Mode::Observe.into(),
            stopped: None,
            enforced_nameless: 0,
            settings: Arc::default(),
        }
    }
}

impl Snapshot {
    /// How many workloads of this node enforce, by their own modes.
    pub fn enforced(&self) -> usize {
        let placed = self.workloads.iter();
        placed.filter(|placed| placed.mode == Mode::Enforce).count()
    }

    /// The mode that decides about a connection between these two, as far as this node can tell: each end applies
    /// its own, so it is `enforce` as soon as one of the ends here enforces. Ends that are not here are in the mode
    /// that they would be in here.
    pub fn mode_between(&self, source: Option<&SpiffeId>, destination: Option<&SpiffeId>) -> Mode {
        if self.observe_all {
            return Mode::Observe;
        }
        let mut found = None;
        for placed in self.workloads.iter() {
            let id = Some(&placed.record.spiffe);
            if id == source || id == destination {
                if placed.mode == Mode::Enforce {
                    return Mode::Enforce;
                }
                found = Some(Mode::Observe);
            }
        }
        found.unwrap_or_else(|| {
            let mut ends = [source, destination].into_iter().flatten().peekable();
            if ends.peek().is_none() {
                return self.modes.default_mode();
            }
            if ends.any(|id| self.modes.of(id) == Mode::Enforce) {
                Mode::Enforce
            } else {
                Mode::Observe
            }
        })
    }
}

/// The one sender of snapshots and a first receiver, which starts with nothing in force.
pub fn channel(first: Snapshot) -> (Publisher, watch::Receiver<Arc<Snapshot>>) {
    let (sender, receiver) = watch::channel(Arc::new(first));
    (Publisher::new(sender), receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{ModeRule, Modes};
    use crate::spiffe_id::Pattern;

    fn placed(path: &str, mode: Mode) -> Placed {
        let spiffe = SpiffeId::parse(&format!("spiffe://hanzo.ai/{path}")).expect("id");
        let record = WorkloadRecord {
            spiffe,
            cgroup: path.into(),
            cgroup_id: None,
            addresses: Vec::new(),
            mode: None,
            pod: None,
        };
        Placed {
            record: Arc::new(record),
            cgroup_ids: Vec::new(),
            mode,
        }
    }

    #[test]
    fn the_end_that_enforces_decides() {
        let (iam, chat) = (placed("iam", Mode::Enforce), placed("chat", Mode::Observe));
        let elsewhere = SpiffeId::parse("spiffe://hanzo.ai/elsewhere").expect("id");
        let (iam_id, chat_id) = (iam.record.spiffe.clone(), chat.record.spiffe.clone());
        let mut snapshot = Snapshot {
            workloads: Arc::new(vec![chat, iam]),
            ..Snapshot::default()
        };
        assert_eq!(
            snapshot.mode_between(Some(&chat_id), Some(&iam_id)),
            Mode::Enforce
        );
        assert_eq!(snapshot.mode_between(Some(&chat_id), None), Mode::Observe);
        assert_eq!(snapshot.mode_between(Some(&elsewhere), None), Mode::Observe);
        snapshot.modes = Mode::Enforce.into();
        assert_eq!(snapshot.mode_between(Some(&elsewhere), None), Mode::Enforce);
        assert_eq!(
            snapshot.mode_between(Some(&chat_id), None),
            Mode::Observe,
            "its own mode beats the default"
        );
        let rule = ModeRule {
            spiffe: Pattern::parse("spiffe://hanzo.ai/elsewhere").expect("pattern"),
            mode: Mode::Observe,
        };
        snapshot.modes = Modes::new(&[rule], Mode::Enforce).into();
        assert_eq!(snapshot.mode_between(Some(&elsewhere), None), Mode::Observe);
        assert_eq!(snapshot.mode_between(None, None), Mode::Enforce);
        snapshot.observe_all = true;
        assert_eq!(
            snapshot.mode_between(Some(&chat_id), Some(&iam_id)),
            Mode::Observe
        );
    }
}
