// SPDX-License-Identifier: Apache-2.0
//! This process, which may be in a managed cgroup itself: it must be able to go on, and to hear of the way back.

use std::collections::HashMap;
use std::path::Path;

use zt_common::abi::{MODE_OBSERVE, Workload};

use super::{Cgroups, LEFT_ALONE, Unnamed};
use crate::kernel::netns;

impl Unnamed {
    /// This process must go on, whatever is lost: there is nobody else in its cgroup.
    pub(in crate::app::node) fn leave_itself_alone(
        &self,
        cgroups: &Cgroups,
        wanted: &mut HashMap<u64, Workload>,
    ) {
        if let Some(own) = self.own(cgroups)
            && self.denies
            && cgroups.nearest(own, wanted).is_none()
        {
            wanted.insert(own, LEFT_ALONE);
        }
    }

    /// Finds the cgroup of this process, before [`Self::spare_itself`].
    pub(in crate::app::node) fn find_itself(&self, mount: &Path, cgroups: &Cgroups) {
        self.own
            .get_or_init(|| cgroup_of(std::process::id(), mount, cgroups));
    }

    /// A rollout makes nobody of this process, and takes nothing from it: it is what the way back comes by. It is who it is called,
    /// and observes.
    pub(in crate::app::node) fn spare_itself(&self, cgroups: &Cgroups, wanted: &mut HashMap<u64, Workload>) {
        let Some(own) = self.own(cgroups) else { return };
        let around = cgroups.nearest(own, wanted).and_then(|id| wanted.get(&id));
        if let Some(around) = around.filter(|around| around.mode != MODE_OBSERVE) {
            let spared = Workload {
                mode: MODE_OBSERVE,
                ..*around
            };
            wanted.insert(own, spared);
        }
    }

    fn own(&self, cgroups: &Cgroups) -> Option<u64> {
        let own = self.own.get().copied().flatten();
        own.filter(|own| cgroups.path(*own).is_some())
    }
}

/// The managed cgroup that a process is in. Its own file would show another path to an agent in a cgroup namespace.
pub(super) fn cgroup_of(pid: u32, mount: &Path, cgroups: &Cgroups) -> Option<u64> {
    let mut all = cgroups.by_path().iter();
    let found = all.find(|(path, _)| netns::members(&mount.join(path)).contains(&pid));
    found.map(|(_, id)| *id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::PathBuf;

    use zt_common::abi::MODE_ENFORCE;

    use super::super::tests::config;
    use super::*;
    use crate::config::UnknownWorkload;

    #[test]
    fn this_agent_is_left_alone_wherever_it_is() {
        let mount = tempfile::tempdir().expect("a directory");
        let mut present = BTreeMap::new();
        for (path, id, pids) in [("kubepods", 1, ""), ("kubepods/other", 2, "1\n")] {
            fs::create_dir(mount.path().join(path)).expect("made");
            fs::write(mount.path().join(path).join("cgroup.procs"), pids).expect("written");
            present.insert(PathBuf::from(path), id);
        }
        let found = |present: &BTreeMap<PathBuf, u64>| {
            Unnamed::new(&config(), mount.path(), &[], &Cgroups::new(present.clone()))
                .own
                .get()
                .copied()
                .flatten()
        };
        assert_eq!(found(&present), None);
        fs::create_dir(mount.path().join("kubepods/zt")).expect("made");
        let pid = format!("{}\n", std::process::id());
        fs::write(mount.path().join("kubepods/zt/cgroup.procs"), pid).expect("written");
        present.insert("kubepods/zt".into(), 3);
        assert_eq!(found(&present), Some(3));

        let cgroups = Cgroups::new(present);
        let unnamed = Unnamed::new(&config(), mount.path(), &[], &cgroups);
        let mut wanted = HashMap::new();
        unnamed.leave_itself_alone(&cgroups, &mut wanted);
        assert_eq!(wanted, HashMap::from([(3, LEFT_ALONE)]));
        let enforced = Workload {
            mode: MODE_ENFORCE,
            ..LEFT_ALONE
        };
        let mut wanted = HashMap::from([(1, enforced)]);
        unnamed.leave_itself_alone(&cgroups, &mut wanted);
        assert_eq!(wanted.len(), 1, "what is said of it holds");
        // But not what a rollout says, by whatever name.
        unnamed.spare_itself(&cgroups, &mut wanted);
        assert_eq!(wanted, HashMap::from([(1, enforced), (3, LEFT_ALONE)]));
        let mut config = config();
        config.unknown_workload = UnknownWorkload::Observe;
        let unnamed = Unnamed::new(&config, mount.path(), &[], &cgroups);
        let named = Workload {
            identity: 1 << 40,
            ..enforced
        };
        let mut wanted = HashMap::from([(3, named)]);
        unnamed.find_itself(mount.path(), &cgroups);
        unnamed.spare_itself(&cgroups, &mut wanted);
        assert_eq!(wanted[&3].identity, named.identity, "it keeps its name");
        assert_eq!(wanted[&3].mode, MODE_OBSERVE);
        let mut nobody = HashMap::new();
        unnamed.leave_itself_alone(&cgroups, &mut nobody);
        unnamed.spare_itself(&cgroups, &mut nobody);
        assert!(nobody.is_empty(), "nobody is denied here");
    }
}
