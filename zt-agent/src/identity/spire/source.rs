// SPDX-License-Identifier: Apache-2.0
//! The whole of the source: one connection, one follower for each cgroup, and what they say passed on and remembered.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::attest::{Follower, Shared};
use super::doors::Doors;
use super::health::{Health, Withdrawal};
use super::memory;
use super::room::Room;
use super::{Attestation, Known, OnExpiry, Pods, Settings, link};
use crate::cgroup::{CgroupEvent, level_of};
use crate::identity::peers::Svids;

/// Workloads that may be asked for at the same time.
const ASKING: usize = 64;
/// Cgroups that are followed at most.
const MOST: usize = 16_384;
/// Cgroups that are followed at most of one container, or service, with all that lies in it.
const MOST_EACH: usize = 1024;
/// Attestations that are taken at a time.
const BATCH: usize = 1024;
/// How long after a cgroup has gone it is forgotten on disk.
const SAVE: Duration = Duration::from_millis(200);
/// How long after it failed that is tried again.
const SAVE_AGAIN: Duration = Duration::from_secs(5);
/// How long after its follower failed a cgroup is followed again.
const FOLLOW_AGAIN: Duration = Duration::from_secs(5);
/// How often it is said that there is no room, at most.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// The source, before it runs.
#[derive(Debug)]
pub struct Source {
    settings: Arc<Settings>,
    health: Arc<Health>,
    present: BTreeMap<PathBuf, u64>,
    known: Known,
    pods: watch::Receiver<Pods>,
    svids: Option<watch::Sender<Svids>>,
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
            // Nobody sends.
            pods: watch::channel(Pods::default()).1,
            svids: None,
        }
    }

    /// Has it keep the keys of SVIDs, so that other nodes can be shown who lives here.
    pub fn show(&mut self) -> watch::Receiver<Svids> {
        let (sender, svids) = watch::channel(Svids::new());
        self.svids = Some(sender);
        svids
    }

    /// Has it ask about pods by their selectors while nobody runs in their cgroups yet.
    pub fn ask_about(&mut self, pods: watch::Receiver<Pods>) {
        self.pods = pods;
    }

    /// What it knows to begin with.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// How it stands with SPIRE.
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Works until nobody listens to `out` any more. Must be told of every change after those present; when `cgroups` ends, it
    /// goes on with those that it knows.
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
                pods: self.pods,
                said: said_sender,
                svids: self.svids,
                asking: Semaphore::new(ASKING),
            }),
            tasks: JoinSet::new(),
            followers: HashMap::new(),
            by_task: HashMap::new(),
            failed: Vec::new(),
            again_at: None,
            doors: Doors::new(),
            room: Room::new(MOST, MOST_EACH),
            full: None,
        };
        let mut told = true;
        work.tasks
            .spawn(link::keep(self.settings, self.health, link_sender));
        for (path, id) in self.present {
            work.follow(path, id);
        }
        loop {
            tokio::select! {
                event = cgroups.recv(), if told => match event {
                    Some(CgroupEvent::Created { path, id }) => work.follow(path, id),
                    Some(CgroupEvent::Removed { path, id }) => work.unfollow(&path, id),
                    None => {
                        told = false;
                        tracing::error!("SPIRE is asked about the cgroups that are known, and about no new ones; restart the agent");
                    }
                },
                Some(attestation) = said.recv() => {
                    if work.pass_on(attestation, &mut said, &out).await.is_err() {
                        return;
                    }
                },
                () = work.doors.opened() => {}
                () = due(work.memory.save_at) => work.memory.save(),
                () = due(work.again_at) => work.follow_failed(),
                Some(ended) = work.tasks.join_next_with_id() => {
                    if let Some(nobody) = work.ended(ended)
                        && work.pass_on(nobody, &mut said, &out).await.is_err()
                    {
                        return;
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
    /// What a task follows.
    by_task: HashMap<Id, (PathBuf, u64)>,
    /// Whose follower failed, until [`Work::again_at`].
    failed: Vec<(PathBuf, u64)>,
    again_at: Option<Instant>,
    doors: Doors,
    room: Room,
    /// When it was last said that there is no room.
    full: Option<Instant>,
}

impl Work {
    fn follow(&mut self, path: PathBuf, id: u64) {
        // Told twice of the same one, as after a queue that overflowed.
        if self.followers.contains_key(&id) {
            return;
        }
        let Some(root) = self.root_of(&path) else {
            return;
        };
        let asking = self.room.take(&root, &path, id);
        self.shared.health.crowded(id, asking.is_none());
        let Some(asking) = asking else {
            if self.full.is_none_or(|said| said.elapsed() > SAY_AGAIN) {
                self.full = Some(Instant::now());
                let why = format!(
                    "{} is not asked about: more than {MOST_EACH} cgroups in one container or service, or {MOST} in all; the others wait, and are known by their ancestors",
                    path.display()
                );
                tracing::error!("{why}");
                self.shared.health.refused("too_many", &why);
            }
            return;
        };
        let remembered = self.memory.known.get(&path);
        let remembered = remembered
            .filter(|(known, _)| *known == id)
            .map(|(_, identity)| identity.clone());
        let changed = Arc::new(Notify::new());
        let directory = self.shared.settings.mount.join(&path);
        let watched = self.doors.watch(&directory, id, &changed);
        let followed = (path.clone(), id);
        let follower = Follower::new(
            Arc::clone(&self.shared),
            asking,
            path,
            id,
            remembered,
            changed,
            watched,
        );
        let task = self.tasks.spawn(follower.run());
        self.by_task.insert(task.id(), followed);
        self.followers.insert(id, task);
    }

    /// A task ended. What is to be said of the cgroup that it followed, if it failed: that it is nobody, until it is followed
    /// again.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) -> Option<Attestation> {
        let (task, error) = match ended {
            Ok((task, ())) => (task, None),
            Err(error) => (error.id(), error.is_panic().then_some(error)),
        };
        let followed = self.by_task.remove(&task);
        let error = error?;
        let Some((path, id)) = followed else {
            tracing::error!(%error, "the connection to SPIRE failed: names stay until their SVIDs expire; restart the agent");
            return None;
        };
        tracing::error!(%error, cgroup = %path.display(), "following a cgroup failed: it is nobody until it is followed again");
        self.shared.health.withdrawn(Withdrawal::Failed);
        self.failed.push((path.clone(), id));
        self.again_at.get_or_insert_with(|| Instant::now() + FOLLOW_AGAIN);
        Some(Attestation {
            cgroup: path,
            cgroup_id: id,
            identity: Err(Withdrawal::Failed),
        })
    }

    fn follow_failed(&mut self) {
        self.again_at = None;
        for (path, id) in std::mem::take(&mut self.failed) {
            self.unfollow(&path, id);
            self.follow(path, id);
        }
    }

    /// Passes on what was said up to now. An error where nobody listens any more.
    async fn pass_on(
        &mut self,
        first: Attestation,
        said: &mut mpsc::Receiver<Attestation>,
        out: &mpsc::Sender<Attestation>,
    ) -> Result<(), mpsc::error::SendError<Attestation>> {
        for attestation in self.take(first, said) {
            out.send(attestation).await?;
        }
        Ok(())
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
        // Nor does a name from one that has failed.
        let failed = |cgroup| self.failed.iter().any(|(_, failed)| *failed == cgroup);
        batch.retain(|attestation| attestation.identity.is_err() || !failed(attestation.cgroup_id));
        for attestation in &batch {
            self.memory.note(attestation);
        }
        if self.memory.save_at.is_some() {
            self.memory.save();
        }
        batch
    }

    /// The managed root that it lies below, not so deep that the kernel side would not find it.
    fn root_of(&self, path: &Path) -> Option<PathBuf> {
        let settings = &self.shared.settings;
        let root = settings.roots.iter().find(|root| {
            path.starts_with(root)
                && (1..=settings.depth).contains(&level_of(path).saturating_sub(level_of(root)))
        });
        root.cloned()
    }

    fn unfollow(&mut self, path: &Path, id: u64) {
        let followed = self.followers.remove(&id);
        if let Some(follower) = &followed {
            follower.abort();
        }
        self.failed.retain(|(_, failed)| *failed != id);
        self.doors.forget(id);
        self.shared.health.crowded(id, false);
        self.memory.forget(path, id);
        if let Some(root) = self.root_of(path) {
            self.room.leave(&root, path, id, followed.is_some());
        }
        while let Some((path, id)) = self.room.next() {
            self.follow(path, id);
        }
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
            Ok(identity) => {
                let known = (attestation.cgroup_id, identity.clone());
                self.known.insert(attestation.cgroup.clone(), known);
                self.changed();
            }
            Err(_) => self.forget(&attestation.cgroup, attestation.cgroup_id),
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
            self.save_at = Some(Instant::now() + SAVE_AGAIN);
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
