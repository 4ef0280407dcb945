// SPDX-License-Identifier: Apache-2.0
//! Cgroups that come and go. An event costs what its own cgroup costs: one entry of a map, and no look at the policy.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use zt_common::abi::Workload;

use super::workloads::entry;
use super::{AppError, Node};
use crate::cgroup::CgroupEvent;
use crate::kernel::netns;

/// The managed cgroups that exist, both ways round.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    by_path: BTreeMap<PathBuf, u64>,
    by_id: HashMap<u64, PathBuf>,
}

impl Cgroups {
    pub(super) fn new(present: BTreeMap<PathBuf, u64>) -> Self {
        Self {
            by_id: present.iter().map(|(path, id)| (*id, path.clone())).collect(),
            by_path: present,
        }
    }

    pub(super) fn by_path(&self) -> &BTreeMap<PathBuf, u64> {
        &self.by_path
    }

    /// The id of the cgroup at a path.
    pub(super) fn id(&self, path: &Path) -> Option<u64> {
        self.by_path.get(path).copied()
    }

    /// The path of a cgroup.
    pub(super) fn path(&self, id: u64) -> Option<&Path> {
        self.by_id.get(&id).map(PathBuf::as_path)
    }

    fn insert(&mut self, path: PathBuf, id: u64) {
        self.by_id.insert(id, path.clone());
        self.by_path.insert(path, id);
    }

    fn remove(&mut self, path: &Path, id: u64) {
        self.by_id.remove(&id);
        if self.by_path.get(path) == Some(&id) {
            self.by_path.remove(path);
        }
    }

    /// The nearest ancestor of a cgroup, or the cgroup itself, that `workloads` has: what the kernel finds.
    pub(super) fn nearest(&self, id: u64, workloads: &HashMap<u64, Workload>) -> Option<u64> {
        if workloads.contains_key(&id) {
            return Some(id);
        }
        self.above(id, workloads)
    }

    /// The nearest ancestor of a cgroup that `workloads` has.
    pub(super) fn above(&self, id: u64, workloads: &HashMap<u64, Workload>) -> Option<u64> {
        self.path(id)?
            .ancestors()
            .skip(1)
            .filter_map(|ancestor| self.id(ancestor))
            .find(|ancestor| workloads.contains_key(ancestor))
    }

    /// Whether `id` is `ancestor` or lies below it.
    pub(super) fn is_below(&self, id: u64, ancestor: u64) -> bool {
        match (self.path(id), self.path(ancestor)) {
            (Some(path), Some(above)) => path.starts_with(above),
            _ => id == ancestor,
        }
    }
}

impl Node {
    /// The directory of a managed cgroup.
    pub(super) fn directory(&self, id: u64) -> Option<PathBuf> {
        self.cgroups.path(id).map(|path| self.parts.mount.join(path))
    }

    /// A cgroup that is declared gets its entry at once; one that is nested in it is found by it.
    pub(super) fn cgroup_changed(&mut self, event: CgroupEvent) -> Result<(), AppError> {
        match event {
            CgroupEvent::Created { path, id } => {
                if self.parts.root_paths.contains(&path) {
                    // At once: whoever is started in it must find the hooks.
                    self.check_roots()?;
                }
                let numbers = self.numbers();
                let workload = self.places.created(&path, id);
                let workload = workload.map(|placed| entry(placed, &numbers));
                let directory = self.parts.mount.join(&path);
                self.cgroups.insert(path.clone(), id);
                // Told twice of one, as after a queue that overflowed: it may have lost a name since.
                let is_nobodys = || self.cgroups.nearest(id, self.parts.kernel.workloads()).is_none();
                let workload = workload.or_else(|| self.unnamed.entry(&path).filter(|_| is_nobodys()));
                if let Some(workload) = workload {
                    self.parts.kernel.add_workload(id, workload)?;
                    if self.receivers.takes(workload.identity) {
                        self.guard(id);
                    }
                    if self.cgroups.above(id, self.parts.kernel.workloads()).is_some() {
                        // What it has open so far was filed under the workload around it.
                        self.pending.recover = true;
                    }
                }
                // Mostly nobody is in it yet; whoever decides something there is looked at then.
                let pids = netns::members(&directory);
                self.look_at(&pids)
            }
            CgroupEvent::Removed { path, id } => {
                self.places.removed(&path, id);
                self.cgroups.remove(&path, id);
                self.unnamed.removed(&path);
                self.enforced_as.removed(id);
                self.pending.guards.remove(&id);
                self.parts.kernel.unguard(id);
                self.parts.kernel.remove_workload(id)?;
                Ok(())
            }
        }
    }

    /// After cgroups came or went: what depends on all of them.
    pub(super) fn cgroups_settled(&mut self) -> Result<(), AppError> {
        let written = self.write_control();
        if self.pending.may_have_passed() {
            self.judge_what_passed();
        }
        self.cut_off_raw();
        self.watch_newly();
        self.publish_places();
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zt_common::abi::MODE_OBSERVE;

    #[test]
    fn the_nearest_workload_is_found_by_what_exists() {
        let present = [("r", 1), ("r/a", 2), ("r/a/b", 3), ("r/a/b/c", 4), ("r/d", 5)]
            .map(|(path, id)| (PathBuf::from(path), id));
        let mut cgroups = Cgroups::new(BTreeMap::from(present));
        let workload = Workload {
            identity: 77,
            mode: MODE_OBSERVE,
            reserved: [0; 7],
        };
        let workloads = HashMap::from([(2, workload), (4, workload)]);
        let nearest = |cgroups: &Cgroups, id| cgroups.nearest(id, &workloads);
        assert_eq!(nearest(&cgroups, 4), Some(4));
        assert_eq!(cgroups.above(4, &workloads), Some(2));
        assert_eq!(nearest(&cgroups, 3), Some(2));
        assert_eq!(nearest(&cgroups, 5), None);
        assert_eq!(nearest(&cgroups, 99), None);
        assert!(cgroups.is_below(4, 2) && !cgroups.is_below(2, 4) && cgroups.is_below(9, 9));
        // The id of another one by now: the removal is that of the old one.
        cgroups.insert("r/d".into(), 6);
        cgroups.remove(Path::new("r/d"), 5);
        assert_eq!(cgroups.id(Path::new("r/d")), Some(6));
    }
}
