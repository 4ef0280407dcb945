// SPDX-License-Identifier: Apache-2.0
//! The pods' cgroups that there are, and where those will be that there are not yet.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::{Qos, pod_of, predicted};

/// What is known of the pods' cgroups.
#[derive(Debug)]
pub(super) struct PodCgroups {
    roots: Vec<PathBuf>,
    present: BTreeSet<PathBuf>,
    by_uid: HashMap<String, BTreeSet<PathBuf>>,
    /// Of pods whose cgroup was there and is not any more: the kubelet is done with them.
    gone: HashSet<String>,
}

impl PodCgroups {
    pub(super) fn new(roots: Vec<PathBuf>) -> Self {
        Self {
            roots,
            present: BTreeSet::new(),
            by_uid: HashMap::new(),
            gone: HashSet::new(),
        }
    }

    /// A cgroup is there. The uid of the pod that it is, if it is one's.
    pub(super) fn created(&mut self, path: &Path) -> Option<String> {
        if self.roots.iter().any(|root| root == path) {
            self.present.insert(path.to_path_buf());
            return None;
        }
        let uid = pod_of(path, &self.roots)?;
        self.gone.remove(&uid);
        self.by_uid
            .entry(uid.clone())
            .or_default()
            .insert(path.to_path_buf());
        Some(uid)
    }

    /// A cgroup is gone. The uid of the pod that it was, if it was one's.
    pub(super) fn removed(&mut self, path: &Path) -> Option<String> {
        self.present.remove(path);
        let uid = pod_of(path, &self.roots)?;
        let paths = self.by_uid.get_mut(&uid)?;
        paths.remove(path);
        if paths.is_empty() {
            self.by_uid.remove(&uid);
            self.gone.insert(uid.clone());
        }
        Some(uid)
    }

    /// Whether the pod with this uid has a cgroup.
    pub(super) fn is_there(&self, uid: &str) -> bool {
        self.by_uid.contains_key(uid)
    }

    /// Whether the pod with this uid had a cgroup and has none any more. Its address may be another pod's by now: the kubelet
    /// gives it back before it tells the API that the pod is gone.
    pub(super) fn has_gone(&self, uid: &str) -> bool {
        self.gone.contains(uid)
    }

    /// How many are remembered as gone.
    pub(super) fn gone(&self) -> usize {
        self.gone.len()
    }

    /// Forgets of those that are gone whom `known` does not hold of.
    pub(super) fn forget_gone(&mut self, known: impl Fn(&str) -> bool) {
        self.gone.retain(|uid| known(uid));
    }

    /// Where the pod with this uid is, or else will be.
    pub(super) fn of(&self, uid: &str, class: Qos) -> Vec<PathBuf> {
        if let Some(paths) = self.by_uid.get(uid) {
            return paths.iter().cloned().collect();
        }
        let root = self.roots.iter().find(|root| self.present.contains(*root));
        let root = root.or_else(|| self.roots.first());
        root.map(|root| predicted(root, uid, class)).into_iter().collect()
    }
}
