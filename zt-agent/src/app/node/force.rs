// SPDX-License-Identifier: Apache-2.0
//! Putting things in force: a policy whole, new identities and cgroups in place, a sweep where something was taken away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::direct::Keep;
use super::modes::{ModeChange, at_once, together};
use super::numbers::Numbers;
use super::{AppError, Loaded, Node};
use crate::kernel::KernelError;
use crate::metrics::NodeEvent;
use crate::policy::{AllowTable, PolicySet, compile_with};
use crate::policy_dir;
use crate::problem::Problem;

impl Node {
    /// A policy on disk is put in force, or its problems are told and the one in force stays.
    pub(super) fn policies_changed(&mut self, contents: policy_dir::Contents) {
        self.pending.policies = None;
        match self.loaded.policies.succeeded_by(contents.0, &self.settings) {
            Ok(policies) if policies.digest() == self.loaded.policies.digest() => {
                self.loaded = Loaded {
                    policies: Arc::new(policies),
                    error: None,
                };
                self.publish();
            }
            Ok(policies) => self.try_in_force(Arc::new(policies), None),
            Err((problems, back)) => {
                let problems = Arc::new(problems);
                // The way back is open, whatever is wrong with others.
                if let Some(back) = back {
                    tracing::warn!(
                        "the rollout goes back, with the other documents that were in force before"
                    );
                    self.try_in_force(Arc::new(*back), Some(Arc::clone(&problems)));
                }
                self.not_in_force(problems);
            }
        }
    }

    /// Puts a policy in force; one that the kernel did not take for a reason that may pass is tried again. `problems`: why it is not
    /// what the documents say, if it is not.
    pub(super) fn try_in_force(&mut self, policies: Arc<PolicySet>, problems: Option<Arc<Vec<Problem>>>) {
        let Err(error) = self.put_in_force(&policies, problems.clone()) else {
            return;
        };
        let passing =
            matches!(&error, AppError::Kernel(error) if !matches!(error, KernelError::TooLarge { .. }));
        self.pending.policies = passing.then_some((policies, problems));
        self.not_in_force(Arc::new(vec![Problem {
            file: self.parts.config.policy_path.display().to_string(),
            line: 0,
            column: 0,
            field: String::new(),
            message: error.to_string(),
        }]));
    }

    fn not_in_force(&mut self, problems: Arc<Vec<Problem>>) {
        for problem in problems.iter() {
            tracing::error!(
                revision = self.revision,
                "policy not loaded, the last good one stays in force: {problem}"
            );
        }
        self.loaded.error = Some(problems);
        self.publish();
    }

    fn put_in_force(
        &mut self,
        policies: &Arc<PolicySet>,
        problems: Option<Arc<Vec<Problem>>>,
    ) -> Result<(), AppError> {
        let started = Instant::now();
        // What was to change anyway is not this policy's doing.
        let left = self.changing_to(&self.wanted_workloads(&self.numbers()));
        let identities = std::mem::take(&mut self.identities);
        self.fronting.forget_past_groups();
        let governed = self.govern_by(policies);
        self.gather_identities();
        let compiled = self.compile(policies, self.revision + 1).map(Arc::new);
        let compile_time = started.elapsed();
        // Where there is no table to come in force, no mode changes.
        let changing = compiled.as_ref().map(|table| self.changing_modes(Some(table)));
        let (modes, renamed) = changing.unwrap_or_default();
        let enforced = compiled.and_then(|table| {
            let entries = table.len();
            Ok((entries, self.enforce(table, &at_once(&modes))?))
        });
        let (entries, renumbered) = match enforced {
            Ok(enforced) => enforced,
            Err(error) => {
                self.identities = identities;
                self.govern_as_before(governed, !modes.is_empty());
                return Err(error);
            }
        };
        // There are rules for everybody now.
        let had_none = !std::mem::take(&mut self.unruled).is_empty();
        if renumbered || had_none || !modes.is_empty() || !renamed.is_empty() {
            let directed = self.direct_untold(&renamed).map(drop);
            if let Err(error) = directed.and(self.write_control()) {
                // Until it succeeds they are nobody.
                tracing::warn!(%error, "who is who could not be written; trying again");
                self.pending.merge = true;
                self.pending.sweep = true;
            }
        }
        self.revision += 1;
        self.loaded = Loaded {
            policies: Arc::clone(policies),
            error: problems,
        };
        self.rollout_moved(&governed, &together(modes, renamed), &left);
        let swapped = started.elapsed();
        // First what must die, then what is told.
        let revoked = self.sweep();
        let swept = started.elapsed();
        self.cut_off_raw();
        self.receivers_changed();
        self.publish_names();
        self.publish();
        tracing::info!(
            revision = self.revision,
            entries,
            revoked,
            compile_ms = compile_time.as_millis() as u64,
            swap_ms = swapped.as_millis() as u64,
            sweep_ms = swept.saturating_sub(swapped).as_millis() as u64,
            total_ms = swept.as_millis() as u64,
            published_ms = started.elapsed().as_millis() as u64,
            "policy in force"
        );
        crate::app::memory::give_back();
        Ok(())
    }

    pub(super) fn compile(&self, policies: &PolicySet, revision: u64) -> Result<AllowTable, AppError> {
        let groups = self.fronting.groups();
        Ok(compile_with(
            policies,
            &self.identities,
            groups,
            &self.settings,
            revision,
        )?)
    }

    /// Puts a table in force. Who is nobody by it is so before, and who was nobody before stays so until after: nobody is
    /// taken for another in between. Whether there is anybody like that, and numbers are to be written anew.
    /// `modes`: cgroups whose mode changes with it, and whether they enforce from then on.
    pub(super) fn enforce(
        &mut self,
        table: Arc<AllowTable>,
        modes: &HashMap<u64, bool>,
    ) -> Result<bool, AppError> {
        let between = self
            .parts
            .kernel
            .table()
            .and_then(|now| Numbers::between(now, &table));
        if let Some(between) = &between {
            let directed = self.direct_by(&between.clone().without(&self.unruled), Keep::Modes);
            match directed {
                // All else is written, and who had no room has no name under either table.
                Err(AppError::Kernel(KernelError::TooMany { .. })) => self.pending.merge = true,
                directed => self.pending.recover |= directed?.resettled,
            }
        }
        let enforced = self.parts.kernel.enforce_with(table, modes);
        if enforced.is_err() && between.is_some() {
            // Until it succeeds they are nobody.
            self.pending.merge |= self.direct_by(&self.numbers(), Keep::Modes).is_err();
        }
        enforced?;
        self.tell_of_nobodies();
        Ok(between.is_some())
    }

    /// Says and counts whom the table in force takes for nobody although there is a name, once each.
    fn tell_of_nobodies(&mut self) {
        let Some(table) = self.parts.kernel.table() else {
            return;
        };
        let new = table
            .alike()
            .iter()
            .filter(|(id, _)| !self.alike.contains_key(*id));
        for (id, other) in new {
            self.parts.metrics.node_event(NodeEvent::IdentityAlike, 1);
            tracing::error!(
                name = id.as_str(),
                other = other.as_str(),
                number = id.number(),
                "two names have the same kernel number: `{id}` is nobody on this node, as it could not be told from `{other}`; rename it, and look at who made it"
            );
        }
        self.alike.clone_from(table.alike());
        let undecided = table.undecided().len();
        if undecided > self.undecided {
            let more = (undecided - self.undecided) as u64;
            self.parts.metrics.node_event(NodeEvent::GroupsLeftOut, more);
            tracing::error!(
                groups = undecided,
                "the allow table has no room for what policy says to these groups of Services: whoever connects there connects to nobody; narrow the patterns of the policy, or look for Services with very many backends"
            );
        }
        self.undecided = undecided;
    }

    /// Puts what was merged in force: rules for new identities first, then who is who.
    pub(super) fn merged(&mut self) -> Result<(), AppError> {
        let merged = self.merge();
        self.behind = merged.is_err();
        if self.behind {
            self.parts.metrics.node_event(NodeEvent::MergeFailed, 1);
        }
        // What does not compile compiles no better a second later.
        let left = matches!(merged, Err(AppError::Kernel(_))) || !self.residents_changed.is_empty();
        self.pending.merged(left, Instant::now());
        self.watch_newly();
        self.publish_names();
        self.publish();
        merged
    }

    /// Puts a table in force that has rules for everybody that there is, and modes that change with it. Whether numbers are to be
    /// written anew.
    fn rule_all(&mut self, revision: u64, modes: &[ModeChange]) -> Result<bool, AppError> {
        let compiled = self.compile(&self.loaded.policies, revision).map(Arc::new);
        match compiled.and_then(|table| self.enforce(table, &at_once(modes))) {
            Ok(renumbered) => {
                self.revision = revision;
                self.unruled.clear();
                self.pending.ruled(renumbered);
                self.receivers_changed();
                self.note_modes(modes);
                Ok(renumbered)
            }
            Err(error) => {
                self.identities.retain(|id| !self.unruled.contains(id));
                Err(error)
            }
        }
    }

    /// Names are new on other nodes, and nothing else is: they get their rules, and nobody else is looked at. False where that is
    /// not all that there is to do: all is to be put together then.
    pub(super) fn rule_newcomers(&mut self) -> bool {
        if self.behind || !self.groups_in_force() {
            return false;
        }
        self.unruled = self.gather_identities();
        if self.unruled.is_empty() {
            // They have gone again.
            return true;
        }
        // What fails is told of by who puts all together, and does it once more.
        matches!(self.rule_all(self.revision, &[]), Ok(false))
    }

    fn merge(&mut self) -> Result<(), AppError> {
        // All names are gathered: nobody need look at those that came.
        self.elsewhere.came();
        self.settle_services();
        // Patterns stand for the identities that there are: without a new one, the table is what it was.
        self.unruled = self.gather_identities();
        // All modes in one step, under a revision of their own. Where that fails, each is written by itself below.
        let (modes, _) = self.changing_modes(self.parts.kernel.table());
        let revision = self.revision + u64::from(!modes.is_empty());
        let mut failed = None;
        if !self.unruled.is_empty() || !self.groups_in_force() || !modes.is_empty() {
            failed = self.rule_all(revision, &modes).err();
        }
        // Whoever has lost a name loses it whatever became of those who are new.
        let directed = self.direct();
        let changes = directed.as_ref().copied().unwrap_or_default();
        // A part may have been written, which nobody tells of any more.
        let partly = directed.is_err();
        if directed.is_ok() {
            // Its modes are in force. What changes from now on is not the file's doing, whatever else fails.
            self.file_is_new = false;
        }
        // Also where that failed: the modes that changed with the swap hold.
        let written = directed.map(drop).and(self.write_control());
        self.guard_receivers();
        // A cgroup that is another workload now, or in another mode: what it has open is judged as such.
        if changes.resettled {
            self.pending.recover = true;
            self.recover_if_wanted();
        }
        if partly || changes.renamed || changes.resettled || !modes.is_empty() {
            self.sweep_after_modes();
        }
        self.cut_off_raw();
        written.and(failed.map_or(Ok(()), Err))
    }
}
