// SPDX-License-Identifier: Apache-2.0
//! Which cgroup is which workload: pure, from what the identity source declares and what cgroups there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{NodeModes, Placed};
use crate::identity::WorkloadRecord;

/// The declared workloads and where each runs. Where one workload's cgroup lies below another's, the deeper one has
/// what is below it.
#[derive(Clone, Debug, Default)]
pub struct Places {
    placed: Arc<Vec<Placed>>,
    /// Indices of `placed`, sorted by the cgroup that is declared.
    by_cgroup: Vec<u32>,
    /// Indices of those that the stage of a rollout that was reached last newly enforced.
    newly_enforced: Vec<u32>,
}

impl Places {
    /// Places each declared workload on its cgroup and on those nested in it.
    ///
    /// `cgroups` are those present, by path below the cgroup2 mount.
    pub fn new(
        records: Vec<Arc<WorkloadRecord>>,
        cgroups: &BTreeMap<PathBuf, u64>,
        modes: &NodeModes,
    ) -> Self {
        let placed: Vec<Placed> = records
            .into_iter()
            .map(|record| Placed {
                mode: modes.default_mode(),
                record,
                cgroup_ids: Vec::new(),
            })
            .collect();
        let mut by_cgroup: Vec<u32> = (0..placed.len() as u32).collect();
        by_cgroup.sort_unstable_by(|a, b| {
            let cgroup = |index: &u32| placed.get(*index as usize).map(|placed| &placed.record.cgroup);
            cgroup(a).cmp(&cgroup(b))
        });
        let mut places = Self {
            placed: Arc::new(placed),
            by_cgroup,
            newly_enforced: Vec::new(),
        };
        places.set_modes(modes);
        for (path, id) in cgroups {
            places.created(path, *id);
        }
        places
    }

    /// Every declared workload, in the order of declaration.
    pub fn placed(&self) -> &Arc<Vec<Placed>> {
        &self.placed
    }

    /// Every workload is in the mode that it has by these.
    pub fn set_modes(&mut self, modes: &NodeModes) {
        let mode_of = |placed: &Placed| modes.of_workload(&placed.record);
        if self.placed.iter().any(|placed| placed.mode != mode_of(placed)) {
            for placed in Arc::make_mut(&mut self.placed) {
                placed.mode = mode_of(placed);
            }
        }
        self.newly_enforced = (0..)
            .zip(self.placed.iter())
            .filter(|(_, placed)| modes.is_newly_enforced(&placed.record))
            .map(|(index, _)| index)
            .collect();
    }

    /// Those that the stage of a rollout that was reached last newly enforced.
    pub fn newly_enforced(&self) -> impl Iterator<Item = &Placed> {
        self.newly_enforced
            .iter()
            .filter_map(|index| self.placed.get(*index as usize))
    }

    /// A cgroup has come. The workload that is declared for this very cgroup, if there is one: what is nested in a
    /// workload's cgroup is noted as its, and is known to the kernel by its ancestor.
    pub fn created(&mut self, path: &Path, id: u64) -> Option<&Placed> {
        let (index, own) = self.owner_of(path, id)?;
        let placed = Arc::make_mut(&mut self.placed).get_mut(index)?;
        if !placed.cgroup_ids.contains(&id) {
            placed.cgroup_ids.push(id);
        }
        own.then_some(placed)
    }

    /// A cgroup has gone.
    pub fn removed(&mut self, path: &Path, id: u64) {
        if let Some((index, _)) = self.owner_of(path, id)
            && let Some(placed) = Arc::make_mut(&mut self.placed).get_mut(index)
        {
            placed.cgroup_ids.retain(|present| *present != id);
        }
    }

    /// The workload that is declared for a cgroup.
    pub fn declared(&self, path: &Path) -> Option<&Placed> {
        self.placed.get(self.index_of(path)?)
    }

    /// The workload that a cgroup belongs to, its own or that of the nearest ancestor which has one, and whether it is
    /// its own. A workload that is known of another cgroup at the same path is passed over.
    fn owner_of(&self, path: &Path, id: u64) -> Option<(usize, bool)> {
        let mut own = true;
        for ancestor in path.ancestors() {
            if let Some(index) = self.index_of(ancestor) {
                let placed = self.placed.get(index)?;
                let here = |meant: u64| {
                    if own {
                        meant == id
                    } else {
                        placed.cgroup_ids.contains(&meant)
                    }
                };
                if placed.record.cgroup_id.is_none_or(here) {
                    return Some((index, own));
                }
            }
            own = false;
        }
        None
    }

    fn index_of(&self, path: &Path) -> Option<usize> {
        let cgroup = |index: &u32| {
            self.placed
                .get(*index as usize)
                .map_or(Path::new(""), |placed| placed.record.cgroup.as_path())
        };
        let place = self
            .by_cgroup
            .binary_search_by(|index| cgroup(index).cmp(path))
            .ok()?;
        self.by_cgroup.get(place).map(|index| *index as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Mode;
    use crate::spiffe_id::SpiffeId;

    fn record(cgroup: &str) -> WorkloadRecord {
        let spiffe = SpiffeId::parse("spiffe://hanzo.ai/c/n/w").expect("literal");
        WorkloadRecord {
            spiffe,
            cgroup: cgroup.into(),
            cgroup_id: None,
            addresses: Vec::new(),
            mode: None,
            pod: None,
        }
    }

    fn shared(records: Vec<WorkloadRecord>) -> Vec<Arc<WorkloadRecord>> {
        records.into_iter().map(Arc::new).collect()
    }

    fn ids(places: &Places) -> Vec<Vec<u64>> {
        places
            .placed()
            .iter()
            .map(|placed| placed.cgroup_ids.clone())
            .collect()
    }

    #[test]
    fn nested_cgroups_belong_to_the_nearest_workload_above_them() {
        let records = vec![record("root/a"), record("root/absent"), record("root/a/b")];
        let cgroups = [
            ("root", 1),
            ("root/a", 2),
            ("root/a/b", 3),
            ("root/a/b/c", 4),
            ("root/a/d", 5),
            ("root/ab", 6),
        ]
        .map(|(path, id)| (PathBuf::from(path), id));
        let places = Places::new(shared(records), &BTreeMap::from(cgroups), &Mode::Enforce.into());
        assert_eq!(ids(&places), [vec![2, 5], vec![], vec![3, 4]]);
        assert!(places.placed().iter().all(|placed| placed.mode == Mode::Enforce));
    }

    #[test]
    fn only_the_declared_cgroup_itself_is_for_the_kernel_to_know() {
        let records = vec![record("root/a"), record("root/a/b")];
        let mut places = Places::new(shared(records), &BTreeMap::new(), &Mode::Observe.into());
        assert!(places.created(Path::new("root"), 1).is_none());
        assert!(places.created(Path::new("root/a"), 2).is_some());
        assert!(places.created(Path::new("root/a/x"), 3).is_none());
        assert!(places.created(Path::new("root/a/b"), 4).is_some());
        // Told twice, as after a queue that overflowed.
        assert!(places.created(Path::new("root/a"), 2).is_some());
        assert_eq!(ids(&places), [vec![2, 3], vec![4]]);
        places.removed(Path::new("root/a"), 2);
        places.removed(Path::new("root/elsewhere"), 9);
        assert_eq!(ids(&places), [vec![3], vec![4]]);
        assert!(places.declared(Path::new("root/a/b")).is_some());
        assert!(places.declared(Path::new("root/a/x")).is_none());
    }

    #[test]
    fn what_is_known_of_one_cgroup_is_not_true_of_the_next_at_its_path() {
        let attested = WorkloadRecord {
            cgroup_id: Some(2),
            ..record("root/a")
        };
        let cgroups = [("root/a", 2), ("root/a/b", 3)].map(|(path, id)| (PathBuf::from(path), id));
        let mut places = Places::new(
            shared(vec![attested]),
            &BTreeMap::from(cgroups),
            &Mode::Observe.into(),
        );
        assert_eq!(ids(&places), [vec![2, 3]]);
        places.removed(Path::new("root/a/b"), 3);
        places.removed(Path::new("root/a"), 2);
        assert!(places.created(Path::new("root/a"), 9).is_none(), "another cgroup");
        assert!(places.created(Path::new("root/a/b"), 10).is_none());
        assert_eq!(ids(&places), [Vec::<u64>::new()]);
    }
}
