// SPDX-License-Identifier: Apache-2.0
//! Which part of those that a stage selects it takes.
//!
//! Each workload, or node, has a place between 0 and 1 that a hash gives it, and a canary takes those below its percentage. Nobody
//! else has a say in that: others that come and go change nothing, every agent finds the same, and a higher percentage
//! takes all that a lower one took. The price is that of a few replicas it may take none, or all.

use sha2::{Digest, Sha256};

use crate::spiffe_id::SpiffeId;

/// A part of those that a stage selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canary {
    /// `percent`, 1 to 100.
    pub percent: u8,
    /// `by`: what that is the percentage of.
    pub by: CanaryBy,
}

/// What a canary counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CanaryBy {
    /// The workloads of each service.
    #[default]
    Workload,
    /// Nodes, with all their workloads that the stage selects.
    Node,
}

/// Where a workload runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance<'a> {
    /// Its node.
    pub node: &'a str,
    /// What tells it from others of its service. `None`: it is asked about any workload there.
    pub workload: Option<Replica<'a>>,
}

/// What tells a workload from others of its service, for as long as it is the same one to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replica<'a> {
    /// It is in this pod, `namespace/name`: all of its containers are one, however often they start, and so is a pod that comes
    /// back under its name, on whichever node.
    Pod(&'a str),
    /// It is no pod: its cgroup on its node, below the cgroup2 mount.
    Cgroup(&'a str),
}

impl CanaryBy {
    /// Every one, by name.
    pub const NAMES: [&'static str; 2] = ["workload", "node"];

    /// The one called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "workload" => Some(Self::Workload),
            "node" => Some(Self::Node),
            _ => None,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::Node => "node",
        }
    }
}

impl Canary {
    /// Whether it takes a workload of the service `id`. The name of the rollout is the key of the choice: its stages choose the
    /// same ones first, and another rollout others.
    pub fn takes(&self, rollout: &str, id: &SpiffeId, at: Option<&Instance<'_>>) -> bool {
        if self.percent >= 100 {
            return true;
        }
        let Some(at) = at else { return false };
        let place = match (self.by, at.workload) {
            (CanaryBy::Node, _) => place(&["node", rollout, at.node]),
            (CanaryBy::Workload, Some(Replica::Pod(pod))) => place(&["pod", rollout, id.as_str(), pod]),
            (CanaryBy::Workload, Some(Replica::Cgroup(cgroup))) => {
                place(&["workload", rollout, id.as_str(), at.node, cgroup])
            }
            (CanaryBy::Workload, None) => return false,
        };
        place < u64::from(self.percent)
    }

    /// Whether it takes everybody whom `other` takes, by its form alone.
    pub(super) fn covers(self, other: Self) -> bool {
        self.percent >= 100 || self.by == other.by && self.percent >= other.percent
    }
}

/// A number below 100, the same for the same words.
fn place(words: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    for word in words {
        // None of them has a NUL: no two lists of words are one text.
        hash.update(word.as_bytes());
        hash.update([0]);
    }
    let first = hash.finalize();
    let number = first
        .iter()
        .take(8)
        .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    // As a part of the whole range: no remainder, which would favour low places.
    ((u128::from(number) * 100) >> 64) as u64
}
