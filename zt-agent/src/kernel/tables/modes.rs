// SPDX-License-Identifier: Apache-2.0
//! Modes of workloads that change with the policy, in the one step in which that is swapped.

use std::collections::HashMap;

use zt_common::abi::{MODE_ENFORCE, MODE_OBSERVE, Workload, enforces, enforcing, mode_between};

use super::Tables;
use crate::kernel::error::KernelError;

impl Tables {
    /// Writes the modes that workloads will have under the table of `revision`, beside those that they have until it is swapped
    /// in. Whether there are any; what is not in the map is passed over.
    pub(in crate::kernel) fn prepare_modes(
        &mut self,
        enforced: &HashMap<u64, bool>,
        revision: u64,
    ) -> Result<bool, KernelError> {
        let mut any = false;
        for (cgroup, enforced) in enforced {
            let Some(before) = self.workloads.content().get(cgroup).copied() else {
                continue;
            };
            let mode = mode_between(*enforced, revision);
            any |= self.workloads.set(*cgroup, Workload { mode, ..before })?;
        }
        Ok(any)
    }

    /// What is left of a swap that was not carried through, or by an agent that died in the middle of one: each workload is in the
    /// mode that it has under `revision`, which is in force.
    pub(in crate::kernel) fn settle_modes(&mut self, revision: u64) -> Result<(), KernelError> {
        let between: Vec<(u64, Workload)> = self
            .workloads
            .content()
            .iter()
            .filter(|(_, workload)| ![MODE_OBSERVE, MODE_ENFORCE].contains(&workload.mode))
            .map(|(cgroup, workload)| (*cgroup, *workload))
            .collect();
        for (cgroup, workload) in between {
            let mode = if enforces(enforcing(workload.mode), revision) {
                MODE_ENFORCE
            } else {
                MODE_OBSERVE
            };
            self.workloads.set(cgroup, Workload { mode, ..workload })?;
        }
        Ok(())
    }
}
