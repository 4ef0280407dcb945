// SPDX-License-Identifier: Apache-2.0
//! Who has no name, and is left alone all the same. `unknownWorkload: deny` is for processes of which nothing is known. It must
//! not reach those that the cluster lives by and that `modes` would have observed: without them there would be nobody who could
//! give names, and this agent could not ask.

mod own;

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zt_common::abi::{MODE_OBSERVE, Workload};
use zt_common::identity;

use super::cgroups::Cgroups;
use crate::config::{Config, IdentitySource, UnknownWorkload};
use crate::identity::kubernetes::{is_static, pod_of};
use crate::identity::{Mode, WorkloadRecord};
use crate::state::NodeModes;

/// Nobody, and refused nothing.
pub(super) const LEFT_ALONE: Workload = Workload {
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
    /// The managed roots, until Kubernetes has told of the pods of this node for the first time.
    untold: Vec<PathBuf>,
    /// Pods on the host's network that are left alone until then. Whoever makes the addresses of Services work is among them:
    /// without it the API may not be reached, and nobody would ever be told of.
    on_host: HashSet<PathBuf>,
    /// Those that were left alone until then.
    let_go: HashSet<PathBuf>,
    /// The cgroup that this process is in, if it is a managed one. Found where it is needed.
    own: OnceCell<Option<u64>>,
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
        let only_if = |holds: bool| if holds { roots.to_vec() } else { Vec::new() };
        let told = config.identity.has(IdentitySource::Kubernetes);
        let unnamed = Self {
            denies,
            static_pods: only_if(observed && told),
            untold: only_if(denies && told),
            ..Self::default()
        };
        if denies {
            unnamed.find_itself(mount, cgroups);
        }
        unnamed
    }

    /// These are the pods that SPIRE has not named.
    pub(super) fn set(&mut self, pods: &[Arc<WorkloadRecord>], modes: &NodeModes) {
        let path = |pod: &&Arc<WorkloadRecord>| pod.cgroup.clone();
        let (observed, strict): (Vec<_>, Vec<_>) = pods
            .iter()
            .partition(|pod| modes.of_workload(pod) == Mode::Observe);
        self.observed = observed.iter().map(path).collect();
        self.strict = strict.iter().map(path).collect();
    }

    /// Kubernetes has told of the pods of this node: who is on the host's network is no reason any more.
    pub(super) fn told(&mut self) {
        self.untold = Vec::new();
        self.let_go = std::mem::take(&mut self.on_host);
    }

    /// The pods that are left alone if they are on the host's network.
    pub(super) fn candidates<'c>(
        &self,
        cgroups: &'c Cgroups,
        known: &HashMap<u64, Workload>,
    ) -> Vec<(&'c Path, u64)> {
        if self.untold.is_empty() {
            return Vec::new();
        }
        let pods = cgroups.by_path().iter().filter(|(path, id)| {
            pod_of(path, &self.untold).is_some() && cgroups.nearest(**id, known).is_none()
        });
        pods.map(|(path, id)| (path.as_path(), *id)).collect()
    }

    /// This pod is on the host's network. What the kernel is told of it.
    pub(super) fn is_on_host(&mut self, path: &Path) -> Workload {
        self.on_host.insert(path.to_path_buf());
        LEFT_ALONE
    }

    /// A cgroup has gone.
    pub(super) fn removed(&mut self, path: &Path) {
        self.on_host.remove(path);
        self.let_go.remove(path);
    }

    /// Whether a cgroup is not to be kept as free as it was when its name is lost: it is that of a pod that would be enforced
    /// upon, or lies in one, or was left alone for a reason that holds no more.
    pub(super) fn is_strict(&self, path: &Path) -> bool {
        let any = !self.strict.is_empty() || !self.let_go.is_empty();
        let is_one = |above: &Path| self.strict.contains(above) || self.let_go.contains(above);
        any && path.ancestors().any(is_one)
    }

    /// What the kernel is told of a cgroup that has no name and is in nobody's; `None`: what holds of everybody like that.
    pub(super) fn entry(&self, path: &Path) -> Option<Workload> {
        (self.denies && self.reason(path).is_some()).then_some(LEFT_ALONE)
    }

    /// Why a pod that has no name would be left alone.
    pub(super) fn reason(&self, path: &Path) -> Option<&'static str> {
        if self.observed.contains(path) {
            Some("observed")
        } else if self.is_untold_of(path) {
            Some("static")
        } else {
            self.on_host.contains(path).then_some("host_network")
        }
    }

    /// What the kernel is told of all of them. Who is in the cgroup of somebody is that one.
    pub(super) fn leave_alone(&self, cgroups: &Cgroups, wanted: &mut HashMap<u64, Workload>) {
        if !self.denies {
            return;
        }
        let mut left_alone: Vec<u64> = self
            .observed
            .iter()
            .chain(&self.on_host)
            .filter_map(|path| cgroups.id(path))
            .collect();
        if !self.static_pods.is_empty() {
            let all = cgroups.by_path().iter();
            left_alone.extend(all.filter(|(path, _)| self.is_untold_of(path)).map(|(_, id)| *id));
        }
        for id in left_alone {
            if cgroups.nearest(id, wanted).is_none() {
                wanted.insert(id, LEFT_ALONE);
            }
        }
    }

    /// One in which these pods are, which would be observed.
    #[cfg(test)]
    pub(super) fn observed_in(paths: &[&str]) -> Self {
        Self {
            denies: true,
            observed: paths.iter().map(PathBuf::from).collect(),
            ..Self::default()
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

#[cfg(test)]
mod tests {
    use zt_common::abi::MODE_ENFORCE;

    use super::*;
    use crate::identity::ModeRule;
    use crate::spiffe_id::{Pattern, SpiffeId};

    /// One that denies, enforces, and leaves `kube-system` alone.
    pub(super) fn config() -> Config {
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
        unnamed.set(&pods, &config.modes().into());
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
        unnamed.set(&pods, &config.modes().into());
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
        unnamed.set(&[pod("shop", &path)], &config.modes().into());
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
    fn pods_on_the_hosts_network_are_left_alone_until_kubernetes_has_told_of_this_nodes_pods() {
        let (proxy, shop) = ("kubepods/burstable/poda", "kubepods/podb");
        let cgroups = cgroups(&[
            ("kubepods", 9),
            (proxy, 1),
            (&format!("{proxy}/app"), 2),
            (shop, 3),
        ]);
        let mut config = config();
        let roots = ["kubepods".into()];
        let mut unnamed = Unnamed::new(&config, Path::new("/nonexistent"), &roots, &cgroups);
        let known = HashMap::new();
        let expected = vec![(Path::new(proxy), 1), (Path::new(shop), 3)];
        assert_eq!(unnamed.candidates(&cgroups, &known), expected);
        assert_eq!(unnamed.is_on_host(Path::new(proxy)), LEFT_ALONE);
        let mut wanted = HashMap::new();
        unnamed.leave_alone(&cgroups, &mut wanted);
        assert_eq!(wanted, HashMap::from([(1, LEFT_ALONE)]));
        assert!(!unnamed.is_strict(Path::new(proxy)));
        // Then they are what they are called, and nobody if they have no name.
        unnamed.told();
        let mut wanted = HashMap::new();
        unnamed.leave_alone(&cgroups, &mut wanted);
        assert!(wanted.is_empty() && unnamed.candidates(&cgroups, &known).is_empty());
        assert!(unnamed.is_strict(Path::new(proxy)), "it is not kept as it was");
        // Whom nobody denies needs no help.
        config.unknown_workload = UnknownWorkload::Observe;
        let unnamed = Unnamed::new(&config, Path::new("/nonexistent"), &roots, &cgroups);
        assert!(unnamed.candidates(&cgroups, &known).is_empty());
    }
}
