// SPDX-License-Identifier: Apache-2.0
//! Which cgroup is which workload: pure, from what the identity source declares and what cgroups there are.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::Placed;
use crate::identity::{Mode, WorkloadRecord};

/// Places each declared workload on its cgroup and on those nested in it. Where one workload's cgroup lies below
/// another's, the deeper one has what is below it.
///
/// `cgroups` are those present, by path below the cgroup2 mount.
pub fn place(
    records: &[WorkloadRecord],
    cgroups: &BTreeMap<PathBuf, u64>,
    default_mode: Mode,
) -> Vec<Placed> {
    let mut placed: Vec<Placed> = records
        .iter()
        .map(|record| Placed {
            record: record.clone(),
            cgroup_ids: Vec::new(),
            mode: record.mode.unwrap_or(default_mode),
        })
        .collect();
    let owners = owners(records);
    for (path, id) in cgroups {
        if let Some(place) = owner_of(path, &owners).and_then(|index| placed.get_mut(index)) {
            place.cgroup_ids.push(*id);
        }
    }
    placed
}

/// Index of each record by its cgroup.
fn owners(records: &[WorkloadRecord]) -> HashMap<&Path, usize> {
    records
        .iter()
        .enumerate()
        .map(|(index, record)| (record.cgroup.as_path(), index))
        .collect()
}

/// The record that a cgroup belongs to: its own, or that of the nearest ancestor which has one.
fn owner_of(cgroup: &Path, owners: &HashMap<&Path, usize>) -> Option<usize> {
    cgroup
        .ancestors()
        .find_map(|ancestor| owners.get(ancestor).copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spiffe_id::SpiffeId;

    fn record(cgroup: &str) -> WorkloadRecord {
        let spiffe = SpiffeId::parse("spiffe://hanzo.ai/c/n/w").expect("literal");
        WorkloadRecord {
            spiffe,
            cgroup: cgroup.into(),
            addresses: Vec::new(),
            mode: None,
            pod: None,
        }
    }

    #[test]
    fn nested_cgroups_belong_to_the_nearest_workload_above_them() {
        let records = [record("root/a"), record("root/a/b"), record("root/absent")];
        let cgroups = [
            ("root", 1),
            ("root/a", 2),
            ("root/a/b", 3),
            ("root/a/b/c", 4),
            ("root/a/d", 5),
            ("root/ab", 6),
        ]
        .map(|(path, id)| (PathBuf::from(path), id));
        let placed = place(&records, &BTreeMap::from(cgroups), Mode::Enforce);
        let ids: Vec<_> = placed.iter().map(|placed| placed.cgroup_ids.clone()).collect();
        assert_eq!(ids, [vec![2, 5], vec![3, 4], vec![]]);
        assert!(placed.iter().all(|placed| placed.mode == Mode::Enforce));
    }
}
