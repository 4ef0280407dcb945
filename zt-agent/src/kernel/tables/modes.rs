// SPDX-License-Identifier: Apache-2.0
//! Modes of workloads that change with the policy, in the one step in which that is swapped.

use std::collections::HashMap;

use zt_common::abi::{Workload, mode_between, settled};

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

    /// Each workload is in the mode itself that it has under `revision`, which is in force: after a swap, after one that was not carried
    /// through, and after an agent that died in the middle of one.
    pub(in crate::kernel) fn settle_modes(&mut self, revision: u64) -> Result<(), KernelError> {
        let between: Vec<(u64, Workload)> = self
            .workloads
            .content()
            .iter()
            .filter(|(_, workload)| workload.mode != settled(workload.mode, revision))
            .map(|(cgroup, workload)| (*cgroup, *workload))
            .collect();
        for (cgroup, workload) in between {
            let mode = settled(workload.mode, revision);
            self.workloads.set(cgroup, Workload { mode, ..workload })?;
        }
        Ok(())
    }
}
