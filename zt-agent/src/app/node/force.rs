// SPDX-License-Identifier: Apache-2.0
//! Putting things in force: a policy whole, new identities and cgroups in place, a sweep where something was taken away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use zt_common::abi::{MODE_ENFORCE, Workload};

use super::{AppError, Loaded, Node};
use crate::policy::{self, PolicySet, compile};
use crate::policy_dir;
use crate::problem::Problem;

impl Node {
    /// A policy on disk is put in force, or its problems are told and the one in force stays.
    pub(super) fn policies_changed(&mut self, contents: policy_dir::Contents) {
        let parsed = contents
            .0
            .and_then(|documents| policy::reparse(&documents, &self.settings, &self.loaded.policies));
        let problems = match parsed {
            Ok(policies) if policies.digest() == self.loaded.policies.digest() => {
                self.loaded = Loaded {
                    policies: Arc::new(policies),
                    error: None,
                };
                self.publish();
                return;
            }
            Ok(policies) => match self.put_in_force(policies) {
                Ok(()) => return,
                Err(error) => vec![Problem {
                    file: self.parts.config.policy_path.display().to_string(),
                    line: 0,
                    column: 0,
                    field: String::new(),
                    message: error.to_string(),
                }],
            },
            Err(problems) => problems,
        };
        for problem in &problems {
            tracing::error!(
                revision = self.revision,
                "policy not loaded, the last good one stays in force: {problem}"
            );
        }
        self.loaded.error = Some(Arc::new(problems));
        self.publish();
    }

    fn put_in_force(&mut self, policies: PolicySet) -> Result<(), AppError> {
        let started = Instant::now();
        let identities = std::mem::take(&mut self.identities);
        self.gather_identities();
        let table = match self.compile(&policies, self.revision + 1) {
            Ok(table) => table,
            Err(error) => {
                self.identities = identities;
                return Err(error);
            }
        };
        let entries = table.len();
        self.parts.kernel.enforce(table)?;
        self.revision += 1;
        self.loaded = Loaded {
            policies: Arc::new(policies),
            error: None,
        };
        self.publish();
        let swapped = started.elapsed();
        self.guard_receivers();
        let revoked = self.sweep();
        tracing::info!(
            revision = self.revision,
            entries,
            revoked,
            swap_ms = swapped.as_millis() as u64,
            total_ms = started.elapsed().as_millis() as u64,
            "policy in force"
        );
        Ok(())
    }

    pub(super) fn compile(
        &self,
        policies: &PolicySet,
        revision: u64,
    ) -> Result<policy::AllowTable, AppError> {
        Ok(compile(policies, &self.identities, &self.settings, revision)?)
    }

    /// Puts what was merged in force: rules for new identities first, then who is who.
    pub(super) fn merged(&mut self) -> Result<(), AppError> {
        let before = self.parts.kernel.workloads().clone();
        self.gather_identities();
        let table = self.compile(&self.loaded.policies, self.revision)?;
        self.parts.kernel.enforce(table)?;
        self.direct()?;
        self.write_control()?;
        self.guard_receivers();
        self.publish();
        let after = self.parts.kernel.workloads();
        let renamed = |(id, was): (&u64, &Workload)| after.get(id).is_some_and(|is| is != was);
        // A cgroup that is another workload now, or in another mode: what it has open is judged as such.
        if before.iter().any(renamed) {
            self.sweep();
        }
        Ok(())
    }

    /// Cgroups that are enforced upon.
    pub(super) fn enforced(&self) -> BTreeSet<u64> {
        let workloads = self.parts.kernel.workloads();
        workloads
            .iter()
            .filter(|(_, workload)| workload.mode == MODE_ENFORCE)
            .map(|(id, _)| *id)
            .collect()
    }
}
