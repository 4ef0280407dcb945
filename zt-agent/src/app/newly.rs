// SPDX-License-Identifier: Apache-2.0
//! Denials of workloads that the stage of a rollout newly enforced: told by the node, counted by the reader of events.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use zt_common::verdict::RULE_REQUIRE_POLICY;

use crate::audit::decode::Decision;

/// Which workloads they are, by their cgroups, and how often they were refused since somebody asked.
#[derive(Debug, Default)]
pub(super) struct Newly {
    workloads: RwLock<HashSet<u64>>,
    denials: AtomicU64,
}

impl Newly {
    /// These are they, from now on.
    pub(super) fn set(&self, workloads: HashSet<u64>) {
        let mut held = self.workloads.write().unwrap_or_else(PoisonError::into_inner);
        *held = workloads;
    }

    /// Counts a decision that refused one of them, or whom no policy names: that is new to all who are in force.
    pub(super) fn saw(&self, decision: &Decision) {
        if decision.allowed || !decision.enforced {
            return;
        }
        if decision.rule == RULE_REQUIRE_POLICY || self.has(decision.workload) {
            self.denials.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many there were since the last time.
    pub(super) fn take(&self) -> u64 {
        self.denials.swap(0, Ordering::Relaxed)
    }

    fn has(&self, workload: u64) -> bool {
        let held = self.workloads.read().unwrap_or_else(PoisonError::into_inner);
        held.contains(&workload)
    }
}
