// SPDX-License-Identifier: Apache-2.0
//! All pairs of this node: one task for each other node, and a listener for those that dial.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::health::Health;
use super::memory::Kept;
use super::pair::{Pair, Shared, own_addresses};
use super::reach::{Arrived, who_is};
use super::{Settings, Told};
use crate::identity::kept;
use crate::identity::peers::{Local, Located, Roster, Speaker, Who};
use crate::tls::Certificates;

/// TLS handshakes at a time of those who dial.
const MOST_HANDSHAKES: usize = 128;
/// The pause after connections could not be taken, as when there are no descriptors.
const ACCEPT_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

/// What the last agent left, for the start of the node thread.
#[derive(Debug, Default)]
pub struct Recalled {
    /// Who is at addresses of other nodes.
    pub addresses: Vec<(IpAddr, Located)>,
    /// Who lives on them, by the node's number.
    pub identities: HashMap<u32, Vec<crate::spiffe_id::SpiffeId>>,
}

/// The pairs, before they run.
pub struct Service {
    shared: Arc<Shared>,
    roster: watch::Receiver<Option<Arc<Roster>>>,
    /// Epochs of the keys in use, by node, as the kernel's map has them.
    uses: HashMap<u32, u64>,
}

/// What a service works with.
pub struct Parts {
    /// What it goes by.
    pub settings: Settings,
    /// Which other nodes there are; `None` as long as that is not known.
    pub roster: watch::Receiver<Option<Arc<Roster>>>,
    /// Epochs of the keys in use, by node, as the kernel's map has them.
    pub uses: HashMap<u32, u64>,
    /// What this agent shows, and whom it believes.
    pub certificates: Certificates,
    /// What this node says of itself.
    pub local: watch::Receiver<Arc<Local>>,
    /// Where what others say goes.
    pub out: mpsc::Sender<Told>,
    /// Where it is noted how it stands.
    pub health: Arc<Health>,
}

/// A pair at work.
struct Running {
    speaker: Arc<Speaker>,
    number: u32,
    arrived: mpsc::Sender<Arrived>,
    task: tokio::task::AbortHandle,
}

impl Service {
    /// Takes up what the last agent left.
    pub fn new(parts: Parts) -> Self {
        let kept = Kept::recall(&parts.settings.memory);
        Self {
            shared: Arc::new(Shared {
                settings: parts.settings,
                health: parts.health,
                certificates: parts.certificates,
                local: parts.local,
                out: parts.out,
                kept: Mutex::new(kept),
            }),
            roster: parts.roster,
            uses: parts.uses,
        }
    }

    /// What the last agent left of nodes that there still are, as far as they may still say so.
    pub fn recalled(&self) -> Recalled {
        let roster = self.roster.borrow().clone();
        let kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut recalled = Recalled::default();
        for (name, node) in kept.nodes() {
            // Without a roster: it was true of the nodes that there were when the last agent ended.
            let speaker = roster.as_ref().map(|roster| roster.get(name));
            if speaker == Some(None) {
                continue;
            }
            let speaker = speaker.flatten();
            let locate = |who: Who| Located {
                proves: node.proves && matches!(who, Who::Workload(_)),
                who,
                node: node.number,
            };
            let own = speaker.into_iter().flat_map(|speaker| own_addresses(speaker));
            recalled
                .addresses
                .extend(own.map(|address| (address, locate(Who::Node))));
            let mut identities = BTreeMap::new();
            for resident in &node.residents {
                if speaker.is_some_and(|speaker| !speaker.speaks_for(resident.address)) {
                    continue;
                }
                let id = &resident.spiffe;
                identities.insert(id.text(), id.clone());
                let located = locate(Who::Workload(id.clone()));
                recalled.addresses.push((resident.address, located));
            }
            recalled
                .identities
                .insert(node.number, identities.into_values().collect());
        }
        recalled
    }

    /// Works until the task is aborted.
    pub async fn run(mut self, listener: TcpListener) {
        let mut tasks = JoinSet::new();
        let mut running: BTreeMap<Arc<str>, Running> = BTreeMap::new();
        let (come, mut coming) = mpsc::channel(MOST_HANDSHAKES);
        tasks.spawn(accept(listener, Arc::clone(&self.shared), come));
        let mut told_of_roster = true;
        let timing = self.shared.settings.timing;
        let mut save = Instant::now() + timing.save;
        self.follow(&mut running, &mut tasks).await;
        loop {
            tokio::select! {
                changed = self.roster.changed(), if told_of_roster => {
                    told_of_roster = changed.is_ok();
                    self.follow(&mut running, &mut tasks).await;
                }
                Some(stream) = coming.recv() => self.arrived(stream, &running),
                () = sleep_until(save) => {
                    save = Instant::now() + timing.save;
                    self.save().await;
                }
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a part of the peers failed: restart the agent");
                    }
                }
            }
        }
    }

    /// Begins pairs with nodes that are new, and ends those with nodes that have gone.
    async fn follow(&mut self, running: &mut BTreeMap<Arc<str>, Running>, tasks: &mut JoinSet<()>) {
        let Some(roster) = self.roster.borrow_and_update().clone() else {
            return;
        };
        let health = Arc::clone(&self.shared.health);
        let gone: Vec<Arc<str>> = running
            .iter()
            .filter(|(name, pair)| roster.get(name) != Some(&pair.speaker))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in gone {
            let Some(pair) = running.remove(&name) else {
                continue;
            };
            pair.task.abort();
            // It may be saying something in this moment: that comes before it is forgotten.
            while !pair.task.is_finished() {
                tokio::task::yield_now().await;
            }
            self.forget(&name, pair.number).await;
        }
        let left: Vec<(Arc<str>, u32)> = {
            let kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let left = kept.nodes().filter(|(name, _)| roster.get(name).is_none());
            left.map(|(name, node)| (Arc::clone(name), node.number)).collect()
        };
        for (name, number) in left {
            // The last agent knew it, and it has gone from the configuration since.
            self.forget(&name, number).await;
        }
        for (name, speaker) in roster.iter() {
            if running.contains_key(name) {
                continue;
            }
            let (number, recalled) = {
                let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
                let before = kept.get(name).map(|node| (node.proves, node.residents.clone()));
                (kept.number(name), before)
            };
            let Some(number) = number else {
                tracing::error!(node = %name, "there are more other nodes than this agent can keep apart: nothing is believed of this one");
                continue;
            };
            health.listed(name, &speaker.neighbour.address);
            let (arrived, arriving) = mpsc::channel(1);
            let uses = self.uses.remove(&number).unwrap_or(0);
            let pair = Pair::new(
                Arc::clone(&self.shared),
                Arc::clone(speaker),
                number,
                uses,
                recalled,
                arriving,
            );
            let task = tasks.spawn(pair.run());
            let speaker = Arc::clone(speaker);
            let pair = Running {
                speaker,
                number,
                arrived,
                task,
            };
            running.insert(Arc::clone(name), pair);
        }
    }

    /// There is no such node any more, or it speaks for other addresses.
    async fn forget(&self, name: &Arc<str>, number: u32) {
        self.shared.health.removed(name);
        self.shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        // The agent is stopping where nobody listens.
        let _ = self.shared.out.send(Told::Removed { node: number }).await;
    }

    /// Somebody has dialled, and shown a certificate of our authority.
    fn arrived(&self, stream: TlsStream<TcpStream>, running: &BTreeMap<Arc<str>, Running>) {
        let health = &self.shared.health;
        let (id, expires) = match who_is(&stream) {
            Ok(shown) => shown,
            Err(error) => {
                health.refused(None, "tls", &error.to_string());
                return;
            }
        };
        let roster = self.roster.borrow();
        let Some(speaker) = roster.as_ref().and_then(|roster| roster.of_agent(&id)) else {
            tracing::warn!(caller = %id, "refused who dialled: it is the agent of no node that is known");
            health.refused(None, "not_a_node", id.as_str());
            return;
        };
        let name = &speaker.neighbour.name;
        if **name >= *self.shared.settings.node {
            health.refused(
                Some(name),
                "direction",
                "it dials, and its name is not the lower one",
            );
            return;
        }
        if let Some(pair) = running.get(name) {
            // Where one waits already, this one is hung up upon and comes back.
            let _ = pair.arrived.try_send(Arrived { stream, expires });
        }
    }

    async fn save(&self) {
        let text = self
            .shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .text();
        let Some(text) = text else { return };
        let path = self.shared.settings.memory.clone();
        let to = path.clone();
        let written = tokio::task::spawn_blocking(move || kept::replace(&to, &text?)).await;
        let written = written.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        if let Err(error) = written {
            tracing::warn!(file = %path.display(), %error, "other nodes cannot be remembered for the next start");
            self.shared
                .kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .unsaved();
        }
    }
}

/// Takes connections for ever.
async fn accept(listener: TcpListener, shared: Arc<Shared>, come: mpsc::Sender<TlsStream<TcpStream>>) {
    let handshakes = Arc::new(Semaphore::new(MOST_HANDSHAKES));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        // Nobody closes it.
        let Ok(turn) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                tasks.spawn(greet(stream, Arc::clone(&shared), come.clone(), turn));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection of another agent could not be taken");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn greet(
    stream: TcpStream,
    shared: Arc<Shared>,
    come: mpsc::Sender<TlsStream<TcpStream>>,
    _turn: OwnedSemaphorePermit,
) {
    let server = {
        let certificates = shared.certificates.borrow();
        certificates
            .as_ref()
            .as_ref()
            .map(|mutual| Arc::clone(&mutual.server))
    };
    let Some(server) = server else { return };
    let _ = stream.set_nodelay(true);
    let accepted = TlsAcceptor::from(server).accept(stream);
    let why = match timeout(shared.settings.timing.handshake, accepted).await {
        Ok(Ok(stream)) => {
            // The service ends where nobody listens.
            let _ = come.send(TlsStream::from(stream)).await;
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it did not finish its handshake in time".to_owned(),
    };
    tracing::debug!(why, "refused who dialled");
    shared.health.refused(None, "tls", &why);
}
