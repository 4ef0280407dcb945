// SPDX-License-Identifier: Apache-2.0
//! Which start is held, until when, and for how long at the most.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::messages::{Container, PodSandbox};
use crate::identity::kubernetes::{Qos, is_uid, predicted};
use crate::state::Snapshot;

/// What a start waits at least, as long as there is time to waste.
const LEAST: Duration = Duration::from_millis(50);
/// After how many waits in vain the next one is not shorter any more.
const MOST_HALVINGS: u32 = 5;
/// Pods that are remembered as waited for in vain.
const MOST_VAIN: usize = 1024;
/// How much time a node may waste on waits in vain, all together; it gets back one part of so many of the time that passes.
const MOST_WASTED: Duration = Duration::from_secs(5);
const REGAINED: u32 = 10;
/// Fewest bytes of a container's id that is looked for in the name of a cgroup.
const MIN_ID: usize = 12;
const SLICE: &str = ".slice";
const SCOPE: &str = ".scope";
const CRIO_MONITOR: &str = "crio-conmon";
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

/// How the kernel takes a container that starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// By its name.
    Named,
    /// It has none, and is refused nothing: a name is nothing to wait for.
    LeftAlone,
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

    /// How the kernel takes it; `None`: as anybody without a name.
    pub(super) fn is_taken(&self, snapshot: &Snapshot) -> Option<Taken> {
        if self.is_named(snapshot) {
            return Some(Taken::Named);
        }
        let left_alone = &snapshot.left_alone;
        let is_there = |path: &PathBuf| left_alone.binary_search(path).is_ok();
        self.places.iter().any(is_there).then_some(Taken::LeftAlone)
    }

    /// Whether the kernel knows who it is: the cgroup of its pod, or its own, is there and has an identity.
    fn is_named(&self, snapshot: &Snapshot) -> bool {
        let mut workloads = snapshot.workloads.iter();
        !snapshot.behind
            && workloads.any(|placed| !placed.cgroup_ids.is_empty() && self.is_in(&placed.record.cgroup))
    }

    fn is_in(&self, cgroup: &Path) -> bool {
        self.places.iter().any(|place| {
            let Ok(below) = cgroup.strip_prefix(place) else {
                return false;
            };
            // Another container of the pod says nothing of this one.
            let Some(own) = below.components().next() else {
                return true;
            };
            self.id.len() >= MIN_ID && container_of(&own.as_os_str().to_string_lossy()) == Some(&*self.id)
        })
    }
}

/// The id of the container that a cgroup is, by its name in the pod's: runtimes put their own before it, and `.scope` behind it
/// with the `systemd` driver. That of CRI-O's monitor of a container is not the container's.
fn container_of(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(SCOPE).unwrap_or(name);
    match stem.rsplit_once(['-', ':']) {
        Some((CRIO_MONITOR, _)) => None,
        Some((_, id)) => Some(id),
        None => Some(stem),
    }
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
    /// How much time was wasted, as of then.
    wasted: (Duration, Instant),
}

impl Patience {
    pub(super) fn new(wait: Duration) -> Self {
        Self {
            wait,
            in_vain: 0,
            vain: HashSet::new(),
            vain_order: VecDeque::new(),
            wasted: (Duration::ZERO, Instant::now()),
        }
    }

    /// How long a container of this pod may wait: less after each wait in a row that was in vain, least where it was for
    /// this very pod, and not at all where too much time was wasted of late. `limit` is how long the runtime waits for the
    /// answer.
    pub(super) fn for_pod(&self, uid: &str, limit: Option<Duration>, now: Instant) -> Duration {
        let halved = self.wait / (1 << self.in_vain.min(MOST_HALVINGS));
        let wait = if self.vain.contains(uid) {
            LEAST
        } else {
            halved.max(LEAST)
        };
        let wait = wait
            .min(self.wait)
            .min(MOST_WASTED.saturating_sub(self.wasted_by(now)));
        // A runtime that waits in vain itself throws the plugin out.
        limit.map_or(wait, |limit| wait.min(limit * 3 / 4))
    }

    /// A container started as somebody, or as one of whom nothing is refused, whether that took a wait or not.
    pub(super) fn taken(&mut self) {
        self.in_vain = 0;
    }

    /// A pod was waited for so long, and has no name.
    pub(super) fn in_vain(&mut self, uid: &str, waited: Duration, now: Instant) {
        self.in_vain = self.in_vain.saturating_add(1);
        self.wasted = (self.wasted_by(now) + waited, now);
        if self.vain.insert(uid.to_owned()) {
            self.vain_order.push_back(uid.to_owned());
            if self.vain_order.len() > MOST_VAIN
                && let Some(oldest) = self.vain_order.pop_front()
            {
                self.vain.remove(&oldest);
            }
        }
    }

    fn wasted_by(&self, now: Instant) -> Duration {
        let (wasted, then) = self.wasted;
        wasted.saturating_sub(now.saturating_duration_since(then) / REGAINED)
    }
}
