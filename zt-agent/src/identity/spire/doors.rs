// SPDX-License-Identifier: Apache-2.0
//! Where cgroups get their first process and lose their last one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use futures::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;

/// Notices processes that come into cgroups and leave them.
pub(super) struct Doors {
    inotify: Option<(EventStream<Vec<u8>>, Watches)>,
    waiting: HashMap<WatchDescriptor, (u64, Arc<Notify>)>,
    watches: HashMap<u64, WatchDescriptor>,
}

impl Doors {
    pub(super) fn new() -> Self {
        let open = || -> std::io::Result<_> {
            let inotify = Inotify::init()?;
            let watches = inotify.watches();
            Ok((inotify.into_event_stream(vec![0; 16 * 1024])?, watches))
        };
        let inotify = open();
        if let Err(error) = &inotify {
            tracing::warn!(%error, "processes that come and go are looked for each second (fs.inotify.max_user_instances)");
        }
        Self {
            inotify: inotify.ok(),
            waiting: HashMap::new(),
            watches: HashMap::new(),
        }
    }

    /// Notifies `changed` when the cgroup gets its first process or loses its last one. False where that cannot be had.
    pub(super) fn watch(&mut self, directory: &Path, id: u64, changed: &Arc<Notify>) -> bool {
        let Some((_, watches)) = &mut self.inotify else {
            return false;
        };
        match watches.add(directory.join("cgroup.events"), WatchMask::MODIFY) {
            Ok(watch) => {
                self.waiting.insert(watch.clone(), (id, Arc::clone(changed)));
                self.watches.insert(id, watch);
                true
            }
            Err(_) => false,
        }
    }

    pub(super) fn forget(&mut self, id: u64) {
        if let Some(watch) = self.watches.remove(&id) {
            self.waiting.remove(&watch);
            if let Some((_, watches)) = &mut self.inotify {
                // With the cgroup its file has gone, and mostly the watch.
                let _ = watches.remove(watch);
            }
        }
    }

    /// Passes on one event.
    pub(super) async fn opened(&mut self) {
        let Some((stream, _)) = &mut self.inotify else {
            return std::future::pending().await;
        };
        match stream.next().await {
            Some(Ok(event)) if event.mask.contains(EventMask::Q_OVERFLOW) => {
                for (_, changed) in self.waiting.values() {
                    changed.notify_one();
                }
            }
            Some(Ok(event)) => {
                if let Some((_, changed)) = self.waiting.get(&event.wd) {
                    changed.notify_one();
                }
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "watching cgroups failed");
                self.inotify = None;
            }
            None => self.inotify = None,
        }
    }
}
