// SPDX-License-Identifier: Apache-2.0
//! Room for followers, shared out: what one container makes below itself does not take the room of the others. Pure.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Workloads of one holder that may be asked for at the same time.
const ASKING_EACH: usize = 16;
/// Directories of the kubelet's cgroupfs driver that hold pods. Those of systemd end in [`SLICE`].
const POOLS: [&str; 2] = ["burstable", "besteffort"];
const SLICE: &str = ".slice";

/// How much room there is, and for whom.
#[derive(Debug)]
pub(super) struct Room {
    /// Cgroups that are followed at most, and as many may wait.
    most: usize,
    /// The same for one holder.
    most_each: usize,
    followed: usize,
    waiting: usize,
    holders: HashMap<PathBuf, Holder>,
}

/// A topmost cgroup that is no slice, with all that lies below it: a container, or a service.
#[derive(Debug)]
struct Holder {
    followed: usize,
    waiting: BTreeMap<u64, PathBuf>,
    asking: Arc<Semaphore>,
}

impl Room {
    pub(super) fn new(most: usize, most_each: usize) -> Self {
        Self {
            most,
            most_each,
            followed: 0,
            waiting: 0,
            holders: HashMap::new(),
        }
    }

    /// Takes room for a cgroup below `root`, with the permits of its holder. Where there is none it waits, and comes from
    /// [`Room::next`] later; more than may wait are forgotten.
    pub(super) fn take(&mut self, root: &Path, path: &Path, id: u64) -> Option<Arc<Semaphore>> {
        let holder = self
            .holders
            .entry(holder_of(root, path))
            .or_insert_with(|| Holder {
                followed: 0,
                waiting: BTreeMap::new(),
                asking: Arc::new(Semaphore::new(ASKING_EACH)),
            });
        if self.followed < self.most && holder.followed < self.most_each {
            self.followed += 1;
            holder.followed += 1;
            return Some(Arc::clone(&holder.asking));
        }
        if self.waiting < self.most
            && holder.waiting.len() < self.most_each
            && holder.waiting.insert(id, path.to_path_buf()).is_none()
        {
            self.waiting += 1;
        }
        None
    }

    /// Gives back the room of a cgroup that was `followed`, or its place among those that wait.
    pub(super) fn leave(&mut self, root: &Path, path: &Path, id: u64, followed: bool) {
        let key = holder_of(root, path);
        let Some(holder) = self.holders.get_mut(&key) else {
            return;
        };
        if followed {
            self.followed = self.followed.saturating_sub(1);
            holder.followed = holder.followed.saturating_sub(1);
        } else if holder.waiting.remove(&id).is_some() {
            self.waiting = self.waiting.saturating_sub(1);
        }
        if holder.followed == 0 && holder.waiting.is_empty() {
            self.holders.remove(&key);
        }
    }

    /// One that waits and that there is room for by now: of whoever has the least.
    pub(super) fn next(&mut self) -> Option<(PathBuf, u64)> {
        if self.waiting == 0 || self.followed >= self.most {
            return None;
        }
        let holder = self
            .holders
            .values_mut()
            .filter(|holder| !holder.waiting.is_empty() && holder.followed < self.most_each)
            .min_by_key(|holder| holder.followed)?;
        let (id, path) = holder.waiting.pop_first()?;
        self.waiting -= 1;
        Some((path, id))
    }
}

fn holder_of(root: &Path, path: &Path) -> PathBuf {
    let below = path.strip_prefix(root).unwrap_or(path);
    let mut holder = root.to_path_buf();
    for component in below.components() {
        holder.push(component);
        let name = component.as_os_str().to_string_lossy();
        if !name.ends_with(SLICE) && !POOLS.contains(&&*name) {
            break;
        }
    }
    holder
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "kubepods.slice";
    const POD: &str = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-1.scope";

    fn take(room: &mut Room, path: &str, id: u64) -> bool {
        room.take(Path::new(ROOT), Path::new(path), id).is_some()
    }

    fn leave(room: &mut Room, path: &str, id: u64, followed: bool) {
        room.leave(Path::new(ROOT), Path::new(path), id, followed);
    }

    #[test]
    fn one_container_cannot_take_the_room_of_all() {
        let mut room = Room::new(10, 4);
        assert!(take(&mut room, POD, 1));
        for id in 2..9 {
            let nested = format!("{POD}/a/{id}");
            assert_eq!(take(&mut room, &nested, id), id < 5, "{id}");
        }
        assert!(take(
            &mut room,
            "kubepods.slice/kubepods-pod2.slice/cri-2.scope",
            20
        ));
        // The room that one of its own leaves is given to the next of its own.
        assert_eq!(room.next(), None);
        leave(&mut room, POD, 1, true);
        let (path, id) = room.next().expect("one waits");
        assert_eq!((path, id), (PathBuf::from(format!("{POD}/a/5")), 5));
        assert!(take(&mut room, &format!("{POD}/a/5"), 5));
        assert_eq!(room.next(), None);
        // Those who go while they wait are not spoken of again.
        for id in 6..9 {
            leave(&mut room, &format!("{POD}/a/{id}"), id, false);
        }
        leave(&mut room, &format!("{POD}/a/5"), 5, true);
        assert_eq!(room.next(), None);
    }

    #[test]
    fn a_container_of_crio_holds_what_is_below_it_and_its_monitor_is_another() {
        let (slice, pool) = ("kubepods.slice/kubepods-pod1.slice", "kubepods/burstable/pod1");
        for (root, path, holder) in [
            (
                ROOT,
                format!("{slice}/crio-7.scope"),
                format!("{slice}/crio-7.scope"),
            ),
            (
                ROOT,
                format!("{slice}/crio-7.scope/container/nested"),
                format!("{slice}/crio-7.scope"),
            ),
            (
                ROOT,
                format!("{slice}/crio-conmon-7.scope"),
                format!("{slice}/crio-conmon-7.scope"),
            ),
            // With the other driver a pod is no slice: it holds its containers together.
            ("kubepods", format!("{pool}/crio-7/container"), pool.to_owned()),
            ("kubepods", format!("{pool}/crio-conmon-7"), pool.to_owned()),
        ] {
            assert_eq!(
                holder_of(Path::new(root), Path::new(&path)),
                PathBuf::from(holder),
                "{path}"
            );
        }
    }

    #[test]
    fn who_found_no_room_is_followed_when_there_is_some() {
        let mut room = Room::new(2, 2);
        assert!(take(&mut room, "kubepods.slice/a", 1) && take(&mut room, "kubepods.slice/b", 2));
        assert!(!take(&mut room, "kubepods.slice/burstable/pod/c", 3));
        assert_eq!(room.next(), None);
        leave(&mut room, "kubepods.slice/a", 1, true);
        let (path, id) = room.next().expect("it waited");
        assert!(room.take(Path::new(ROOT), &path, id).is_some());
        leave(&mut room, "kubepods.slice/b", 2, true);
        leave(&mut room, "kubepods.slice/burstable/pod/c", 3, true);
        assert!(room.holders.is_empty() && room.followed == 0 && room.waiting == 0);
    }
}
