// SPDX-License-Identifier: Apache-2.0
//! The whole of the source: one connection, one follower for each cgroup, and what they say passed on and remembered.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::attest::{Follower, Shared};
use super::health::Health;
use super::memory;
use super::{Attestation, Known, OnExpiry, Settings, link};
use crate::cgroup::{CgroupEvent, level_of};

/// Workloads that may be asked for at the same time.
const ASKING: usize = 64;
/// Cgroups that are followed at most.
const MOST: usize = 16_384;
/// Attestations that are taken at a time.
const BATCH: usize = 1024;
/// How long after a cgroup has gone it is forgotten on disk.
const SAVE: Duration = Duration::from_millis(200);

/// The source, before it runs.
#[derive(Debug)]
pub struct Source {
    settings: Arc<Settings>,
    health: Arc<Health>,
    present: BTreeMap<PathBuf, u64>,
    known: Known,
}

impl Source {
    /// A source for the cgroups that are `present`, which knows what it knew before the agent was started.
    pub fn new(settings: Settings, present: BTreeMap<PathBuf, u64>) -> Self {
        let mut known = memory::recall(&settings.memory, &settings.trust_domain, &present);
        if settings.on_expiry == OnExpiry::Withdraw {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs();
            known.retain(|_, (_, identity)| identity.expires > now as i64);
        }
        Self {
            settings: Arc::new(settings),
            health: Health::new(),
            present,
            known,
        }
    }

    /// What it knows to begin with.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// How it stands with SPIRE.
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Works until `cgroups` ends or nobody listens to `out` any more. Must be told of every change after those present.
    pub async fn run(
        self,
        mut cgroups: mpsc::UnboundedReceiver<CgroupEvent>,
        out: mpsc::Sender<Attestation>,
    ) {
        let (link_sender, link) = watch::channel(None);
        let (said_sender, mut said) = mpsc::channel(1024);
        let mut work = Work {
            memory: Memory {
                settings: Arc::clone(&self.settings),
                known: self.known,
                save_at: None,
            },
            shared: Arc::new(Shared {
                settings: Arc::clone(&self.settings),
                health: Arc::clone(&self.health),
                link,
                said: said_sender,
                asking: Semaphore::new(ASKING),
            }),
            tasks: JoinSet::new(),
            followers: HashMap::new(),
            doors: Doors::new(),
            full: false,
        };
        work.tasks
            .spawn(link::keep(self.settings, self.health, link_sender));
        for (path, id) in self.present {
            work.follow(path, id);
        }
        loop {
            tokio::select! {
                event = cgroups.recv() => match event {
                    Some(CgroupEvent::Created { path, id }) => work.follow(path, id),
                    Some(CgroupEvent::Removed { path, id }) => work.unfollow(&path, id),
                    None => return,
                },
                Some(attestation) = said.recv() => {
                    for attestation in work.take(attestation, &mut said) {
                        if out.send(attestation).await.is_err() {
                            return;
                        }
                    }
                },
                () = work.doors.opened() => {}
                () = due(work.memory.save_at) => work.memory.save(),
                Some(ended) = work.tasks.join_next() => {
                    if let Err(error) = ended.as_ref()
                        && error.is_panic()
                    {
                        tracing::error!(%error, "following a cgroup failed: it keeps the identity that it had; restart the agent");
                    }
                }
            }
        }
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The source at work.
struct Work {
    memory: Memory,
    shared: Arc<Shared>,
    /// Aborted when this is dropped.
    tasks: JoinSet<()>,
    followers: HashMap<u64, AbortHandle>,
    doors: Doors,
    full: bool,
}

impl Work {
    fn follow(&mut self, path: PathBuf, id: u64) {
        // Told twice of the same one, as after a queue that overflowed.
        if self.followers.contains_key(&id) || !self.can_have_identity(&path) {
            return;
        }
        if self.followers.len() >= MOST {
            if !std::mem::replace(&mut self.full, true) {
                let why = format!("more than {MOST} cgroups: the others are known by their ancestors");
                tracing::error!("{why}");
                self.shared.health.refused("too_many", &why);
            }
            return;
        }
        let remembered = self.memory.known.get(&path);
        let remembered = remembered
            .filter(|(known, _)| *known == id)
            .map(|(_, identity)| identity.clone());
        let changed = Arc::new(Notify::new());
        let directory = self.shared.settings.mount.join(&path);
        let watched = self.doors.watch(&directory, id, &changed);
        let follower = Follower::new(Arc::clone(&self.shared), path, id, remembered, changed, watched);
        self.followers.insert(id, self.tasks.spawn(follower.run()));
    }

    /// Takes what was said up to now, and remembers it before anybody acts by it: an agent that is killed leaves no name in
    /// the kernel that the next one does not know, and none that was taken back on disk.
    fn take(&mut self, first: Attestation, said: &mut mpsc::Receiver<Attestation>) -> Vec<Attestation> {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = said.try_recv()
        {
            batch.push(next);
        }
        // What a cgroup's follower said before the cgroup went counts no more.
        batch.retain(|attestation| self.followers.contains_key(&attestation.cgroup_id));
        for attestation in &batch {
            self.memory.note(attestation);
        }
        if self.memory.save_at.is_some() {
            self.memory.save();
        }
        batch
    }

    /// Whether it lies below a managed root, and not so deep that the kernel side would not find it.
    fn can_have_identity(&self, path: &Path) -> bool {
        let settings = &self.shared.settings;
        settings.roots.iter().any(|root| {
            path.starts_with(root)
                && (1..=settings.depth).contains(&level_of(path).saturating_sub(level_of(root)))
        })
    }

    fn unfollow(&mut self, path: &Path, id: u64) {
        if let Some(follower) = self.followers.remove(&id) {
            follower.abort();
        }
        self.full = self.full && self.followers.len() >= MOST;
        self.doors.forget(id);
        self.memory.forget(path, id);
    }
}

/// What is known, on its way to disk.
struct Memory {
    settings: Arc<Settings>,
    known: Known,
    save_at: Option<Instant>,
}

impl Memory {
    fn note(&mut self, attestation: &Attestation) {
        match &attestation.identity {
            Some(identity) => {
                let known = (attestation.cgroup_id, identity.clone());
                self.known.insert(attestation.cgroup.clone(), known);
                self.changed();
            }
            None => self.forget(&attestation.cgroup, attestation.cgroup_id),
        }
    }

    fn forget(&mut self, path: &Path, id: u64) {
        if self.known.get(path).is_some_and(|(known, _)| *known == id) {
            self.known.remove(path);
            self.changed();
        }
    }

    fn changed(&mut self) {
        self.save_at.get_or_insert_with(|| Instant::now() + SAVE);
    }

    fn save(&mut self) {
        self.save_at = None;
        let path = &self.settings.memory;
        if let Err(error) = memory::remember(path, &self.settings.trust_domain, &self.known) {
            tracing::warn!(file = %path.display(), %error, "identities cannot be remembered for the next start");
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.save_at.is_some() {
            self.save();
        }
    }
}

/// Notices processes that come into cgroups and leave them.
struct Doors {
    inotify: Option<(EventStream<Vec<u8>>, Watches)>,
    waiting: HashMap<WatchDescriptor, (u64, Arc<Notify>)>,
    watches: HashMap<u64, WatchDescriptor>,
}

impl Doors {
    fn new() -> Self {
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
    fn watch(&mut self, directory: &Path, id: u64, changed: &Arc<Notify>) -> bool {
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

    fn forget(&mut self, id: u64) {
        if let Some(watch) = self.watches.remove(&id) {
            self.waiting.remove(&watch);
            if let Some((_, watches)) = &mut self.inotify {
                // With the cgroup its file has gone, and mostly the watch.
                let _ = watches.remove(watch);
            }
        }
    }

    /// Passes on one event.
    async fn opened(&mut self) {
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
