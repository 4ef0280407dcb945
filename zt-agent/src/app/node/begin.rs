// SPDX-License-Identifier: Apache-2.0
//! What comes first: the policy that was found, compared with what an earlier run left in the kernel, and only then the hooks.

use std::sync::Arc;

use zt_common::entry::AllowKey;

use super::modes::{ModeChange, at_once, together};
use super::{AppError, Node};
use crate::kernel::{KernelError, Search};
use crate::metrics::NodeEvent;
use crate::problem::Problem;

impl Node {
    /// Puts the first policy in force and attaches the hooks.
    pub(super) fn begin(&mut self) -> Result<(), AppError> {
        let policies = Arc::clone(&self.loaded.policies);
        self.govern_by(&policies);
        self.put_together();
        self.read_switches()?;
        self.look_at_namespaces(true)?;
        self.gather_identities();
        let left = self.parts.kernel.left_in_force()?;
        let before = left.get(&AllowKey::HEADER).map_or(0, |header| header.number);
        self.parts.kernel.settle_modes(before)?;
        if self.loaded.policies.all().is_empty() && left.len() > 1 {
            return Err(no_policy_any_more());
        }
        self.revision = before.max(1);
        let mut table = Arc::new(self.compile(&self.loaded.policies, self.revision)?);
        // What was changed while there was no agent comes in one step, too: the modes of those who keep their names. Nothing was in
        // force before a first start.
        let (modes, renamed) = if before == 0 {
            (Vec::new(), Vec::new())
        } else {
            self.changing_modes(Some(&table))
        };
        let same = before != 0
            && modes.is_empty()
            && renamed.is_empty()
            && left.len() == table.len()
            && table.entries().all(|(key, entry)| left.get(&key) == Some(&entry));
        if before != 0 && !same {
            self.revision = before + 1;
            table = Arc::new(self.compile(&self.loaded.policies, self.revision)?);
        }
        self.enforce(table, &at_once(&modes))?;
        self.direct_what_fits(&renamed)?;
        self.renew_key()?;
        self.write_control()?;
        if before == 0 {
            // Nothing of this version was here: whoever listens already has an owner before the first hook asks for it.
            self.find_older(Search::Older, None)?;
        }
        self.begin_in_rollout(&together(modes, renamed));
        self.is_at_work = true;
        self.parts.kernel.attach(&self.parts.roots)?;
        self.log = Some(self.parts.kernel.log()?);
        self.publish_names();
        self.publish();
        self.receivers_changed();
        self.lost = self.losses();
        self.find_older(Search::Older, None)?;
        self.sweep();
        self.cut_off_raw();
        self.check_hooks();
        self.look_around();
        // All names were gathered.
        self.elsewhere.came();
        Ok(())
    }

    /// Writes who is who. Where more is told of than the kernel's maps have room for, an agent begins with what fits, and tries again.
    fn direct_what_fits(&mut self, renamed: &[ModeChange]) -> Result<(), AppError> {
        let Err(error) = self.direct_untold(renamed) else {
            return Ok(());
        };
        let AppError::Kernel(KernelError::TooMany { .. }) = error else {
            return Err(error);
        };
        tracing::error!(%error, "who is who is not written whole: who had no room has no name; trying again");
        self.parts.metrics.node_event(NodeEvent::MergeFailed, 1);
        self.behind = true;
        self.pending.merge = true;
        Ok(())
    }
}

/// The policies are gone, and what was compiled from them is in the kernel.
fn no_policy_any_more() -> AppError {
    AppError::Input {
        problems: vec![Problem {
            file: String::new(),
            line: 0,
            column: 0,
            field: String::new(),
            message: "there is no policy, and the kernel has the one of before, which stays in force: make a policy, or run `zt-agent detach`".to_owned(),
        }],
    }
}
