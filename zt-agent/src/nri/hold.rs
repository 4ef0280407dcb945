// SPDX-License-Identifier: Apache-2.0
//! Which start is held, until when, and for how long at the most.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::messages::{Container, PodSandbox};
use crate::identity::kubernetes::{Qos, predicted};
use crate::state::Snapshot;

/// What a start waits at least, whatever was in vain before.
const LEAST: Duration = Duration::from_millis(50);
/// After how many waits in vain the next one is not shorter any more.
const MOST_HALVINGS: u32 = 5;
/// Pods that are remembered as waited for in vain.
const MOST_VAIN: usize = 1024;
/// Most bytes of the uid of a pod.
const MAX_UID: usize = 64;
/// Fewest bytes of a container's id that is looked for in the name of a cgroup.
const MIN_ID: usize = 12;
const SLICE: &str = ".slice";
const CLASSES: [Qos; 3] = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];

/// A container that is about to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Starting {
    /// Its pod, for people: `namespace/name`.
    pub(super) pod: String,
    /// Its name, for people.
    pub(super) container: String,
    /// Its pod, for good.
    pub(super) uid: String,
    id: String,
    /// Where the kubelet makes the cgroup of that pod.
    places: Vec<PathBuf>,
}

impl Starting {
    /// The one that the runtime speaks of; `None` if it will not have an identity whatever is waited for: it is of no pod, or
    /// not below any of the managed `roots`.
    pub(super) fn new(
        pod: Option<PodSandbox>,
        container: Option<Container>,
        roots: &[PathBuf],
    ) -> Option<Self> {
        let pod = pod?;
        let parent = pod.linux.map(|linux| linux.cgroup_parent).unwrap_or_default();
        let is_below = |path: &Path| roots.iter().any(|root| path.starts_with(root));
        if !is_uid(&pod.uid) || cgroup(&parent).is_some_and(|path| !is_below(&path)) {
            return None;
        }
        let container = container.unwrap_or_default();
        let places = roots
            .iter()
            .flat_map(|root| CLASSES.map(|class| predicted(root, &pod.uid, class)))
            .collect();
        Some(Self {
            pod: format!("{}/{}", pod.namespace, pod.name),
            container: container.name,
            uid: pod.uid,
            id: container.id,
            places,
        })
    }

    /// Whether the kernel knows who it is: the cgroup of its pod, or its own, is there and has an identity.
    pub(super) fn is_named(&self, snapshot: &Snapshot) -> bool {
        snapshot
            .workloads
            .iter()
            .any(|placed| !placed.cgroup_ids.is_empty() && self.is_in(&placed.record.cgroup))
    }

    fn is_in(&self, cgroup: &Path) -> bool {
        self.places.iter().any(|place| {
            let Ok(below) = cgroup.strip_prefix(place) else {
                return false;
            };
            // Another container of the pod says nothing of this one.
            below.as_os_str().is_empty()
                || (self.id.len() >= MIN_ID && below.to_string_lossy().contains(&self.id))
        })
    }
}

/// Whether this can be a pod's uid, and nothing that leads elsewhere.
fn is_uid(text: &str) -> bool {
    (1..=MAX_UID).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The path below the mount of what a runtime is told as a pod's cgroup; `None` where it was told nothing. With the `systemd`
/// driver it is the name of a slice, which says where it is: `a-b.slice` is in `a.slice`.
fn cgroup(parent: &str) -> Option<PathBuf> {
    let parent = parent.trim_matches('/');
    if parent.is_empty() {
        return None;
    }
    let Some(stem) = parent.strip_suffix(SLICE).filter(|stem| !stem.contains('/')) else {
        return Some(PathBuf::from(parent));
    };
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    Some(ends.map(|end| format!("{}{SLICE}", &stem[..end])).collect())
}

/// How long to wait. The runtime starts containers one after the other while a plugin thinks: a node whose source of identities
/// is away must not start them at this pace.
#[derive(Debug)]
pub(super) struct Patience {
    wait: Duration,
    /// How many waits in a row were in vain.
    in_vain: u32,
    vain: HashSet<String>,
    vain_order: VecDeque<String>,
}

impl Patience {
    pub(super) fn new(wait: Duration) -> Self {
        Self {
            wait,
            in_vain: 0,
            vain: HashSet::new(),
            vain_order: VecDeque::new(),
        }
    }

    /// How long a container of this pod may wait: less after each wait in a row that was in vain, and least where it was for
    /// this very pod. `limit` is how long the runtime waits for the answer.
    pub(super) fn for_pod(&self, uid: &str, limit: Option<Duration>) -> Duration {
        let halved = self.wait / (1 << self.in_vain.min(MOST_HALVINGS));
        let wait = if self.vain.contains(uid) {
            LEAST
        } else {
            halved.max(LEAST)
        };
        let wait = wait.min(self.wait);
        // A runtime that waits in vain itself throws the plugin out.
        limit.map_or(wait, |limit| wait.min(limit * 3 / 4))
    }

    /// A pod had a name when its container started, whether that took a wait or not.
    pub(super) fn named(&mut self) {
        self.in_vain = 0;
    }

    /// A pod had none.
    pub(super) fn in_vain(&mut self, uid: &str) {
        self.in_vain = self.in_vain.saturating_add(1);
        if self.vain.insert(uid.to_owned()) {
            self.vain_order.push_back(uid.to_owned());
            if self.vain_order.len() > MOST_VAIN
                && let Some(oldest) = self.vain_order.pop_front()
            {
                self.vain.remove(&oldest);
            }
        }
    }
}
