// SPDX-License-Identifier: Apache-2.0
//! Follows what a path holds, whatever way it is changed.
//!
//! Files are replaced by rename, directories by swapping a symlink (`..data` of a mounted `ConfigMap`), editors truncate and
//! write again, and parents disappear and come back. [`Follower`] watches every directory that the path's resolution goes
//! through, waits until writers are done, reads, and reports a value only if it differs from the last. A slow poll
//! covers what inotify cannot see (network file systems, a full queue).

mod trace;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout_at};
use tracing::{debug, warn};

use trace::{Interest, trace};

/// Silence that ends a burst in which some file was written to.
const QUIET: Duration = Duration::from_millis(10);
/// Silence that ends a burst of renames, removals and closed files: each leaves a finished state behind.
const QUIET_COMPLETE: Duration = Duration::from_millis(3);
/// A burst is cut off here: a file that is written to without end is read as it is.
const LONGEST_BURST: Duration = Duration::from_millis(100);
/// How often to look without having been told, with inotify and without.
const POLL: Duration = Duration::from_secs(5);
const POLL_ONLY: Duration = Duration::from_secs(1);
/// A tree that changes faster than watches can be placed is taken as it is; events or the poll bring the rest.
const MOST_ROUNDS: usize = 16;

/// Follows one path and reads it anew whenever it may have changed.
///
/// `T` is what a reading gives, errors included; its hash decides whether it is new.
pub struct Follower<T> {
    path: PathBuf,
    read: Box<dyn FnMut() -> T + Send>,
    last: u64,
    events: Option<Events>,
}

impl<T> fmt::Debug for Follower<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl<T: Hash + Send> Follower<T> {
    /// Begins to watch `path`, a file or a directory that need not exist, then reads it with `read`.
    ///
    /// Without inotify (its limits may be exhausted) the path is polled, which is logged. Must be called inside a
    /// tokio runtime.
    pub fn new(path: PathBuf, read: impl FnMut() -> T + Send + 'static) -> (Self, T) {
        let events = Events::new()
            .inspect_err(|error| {
                warn!(path = %path.display(), %error, "inotify is not available, polling instead; \
                      fs.inotify.max_user_instances may be too low");
            })
            .ok();
        let mut follower = Self {
            path,
            read: Box::new(read),
            last: 0,
            events,
        };
        follower.place_watches();
        let first = (follower.read)();
        follower.last = hash_of(&first);
        (follower, first)
    }

    /// Sends each new value into `sink` until its receiver is gone. The value sent is always read after there was room
    /// for it: a slow receiver skips states and never gets a stale one.
    pub async fn run(mut self, sink: mpsc::Sender<T>) {
        let period = if self.events.is_some() { POLL } else { POLL_ONLY };
        let mut poll = interval_at(Instant::now() + period, period);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = sink.closed() => return,
                _ = poll.tick() => {}
                relevant = next_event(&mut self.events) => match relevant {
                    Noted::Irrelevant => continue,
                    first => self.settle(first).await,
                },
            }
            let Ok(permit) = sink.reserve().await else { return };
            self.place_watches();
            let value = (self.read)();
            let hash = hash_of(&value);
            if hash != self.last {
                self.last = hash;
                debug!(path = %self.path.display(), "changed");
                permit.send(value);
            }
        }
    }

    /// Waits until the burst that began with `first` is over.
    async fn settle(&mut self, first: Noted) {
        let limit = Instant::now() + LONGEST_BURST;
        let mut quiet = if first == Noted::Complete {
            QUIET_COMPLETE
        } else {
            QUIET
        };
        let mut until = Instant::now() + quiet;
        loop {
            let writing = self
                .events
                .as_ref()
                .is_some_and(|events| !events.writing.is_empty());
            let wait = if writing { limit } else { until.min(limit) };
            let Ok(noted) = timeout_at(wait, next_event(&mut self.events)).await else {
                break;
            };
            if noted == Noted::Partial {
                quiet = QUIET;
            }
            if noted != Noted::Irrelevant {
                until = Instant::now() + quiet;
            }
            if Instant::now() >= limit {
                break;
            }
        }
        if let Some(events) = &mut self.events {
            events.writing.clear();
        }
    }

    fn place_watches(&mut self) {
        let Some(events) = &mut self.events else { return };
        for _ in 0..MOST_ROUNDS {
            // What a round looked at before its watch was in place may have changed unseen: look again.
            if !events.place(&trace(&self.path)) {
                return;
            }
        }
    }
}

fn hash_of<T: Hash>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What an event means for the path that is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Noted {
    /// Nothing.
    Irrelevant,
    /// Something changed and is in its final state as far as one can tell.
    Complete,
    /// A file is being written to.
    Partial,
}

/// Waits for one event; for ever if there is no inotify.
async fn next_event(events: &mut Option<Events>) -> Noted {
    let Some(source) = events else {
        return future::pending().await;
    };
    match source.stream.next().await {
        Some(Ok(event)) => source.note(&event),
        Some(Err(error)) => {
            warn!(%error, "reading from inotify failed, looking again");
            // Whatever it was, it must not spin.
            sleep_until(Instant::now() + QUIET).await;
            Noted::Complete
        }
        None => {
            *events = None;
            Noted::Complete
        }
    }
}

/// The inotify instance with the directories that it watches.
struct Events {
    stream: EventStream<Vec<u8>>,
    watches: Watches,
    directories: HashMap<PathBuf, WatchDescriptor>,
    interests: HashMap<WatchDescriptor, Interest>,
    /// Files that were written to and not closed yet.
    writing: HashSet<(WatchDescriptor, OsString)>,
}

impl Events {
    fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let stream = inotify.into_event_stream(vec![0; 16 * 1024])?;
        Ok(Self {
            stream,
            watches,
            directories: HashMap::new(),
            interests: HashMap::new(),
            writing: HashSet::new(),
        })
    }

    /// Makes the watches be those of `plan`; says whether any had to be added.
    fn place(&mut self, plan: &HashMap<PathBuf, Interest>) -> bool {
        let gone: Vec<_> = self
            .directories
            .keys()
            .filter(|path| !plan.contains_key(*path))
            .cloned()
            .collect();
        for path in gone {
            self.forget(&path);
        }
        let mut added = false;
        for (path, interest) in plan {
            let mask = if interest.contents {
                NAMES | CONTENTS
            } else {
                NAMES
            };
            let descriptor = match self.watches.add(path, mask | WatchMask::ONLYDIR) {
                Ok(descriptor) => descriptor,
                Err(error) => {
                    // It may have been removed a moment ago; for anything else there is the poll.
                    debug!(path = %path.display(), %error, "cannot be watched");
                    self.forget(path);
                    continue;
                }
            };
            if self.directories.get(path) != Some(&descriptor) {
                self.forget(path);
                self.directories.insert(path.clone(), descriptor.clone());
                added = true;
            }
            self.interests.insert(descriptor, interest.clone());
        }
        added
    }

    fn forget(&mut self, path: &PathBuf) {
        if let Some(descriptor) = self.directories.remove(path) {
            self.interests.remove(&descriptor);
            self.writing.retain(|(writing, _)| *writing != descriptor);
            // Fails where the directory is gone, and its watch with it.
            drop(self.watches.remove(descriptor));
        }
    }

    fn note(&mut self, event: &EventOwned) -> Noted {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return Noted::Complete;
        }
        let Some(interest) = self.interests.get(&event.wd) else {
            return Noted::Irrelevant;
        };
        if event.mask.contains(EventMask::IGNORED) {
            self.interests.remove(&event.wd);
            self.directories.retain(|_, descriptor| *descriptor != event.wd);
            self.writing.retain(|(writing, _)| *writing != event.wd);
            return Noted::Complete;
        }
        let Some(name) = &event.name else {
            return Noted::Complete;
        };
        if !interest.concerns(name) {
            return Noted::Irrelevant;
        }
        let file = (event.wd.clone(), name.clone());
        if event.mask.contains(EventMask::MODIFY) {
            self.writing.insert(file);
            return Noted::Partial;
        }
        self.writing.remove(&file);
        // A file that was just made is probably about to be filled.
        if event.mask == EventMask::CREATE {
            Noted::Partial
        } else {
            Noted::Complete
        }
    }
}

/// Changes of a directory's entries.
const NAMES: WatchMask = WatchMask::CREATE
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::MOVED_TO);
/// Changes of the files in a directory.
const CONTENTS: WatchMask = WatchMask::MODIFY
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::ATTRIB);

#[cfg(test)]
mod tests;
