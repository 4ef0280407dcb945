// SPDX-License-Identifier: Apache-2.0
//! Who has no name, and is left alone all the same. `unknownWorkload: deny` is for processes of which nothing is known. It must
//! not reach those that the cluster lives by and that `modes` would have observed: without them there would be nobody who could
//! give names, and this agent could not ask.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zt_common::abi::{MODE_OBSERVE, Workload};
use zt_common::identity;

use super::cgroups::Cgroups;
use crate::config::{Config, IdentitySource, UnknownWorkload};
use crate::identity::kubernetes::{is_static, pod_of};
use crate::identity::{Mode, WorkloadRecord};
use crate::kernel::netns;

/// Nobody, and refused nothing.
const LEFT_ALONE: Workload = Workload {
    identity: identity::UNKNOWN,
    mode: MODE_OBSERVE,
    reserved: [0; 7],
};

/// What holds of cgroups that have no name.
#[derive(Debug, Default)]
pub(super) struct Unnamed {
    /// `unknownWorkload` denies.
    denies: bool,
    /// Cgroups of pods that SPIRE has not named, and that would be observed by the name that Kubernetes has for them.
    observed: HashSet<PathBuf>,
    /// The same, and they would be enforced upon.
    strict: HashSet<PathBuf>,
    /// The managed roots, where static pods are left alone that Kubernetes has not told of. The API server may be one of them:
    /// there is nobody to tell of it until it runs.
    static_pods: Vec<PathBuf>,
    /// The cgroup that this process is in, if it is a managed one.
    own: Option<u64>,
}

impl Unnamed {
    /// Nobody yet. `roots` are below `mount`.
    pub(super) fn new(config: &Config, mount: &Path, roots: &[PathBuf], cgroups: &Cgroups) -> Self {
        let denies = config.unknown_workload == UnknownWorkload::Deny;
        let naming = config
            .identity
            .template
            .fixed(&config.trust_domain, &config.cluster);
        let name = naming.ok().and_then(|mut naming| naming.some_static_pod());
        let observed = name.is_some_and(|name| config.modes().of(&name) == Mode::Observe);
        let static_pods = if observed && config.identity.has(IdentitySource::Kubernetes) {
            roots.to_vec()
        } else {
            Vec::new()
        };
        Self {
            denies,
            static_pods,
            own: if denies {
                cgroup_of(std::process::id(), mount, cgroups)
            } else {
                None
            },
            ..Self::default()
        }
    }

    /// These are the pods that SPIRE has not named.
    pub(super) fn set(&mut self, pods: &[Arc<WorkloadRecord>], config: &Config) {
        let modes = config.modes();
        let path = |pod: &&Arc<WorkloadRecord>| pod.cgroup.clone();
        let (observed, strict): (Vec<_>, Vec<_>) = pods
            .iter()
            .partition(|pod| pod.mode.unwrap_or_else(|| modes.of(&pod.spiffe)) == Mode::Observe);
        self.observed = observed.iter().map(path).collect();
        self.strict = strict.iter().map(path).collect();
    }

    /// Whether a cgroup is that of a pod that would be enforced upon, or lies in one.
    pub(super) fn is_strict(&self, path: &Path) -> bool {
        !self.strict.is_empty() && path.ancestors().any(|above| self.strict.contains(above))
    }

    /// What the kernel is told of a cgroup that has no name; `None`: what holds of everybody like that.
    pub(super) fn entry(&self, path: &Path) -> Option<Workload> {
        let is_left_alone = || self.observed.contains(path) || self.is_untold_of(path);
        (self.denies && is_left_alone()).then_some(LEFT_ALONE)
    }

    /// What the kernel is told of all of them.
    pub(super) fn leave_alone(&self, cgroups: &Cgroups, wanted: &mut HashMap<u64, Workload>) {
        if !self.denies {
            return;
        }
        for path in &self.observed {
            if let Some(id) = cgroups.id(path) {
                wanted.entry(id).or_insert(LEFT_ALONE);
            }
        }
        if !self.static_pods.is_empty() {
            for (path, id) in cgroups.by_path() {
                if self.is_untold_of(path) {
                    wanted.entry(*id).or_insert(LEFT_ALONE);
                }
            }
        }
        if let Some(own) = self.own
            && cgroups.path(own).is_some()
            && cgroups.nearest(own, wanted).is_none()
        {
            wanted.insert(own, LEFT_ALONE);
        }
    }

    /// One in which a single pod is, which would be enforced upon.
    #[cfg(test)]
    pub(super) fn strict_in(path: &str) -> Self {
        Self {
            strict: HashSet::from([path.into()]),
            ..Self::default()
        }
    }

    fn is_untold_of(&self, path: &Path) -> bool {
        pod_of(path, &self.static_pods).is_some_and(|uid| is_static(&uid)) && !self.is_strict(path)
    }
}

/// The managed cgroup that a process is in. Its own file would show another path to an agent in a cgroup namespace.
fn cgroup_of(pid: u32, mount: &Path, cgroups: &Cgroups) -> Option<u64> {
    let mut all = cgroups.by_path().iter();
    let found = all.find(|(path, _)| netns::members(&mount.join(path)).contains(&pid));
    found.map(|(_, id)| *id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use zt_common::abi::MODE_ENFORCE;

    use super::*;
    use crate::identity::ModeRule;
    use crate::spiffe_id::{Pattern, SpiffeId};

    /// One that denies, enforces, and leaves `kube-system` alone.
    fn config() -> Config {
        let mut config = Config {
            mode: Mode::Enforce,
            modes: vec![ModeRule {
                spiffe: Pattern::parse("spiffe://hanzo.ai/hanzo-k8s/kube-system/*").expect("literal"),
                mode: Mode::Observe,
            }],
            unknown_workload: UnknownWorkload::Deny,
            ..Config::default()
        };
        config.identity.sources = vec![IdentitySource::Spire, IdentitySource::Kubernetes];
        config
    }

    fn pod(namespace: &str, cgroup: &str) -> Arc<WorkloadRecord> {
        Arc::new(WorkloadRecord {
            spiffe: SpiffeId::parse(&format!("spiffe://hanzo.ai/hanzo-k8s/{namespace}/a")).expect("literal"),
            cgroup: cgroup.into(),
            cgroup_id: None,
            addresses: Vec::new(),
            mode: None,
            pod: Some(format!("{namespace}/a")),
        })
    }

    fn cgroups(paths: &[(&str, u64)]) -> Cgroups {
        Cgroups::new(paths.iter().map(|(path, id)| ((*path).into(), *id)).collect())
    }

    #[test]
    fn pods_that_would_be_observed_are_left_alone_until_they_have_a_name() {
        let cgroups = cgroups(&[("kubepods/poda", 1), ("kubepods/podb", 2), ("kubepods/podc", 3)]);
        let mut config = config();
        let pods = [pod("kube-system", "kubepods/poda"), pod("shop", "kubepods/podb")];
        let roots = ["kubepods".into()];
        let mut unnamed = Unnamed::new(&config, Path::new("/nonexistent"), &roots, &cgroups);
        unnamed.set(&pods, &config);
        let mut wanted = HashMap::new();
        unnamed.leave_alone(&cgroups, &mut wanted);
        assert_eq!(wanted, HashMap::from([(1, LEFT_ALONE)]));
        // Also where its cgroup comes later.
        assert_eq!(unnamed.entry(Path::new("kubepods/poda")), Some(LEFT_ALONE));
        assert_eq!(unnamed.entry(Path::new("kubepods/podb")), None);
        assert!(unnamed.is_strict(Path::new("kubepods/podb/app")));
        assert!(!unnamed.is_strict(Path::new("kubepods/podc")));
        // What is known of a cgroup is what counts.
        let named = Workload {
            mode: MODE_ENFORCE,
            ..LEFT_ALONE
        };
        let mut wanted = HashMap::from([(1, named)]);
        unnamed.leave_alone(&cgroups, &mut wanted);
        assert_eq!(wanted, HashMap::from([(1, named)]));
        // Where nobody is denied, nobody needs it.
        config.unknown_workload = UnknownWorkload::Observe;
        let mut unnamed = Unnamed::new(&config, Path::new("/nonexistent"), &roots, &cgroups);
        unnamed.set(&pods, &config);
        let mut wanted = HashMap::new();
        unnamed.leave_alone(&cgroups, &mut wanted);
        assert!(wanted.is_empty() && unnamed.entry(Path::new("kubepods/poda")).is_none());
    }

    #[test]
    fn a_static_pod_needs_nobody_to_tell_of_it() {
        let hash = "d1f2a3b4c5d6e7f80910111213141516";
        let (path, other) = (
            format!("kubepods/burstable/pod{hash}"),
            "kubepods/burstable/podabc",
        );
        let cgroups = cgroups(&[(&path, 1), (&format!("{path}/app"), 2), (other, 3)]);
        let roots = ["kubepods".into()];
        let mut config = config();
        let mut unnamed = Unnamed::new(&config, Path::new("/nonexistent"), &roots, &cgroups);
        let mut wanted = HashMap::new();
        unnamed.leave_alone(&cgroups, &mut wanted);
        assert_eq!(wanted, HashMap::from([(1, LEFT_ALONE)]));
        assert_eq!(unnamed.entry(Path::new(&path)), Some(LEFT_ALONE));
        assert_eq!(unnamed.entry(Path::new(other)), None);
        // Once it is known to be one that is enforced upon, it is no more.
        unnamed.set(&[pod("shop", &path)], &config);
        assert_eq!(unnamed.entry(Path::new(&path)), None);
        config.modes.clear();
        let unnamed = Unnamed::new(&config, Path::new("/nonexistent"), &roots, &cgroups);
        assert_eq!(
            unnamed.entry(Path::new(&path)),
            None,
            "they are not observed here"
        );
    }

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
            Unnamed::new(&config(), mount.path(), &[], &Cgroups::new(present.clone())).own
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
        unnamed.leave_alone(&cgroups, &mut wanted);
        assert_eq!(wanted, HashMap::from([(3, LEFT_ALONE)]));
        let enforced = Workload {
            mode: MODE_ENFORCE,
            ..LEFT_ALONE
        };
        let mut wanted = HashMap::from([(1, enforced)]);
        unnamed.leave_alone(&cgroups, &mut wanted);
        assert_eq!(wanted.len(), 1, "what is said of it holds");
    }
}
