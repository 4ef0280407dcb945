// SPDX-License-Identifier: Apache-2.0
//! Watches the managed cgroups: every one that appears and disappears, nested to any depth, at any rate.
//!
//! A new directory is opened, watched, and only then listed, all through one descriptor: a child made before the watch is
//! in the list, one made after it is an event, and the id is that of the very directory that is watched. An event is
//! never believed but taken as the advice to compare a path with what is recorded, so that a path that was removed and
//! made again since does not flap. When the kernel's queue overflows everything is compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::CgroupError;

/// How often everything is compared without need, and while some directory could not be watched.
const COMPARE: Duration = Duration::from_mins(1);
const COMPARE_UNWATCHED: Duration = Duration::from_secs(1);

const MASK: WatchMask = WatchMask::CREATE
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::ONLYDIR);

/// A managed cgroup came or went. Paths are relative to the cgroup2 mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupEvent {
    /// It exists. A parent is announced before its children.
    Created {
        /// Its path.
        path: PathBuf,
        /// Its id in the kernel.
        id: u64,
    },
    /// It no longer exists. Children are announced before their parent; a path that was made again since is announced as
    /// removed with the old id and created with the new one.
    Removed {
        /// The path it had.
        path: PathBuf,
        /// The id it had.
        id: u64,
    },
}

/// What the watcher had to fall back to, for metrics.
#[derive(Debug, Default)]
pub struct WatcherCounters {
    overflows: AtomicU64,
    unwatched: AtomicU64,
}

impl WatcherCounters {
    /// How often the kernel's event queue overflowed, so that everything was compared.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// How often a directory could not be watched (`fs.inotify.max_user_watches`); while there is one, everything is
    /// compared each second.
    pub fn unwatched(&self) -> u64 {
        self.unwatched.load(Ordering::Relaxed)
    }
}

/// A directory as it was last seen; without a descriptor if it could not be watched.
struct Seen {
    id: u64,
    watch: Option<WatchDescriptor>,
}

/// Watches the cgroups in and below some roots; roots and their parents need not exist yet.
pub struct Watcher {
    mount: PathBuf,
    roots: Vec<PathBuf>,
    /// The directories above the roots, the mount itself (the empty path) included.
    ancestors: BTreeSet<PathBuf>,
    /// Every directory known: ancestors and managed ones. `Path`'s order keeps descendants right behind their ancestor.
    present: BTreeMap<PathBuf, Seen>,
    paths: HashMap<WatchDescriptor, PathBuf>,
    stream: EventStream<Vec<u8>>,
    watches: Watches,
    counters: Arc<WatcherCounters>,
    /// Whether a directory could not be watched when everything was compared last, or since.
    blind: bool,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("mount", &self.mount)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

impl Watcher {
    /// Begins to watch `roots` (relative to `mount`, a cgroup2 mount point) and everything below them. When this
    /// returns, what exists is in [`Watcher::snapshot`]. Must be called inside a tokio runtime.
    pub fn new(mount: PathBuf, roots: Vec<PathBuf>) -> Result<Self, CgroupError> {
        let inotify = Inotify::init().map_err(|source| CgroupError::Inotify { source })?;
        let watches = inotify.watches();
        let stream = inotify
            .into_event_stream(vec![0; 64 * 1024])
            .map_err(|source| CgroupError::Inotify { source })?;
        super::id_of(&mount)?;
        let ancestors = roots
            .iter()
            .flat_map(|root| root.ancestors().skip(1))
            .map(Path::to_path_buf)
            .collect();
        let mut this = Self {
            mount,
            roots,
            ancestors,
            present: BTreeMap::new(),
            paths: HashMap::new(),
            stream,
            watches,
            counters: Arc::default(),
            blind: false,
        };
        this.compare_all();
        Ok(this)
    }

    /// The managed cgroups that exist, with their ids.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, u64> {
        self.present
            .iter()
            .filter(|(path, _)| self.is_managed(path))
            .map(|(path, seen)| (path.clone(), seen.id))
            .collect()
    }

    /// What the watcher had to fall back to, for metrics.
    pub fn counters(&self) -> Arc<WatcherCounters> {
        Arc::clone(&self.counters)
    }

    /// Sends every change after [`Watcher::snapshot`] into `sink`, until its receiver is gone. A slow receiver loses
    /// nothing: events wait in the kernel, and if those are too many everything is compared.
    pub async fn run(mut self, sink: mpsc::Sender<CgroupEvent>) -> Result<(), CgroupError> {
        let mut compare = Instant::now() + self.period();
        loop {
            let changes = tokio::select! {
                () = sink.closed() => return Ok(()),
                () = sleep_until(compare) => {
                    let changes = self.compare_all();
                    compare = Instant::now() + self.period();
                    changes
                }
                event = self.stream.next() => match event {
                    Some(Ok(event)) => self.note(&event),
                    Some(Err(source)) => return Err(CgroupError::Read { source }),
                    None => {
                        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
                        return Err(CgroupError::Read { source });
                    }
                },
            };
            compare = compare.min(Instant::now() + self.period());
            for change in changes {
                if sink.send(change).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn period(&self) -> Duration {
        if self.blind { COMPARE_UNWATCHED } else { COMPARE }
    }

    fn is_managed(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(root))
    }

    fn note(&mut self, event: &EventOwned) -> Vec<CgroupEvent> {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            self.counters.overflows.fetch_add(1, Ordering::Relaxed);
            info!("more cgroups came and went than the kernel's queue holds, comparing all of them");
            return self.compare_all();
        }
        let mut changes = Vec::new();
        if event.mask.contains(EventMask::IGNORED) {
            // The directory is gone, or its watch was given up by `forget`, which has removed the entry already.
            if let Some(path) = self.paths.remove(&event.wd) {
                self.compare(path, false, &mut changes);
            }
        } else if event.mask.contains(EventMask::ISDIR)
            && let (Some(parent), Some(name)) = (self.paths.get(&event.wd), &event.name)
        {
            let path = parent.join(name);
            if self.is_managed(&path) || self.ancestors.contains(&path) {
                self.compare(path, false, &mut changes);
            }
        }
        changes
    }

    /// Compares every recorded directory with what exists, and looks for new ones everywhere.
    fn compare_all(&mut self) -> Vec<CgroupEvent> {
        self.blind = false;
        let mut changes = Vec::new();
        let recorded: Vec<_> = self
            .present
            .iter()
            .map(|(path, seen)| (path.clone(), seen.id))
            .collect();
        for (path, id) in recorded {
            let same = fs::symlink_metadata(self.mount.join(&path)).is_ok_and(|now| now.ino() == id);
            if !same {
                self.forget(&path, &mut changes);
            }
        }
        self.compare(PathBuf::new(), true, &mut changes);
        changes
    }

    /// Compares `path` with what is recorded for it; goes into what is new, and with `deep` into what is known.
    fn compare(&mut self, path: PathBuf, deep: bool, changes: &mut Vec<CgroupEvent>) {
        let mut pending = vec![path];
        while let Some(path) = pending.pop() {
            let Some((directory, id)) = self.open(&path) else {
                self.forget(&path, changes);
                continue;
            };
            let link = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
            let watch = self.watch(&link, &path);
            let known = match self.present.get(&path) {
                // A new descriptor means a new directory, even where the file system used its inode number again.
                Some(seen) if seen.id == id && (seen.watch == watch || watch.is_none()) => true,
                Some(seen) if seen.id == id && seen.watch.is_none() => false,
                Some(_) => {
                    self.forget(&path, changes);
                    false
                }
                None => false,
            };
            if let Some(watch) = &watch {
                self.paths.insert(watch.clone(), path.clone());
            }
            let first = self.present.insert(path.clone(), Seen { id, watch }).is_none();
            if first && self.is_managed(&path) {
                debug!(cgroup = %path.display(), id, "cgroup appeared");
                changes.push(CgroupEvent::Created {
                    path: path.clone(),
                    id,
                });
            }
            if !known || deep {
                self.children(&path, &link, &mut pending);
            }
        }
    }

    /// Opens the directory of `path`; `None` if there is none, or none any more.
    fn open(&self, path: &Path) -> Option<(File, u64)> {
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(self.mount.join(path))
            .inspect_err(|error| {
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) {
                    warn!(cgroup = %path.display(), %error, "cannot open a cgroup's directory");
                }
            })
            .ok()?;
        let id = directory.metadata().ok()?.ino();
        Some((directory, id))
    }

    fn watch(&mut self, link: &Path, path: &Path) -> Option<WatchDescriptor> {
        match self.watches.add(link, MASK) {
            Ok(descriptor) => return Some(descriptor),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.counters.unwatched.fetch_add(1, Ordering::Relaxed);
                if !self.blind {
                    warn!(cgroup = %path.display(), %error,
                          "cannot watch a cgroup, comparing all of them each second instead; \
                           raise fs.inotify.max_user_watches");
                }
                self.blind = true;
            }
        }
        None
    }

    /// Adds to `pending` the directories in `path` that matter: all below a root, and only the way to the roots above.
    fn children(&self, path: &Path, link: &Path, pending: &mut Vec<PathBuf>) {
        if !self.is_managed(path) {
            let step = |root: &PathBuf| {
                let next = root.strip_prefix(path).ok()?.components().next()?;
                Some(path.join(next))
            };
            pending.extend(self.roots.iter().filter_map(step).collect::<BTreeSet<_>>());
            return;
        }
        // A cgroup that is removed meanwhile cannot be listed; its removal is an event of its own.
        for entry in fs::read_dir(link).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path.join(entry.file_name()));
            }
        }
    }

    /// Drops `path` and everything below it.
    fn forget(&mut self, path: &Path, changes: &mut Vec<CgroupEvent>) {
        let below = self.present.range(path.to_path_buf()..).map(|(path, _)| path);
        let gone: Vec<_> = below
            .take_while(|below| below.starts_with(path))
            .cloned()
            .collect();
        for path in gone.into_iter().rev() {
            let Some(seen) = self.present.remove(&path) else {
                continue;
            };
            if let Some(watch) = seen.watch {
                // After a rename the same directory may be known by another path already.
                if self.paths.get(&watch) == Some(&path) {
                    self.paths.remove(&watch);
                    drop(self.watches.remove(watch));
                }
            }
            if self.is_managed(&path) {
                debug!(cgroup = %path.display(), id = seen.id, "cgroup disappeared");
                changes.push(CgroupEvent::Removed { path, id: seen.id });
            }
        }
    }
}

#[cfg(test)]
mod tests;
