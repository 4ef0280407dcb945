// SPDX-License-Identifier: Apache-2.0
//! Whether enforcement is whole: managed roots that exist, hooks, links and pins where they belong. What is missing is put
//! back, and what cannot be is said wherever an operator looks.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::super::notify;
use super::{AppError, Node, roots};
use crate::api::Readiness;
use crate::cgroup::ManagedCgroup;
use crate::kernel::{Mended, Search};

/// What is said first when several things are wrong.
const DETACHED: &str = "every hook was removed (`zt-agent detach`): restart zt-agent to attach them again";

impl Node {
    /// Attaches to a managed root that appeared, or that was removed and made anew.
    pub(super) fn check_roots(&mut self) -> Result<(), AppError> {
        let mount = &self.parts.mount;
        let present = roots(&self.parts.config.managed_cgroup.present(mount), mount);
        if present == self.parts.roots {
            return Ok(());
        }
        tracing::warn!(roots = ?present.iter().map(|root| &root.path).collect::<Vec<_>>(), "the managed cgroups changed: attaching anew");
        let before = std::mem::replace(&mut self.parts.roots, present);
        let attached = self
            .write_control()
            .and_then(|()| Ok(self.parts.kernel.attach(&self.parts.roots)?));
        if attached.is_err() {
            // So that the next look tries again.
            self.parts.roots = before;
            return attached;
        }
        self.pending.attached = Some(Instant::now());
        self.judge_what_passed();
        self.check_hooks();
        Ok(())
    }

    /// Looks at sockets that were opened while a hook was not there.
    pub(super) fn judge_what_passed(&mut self) {
        let looked = self
            .look_at_namespaces(true)
            .and_then(|()| self.find_older(Search::Older, None));
        if let Err(error) = looked {
            tracing::error!(%error, "sockets that were opened before the hooks were in place may be overlooked");
        }
        self.receivers_changed();
        self.sweep();
        self.cut_off_raw();
    }

    /// The managed roots that are waited for.
    pub(super) fn awaited(&self) -> Vec<String> {
        let awaited = |root: &&std::path::PathBuf| !self.parts.mount.join(root).is_dir();
        let absent: Vec<String> = self
            .parts
            .root_paths
            .iter()
            .filter(awaited)
            .map(|root| root.display().to_string())
            .collect();
        // The kubelet makes one of the two.
        let either = self.parts.config.managed_cgroup == ManagedCgroup::Auto;
        if either && absent.len() < self.parts.root_paths.len() {
            Vec::new()
        } else {
            absent
        }
    }

    /// Asks the kernel whether everything of ours is where it belongs, puts back what is not, and says so.
    pub(super) fn check_hooks(&mut self) {
        let mended = self.parts.kernel.mend();
        for what in &mended.restored {
            tracing::error!("put back what somebody had removed: {what}");
        }
        self.parts.metrics.restored(mended.restored.len());
        if mended.gap {
            self.judge_what_passed();
        }
        self.parts.kernel.end_other_handshakes();
        self.begin_handshakes();
        let others = self.remove_other_versions();
        let troubles = self.troubles_of(&mended).or(others);
        if troubles != self.troubles {
            if let Some(troubles) = &troubles {
                tracing::error!("not ready: {troubles}");
            } else {
                tracing::info!("ready: the hooks are attached");
            }
            let status = troubles.clone().unwrap_or_else(|| "enforcing".into());
            notify(sd_notify::NotifyState::Status(&status));
            self.troubles.clone_from(&troubles);
        }
        self.parts.ready.send_replace(Readiness {
            policy: true,
            hooks: troubles.is_none(),
            leaving: false,
            reason: troubles.map(Arc::from),
        });
    }

    fn troubles_of(&self, mended: &Mended) -> Option<String> {
        if mended.detached {
            return Some(DETACHED.into());
        }
        let awaited = self.awaited();
        if !awaited.is_empty() {
            return Some(waiting(&awaited, &self.parts.mount));
        }
        if let Some(error) = mended.problems.first() {
            return Some(format!("what is missing cannot be put back: {error}"));
        }
        let hooks = self.parts.kernel.hooks();
        let missing: Vec<&str> = hooks
            .iter()
            .filter(|hook| !hook.attached)
            .map(|hook| hook.program)
            .collect();
        if !missing.is_empty() {
            return Some(format!(
                "the kernel does not report our hooks: {}",
                missing.join(", ")
            ));
        }
        (!self.parts.kernel.is_attached()).then(|| "no hook is attached".into())
    }

    /// Has handshakes bear identities that waited for another version of the agent to go, and asks those who listen for what they are
    /// asked for then.
    fn begin_handshakes(&mut self) {
        if !self.beside || self.parts.kernel.is_beside() {
            return;
        }
        self.beside = false;
        let begun = self.write_control();
        let begun = begun.and_then(|()| self.find_older(Search::Older, None));
        match begun {
            Ok(()) => self.parts.kernel.forget_other_versions(),
            Err(error) => {
                tracing::warn!(%error, "handshakes bear no identities yet; trying again");
                self.beside = true;
                if let Err(error) = self.write_control() {
                    tracing::warn!(%error, "the switches are not written");
                }
            }
        }
    }

    /// Removes what another ABI version of the agent left, once this one has everything in place.
    fn remove_other_versions(&self) -> Option<String> {
        let problem = match self.parts.kernel.remove_other_versions() {
            Ok(None) => return None,
            Ok(Some(removal)) => {
                tracing::info!(pins = removal.removed, "pins of another version are removed");
                removal.problems.into_iter().next()?
            }
            Err(error) => error,
        };
        Some(if self.parts.kernel.is_beside() {
            format!("hooks of another version of zt decide beside ours: {problem}")
        } else {
            format!("what another version of zt has left cannot be removed: {problem}")
        })
    }
}

fn waiting(awaited: &[String], mount: &Path) -> String {
    let which = if awaited.len() == 1 { "cgroup" } else { "cgroups" };
    format!(
        "waiting for the managed {which} {} below {}: the hooks are attached as soon as what makes it has started; see `managedCgroup` if the name is wrong",
        awaited.join(", "),
        mount.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_named() {
        let text = waiting(
            &["kubepods.slice".into(), "kubepods".into()],
            Path::new("/sys/fs/cgroup"),
        );
        assert!(
            text.contains("cgroups kubepods.slice, kubepods below /sys/fs/cgroup"),
            "{text}"
        );
    }
}
