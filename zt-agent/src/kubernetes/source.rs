// SPDX-License-Identifier: Apache-2.0
//! The `kubernetes` identity source at work: two watches of pods and the cgroups of this node, put together.

mod granted;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::pods::{COLLECTIONS, ReadPod, of_node, of_others};
use super::watch::{Said, Timing};
use super::watches::Watches;
use super::{Client, Health, memory};
use crate::cgroup::CgroupEvent;
use crate::identity::kept;
use crate::identity::kubernetes::{Changes, Directory, Naming, Part, Pod};
use crate::identity::peers::Roster;

/// Things said that may wait.
const QUEUE: usize = 4096;
/// Things said that are put together at a time.
const BATCH: usize = 1024;
/// How long after something of this node has changed it is remembered on disk. Everything is written.
const SAVE: Duration = Duration::from_secs(5);
/// The same where only something of other nodes has: in a large cluster something always has.
const SAVE_ELSEWHERE: Duration = Duration::from_secs(60);
/// How long after that it is written again.
const REFRESH: Duration = Duration::from_secs(memory::MOST_AGE.as_secs() / 2);
/// How often it is looked whether what is known is too old, should nothing be said.
const LOOK: Duration = Duration::from_secs(5);

/// Which other nodes there are, as far as that is known.
pub type Nodes = watch::Receiver<Option<Arc<Roster>>>;

/// Whether the API is to be asked about pods of other nodes, given whether it is.
pub struct Others(pub Box<dyn Fn(bool) -> bool + Send + Sync>);

impl Default for Others {
    /// It always is.
    fn default() -> Self {
        Self(Box::new(|_| true))
    }
}

impl fmt::Debug for Others {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Others")
    }
}

/// Pods of other nodes, as they are told of.
#[derive(Debug)]
struct Elsewhere {
    said: mpsc::Receiver<Said<ReadPod>>,
    task: AbortHandle,
}

impl Elsewhere {
    fn follow(watches: &mut Watches, node: &str) -> Self {
        let (said, task) = watches.follow_for_now(of_others(node), QUEUE);
        Self { said, task }
    }
}

/// What is said of them next; never, where nobody is asked.
async fn next(elsewhere: &mut Option<Elsewhere>) -> Option<Said<ReadPod>> {
    match elsewhere {
        Some(elsewhere) => elsewhere.said.recv().await,
        None => std::future::pending().await,
    }
}

/// What the source goes by.
#[derive(Debug)]
pub struct Settings {
    /// The API.
    pub client: Client,
    /// How pods are named.
    pub naming: Naming,
    /// The name of this node in the API.
    pub node: String,
    /// The managed cgroups, below the mount.
    pub roots: Vec<PathBuf>,
    /// The networks of the cluster, where they are known.
    pub cluster: Vec<IpNet>,
    /// Which other nodes there are: an address is a pod's of the node that has been given it.
    pub nodes: Nodes,
    /// Where pods are remembered for the next start.
    pub memory: PathBuf,
    /// How long things may take.
    pub timing: Timing,
    /// Whether pods of other nodes are of interest: others may tell of them.
    pub others: Others,
}

/// The source.
#[derive(Debug)]
pub struct Source {
    node: String,
    memory: PathBuf,
    directory: Directory,
    health: Arc<Health>,
    here: mpsc::Receiver<Said<ReadPod>>,
    /// `None` while others tell of them.
    elsewhere: Option<Elsewhere>,
    others: Others,
    nodes: Nodes,
    /// Since when nodes are not heard and pods are.
    behind: Option<Instant>,
    watches: Watches,
    save_at: Option<Instant>,
    /// When the API last said that what is known is so, as far as earlier agents knew.
    heard: Option<SystemTime>,
    /// How long what it says of other nodes is believed while it is not heard.
    believed: Duration,
}

impl Source {
    /// Begins to follow the pods, and waits until they are known, or for as long as `patience`: an agent that is
    /// started again takes nobody's name away before it has asked. Where the API does not answer, what was known before
    /// holds. `present` are the cgroups that there are.
    pub async fn start(settings: Settings, present: &BTreeMap<PathBuf, u64>, patience: Duration) -> Self {
        let mut directory = Directory::new(
            settings.naming,
            settings.node.clone(),
            settings.roots,
            settings.cluster,
        );
        for path in present.keys() {
            directory.cgroup_created(path);
        }
        let recalled = memory::recall(&settings.memory, &settings.node, &mut directory);
        let mut watches = Watches::new(settings.client, settings.timing);
        let here = watches.follow(of_node(&settings.node), QUEUE);
        // Who else tells of them is not known yet.
        let elsewhere = Some(Elsewhere::follow(&mut watches, &settings.node));
        let mut source = Self {
            node: settings.node,
            memory: settings.memory,
            directory,
            health: Health::new(Arc::clone(watches.freshness())),
            here,
            elsewhere,
            others: settings.others,
            nodes: settings.nodes,
            behind: None,
            watches,
            save_at: None,
            heard: recalled.heard,
            believed: settings.timing.believed,
        };
        source.know_nodes();
        if timeout(patience, source.listed()).await.is_err() {
            tracing::warn!(
                pods = recalled.pods,
                addresses = recalled.addresses,
                "the Kubernetes API does not answer: going on with the pods that were known before"
            );
        }
        source.health.note(&source.directory);
        source
    }

    /// Takes what is said until both parts were listed.
    async fn listed(&mut self) {
        let mut missing = [true, true];
        while missing.contains(&true) {
            let (part, said) = tokio::select! {
                Some(said) = self.here.recv() => (Part::Here, said),
                Some(said) = next(&mut self.elsewhere) => (Part::Elsewhere, said),
                else => return,
            };
            if matches!(said, Said::All(_)) {
                missing[usize::from(part == Part::Elsewhere)] = false;
            }
            self.take(part, said);
        }
    }

    /// What is known, all of it, and afterwards what is new.
    pub fn changes(&mut self) -> Changes {
        self.directory.changes()
    }

    /// How it stands.
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Works until nobody listens to `out` any more. Must be told of every change of cgroups after those that were present;
    /// when `cgroups` ends, it goes on with those that it knows.
    pub async fn run(
        mut self,
        mut cgroups: mpsc::UnboundedReceiver<CgroupEvent>,
        out: mpsc::Sender<Changes>,
    ) {
        let mut told = true;
        self.save_at = Some(Instant::now());
        let mut look = interval(LOOK.min(self.believed));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = cgroups.recv(), if told => match event {
                    Some(event) => {
                        self.cgroup(&event);
                        while let Ok(event) = cgroups.try_recv() {
                            self.cgroup(&event);
                        }
                    }
                    None => told = false,
                },
                Some(said) = self.here.recv() => self.take(Part::Here, said),
                Some(said) = next(&mut self.elsewhere) => self.take(Part::Elsewhere, said),
                Ok(()) = self.nodes.changed() => self.know_nodes(),
                () = due(self.save_at) => {
                    self.save().await;
                    continue;
                }
                Some(ended) = self.watches.ended() => {
                    if let Err(error) = ended
                        && !error.is_cancelled()
                    {
                        tracing::error!(%error, "a watch of the Kubernetes API failed: what is known of it stays as it is; restart the agent");
                    }
                    continue;
                }
                _ = look.tick() => self.follow_others().await,
                () = out.closed() => break,
            }
            // What has come meanwhile is put in force with it.
            for _ in 0..BATCH {
                let here = self.here.try_recv().map(|said| (Part::Here, said));
                let elsewhere = || Some((Part::Elsewhere, self.elsewhere.as_mut()?.said.try_recv().ok()?));
                let Some((part, said)) = here.ok().or_else(elsewhere) else {
                    break;
                };
                self.take(part, said);
            }
            self.doubt();
            self.doubt_nodes();
            let changes = self.directory.changes();
            self.health.note(&self.directory);
            if changes.is_empty() {
                continue;
            }
            let at = Instant::now() + save_after(&changes);
            self.save_at = Some(self.save_at.map_or(at, |before| before.min(at)));
            if out.send(changes).await.is_err() {
                break;
            }
        }
        self.save().await;
    }

    fn take(&mut self, part: Part, said: Said<ReadPod>) {
        match said {
            Said::All(pods) => {
                let pods: Vec<Pod> = pods.into_iter().map(|read| read.0).collect();
                self.directory.all(part, &pods);
            }
            Said::Applied(ReadPod(pod)) => self.directory.applied(part, &pod),
            Said::Deleted(ReadPod(pod)) => self.directory.deleted(part, &pod),
        }
    }

    fn cgroup(&mut self, event: &CgroupEvent) {
        match event {
            CgroupEvent::Created { path, .. } => self.directory.cgroup_created(path),
            CgroupEvent::Removed { path, .. } => self.directory.cgroup_removed(path),
        }
    }

    /// Asks about pods of other nodes as long as that is wanted, and forgets them when it is not.
    async fn follow_others(&mut self) {
        let wanted = (self.others.0)(self.elsewhere.is_some());
        if wanted && self.elsewhere.is_none() {
            tracing::info!(
                "not all that there is to know of other nodes is heard from their agents: following the pods of other nodes in the Kubernetes API"
            );
            self.elsewhere = Some(Elsewhere::follow(&mut self.watches, &self.node));
        } else if !wanted && let Some(elsewhere) = self.elsewhere.take() {
            tracing::info!(
                "the agents of all other nodes are heard: their pods are not followed in the Kubernetes API any more"
            );
            elsewhere.task.abort();
            // It may be noting something in this moment: that comes before it is forgotten.
            while !elsewhere.task.is_finished() {
                yield_now().await;
            }
            self.health.freshness.end(COLLECTIONS[1]);
            self.directory.all(Part::Elsewhere, &[]);
        }
    }

    /// Names that may have become others' are not believed for ever.
    fn doubt(&mut self) {
        let heard = self.health.freshness.heard(&COLLECTIONS[1..], self.heard);
        let unheard = heard.and_then(|heard| SystemTime::now().duration_since(heard).ok());
        let believed = unheard.is_none_or(|unheard| unheard < self.believed);
        if self.directory.believe(believed) {
            if believed {
                tracing::info!("other nodes' pods have their names again");
            } else {
                tracing::error!(
                    ?unheard,
                    "the Kubernetes API has not been heard for so long that the addresses of other nodes' pods may be others' by now: whoever is there is unknown"
                );
            }
        }
    }

    async fn save(&mut self) {
        // Also where nothing changes: what was heard long ago is not believed.
        self.save_at = Some(Instant::now() + REFRESH);
        self.heard = self.health.freshness.heard(&COLLECTIONS, self.heard);
        let path = self.memory.clone();
        let written = match memory::text(&self.node, &self.directory, self.heard) {
            Ok(text) => tokio::task::spawn_blocking(move || kept::replace_synced(&path, &text)).await,
            Err(error) => Ok(Err(error)),
        };
        if let Ok(Err(error)) = written {
            tracing::warn!(file = %self.memory.display(), %error, "pods cannot be remembered for the next start");
        }
    }
}

/// When to remember what has changed.
const fn save_after(changes: &Changes) -> Duration {
    if changes.workloads.is_some() {
        SAVE
    } else {
        SAVE_ELSEWHERE
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn what_happens_elsewhere_all_the_time_is_written_less_often() {
        let mut changes = Changes {
            addresses: vec![(IpAddr::V4(Ipv4Addr::LOCALHOST), None)],
            ..Changes::default()
        };
        assert_eq!(save_after(&changes), SAVE_ELSEWHERE);
        changes.workloads = Some(Vec::new());
        assert_eq!(save_after(&changes), SAVE);
    }
}
