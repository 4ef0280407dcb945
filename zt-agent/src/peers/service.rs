// SPDX-License-Identifier: Apache-2.0
//! All pairs of this node: one task for each other node, and a listener for those that dial.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsStream;

use super::allowance::Words;
use super::connection::unix_seconds;
use super::door;
use super::health::Health;
use super::memory::{Kept, touch};
use super::pair::{Pair, Recall, Shared};
use super::reach::{Arrived, who_is};
use super::{Settings, Told};
use crate::identity::kept;
use crate::identity::peers::{Local, Located, Roster, Speaker, Who};
use crate::spiffe_id::SpiffeId;
use crate::tls::Certificates;

/// Connections with good certificates that wait to be looked at.
const QUEUE: usize = 64;
/// How often it is left on disk that this agent is at work, where nothing is new.
const TOUCH: Duration = Duration::from_secs(30);

/// What the last agent left, for the start of the node thread.
#[derive(Debug, Default)]
pub struct Recalled {
    /// Who is at addresses of other nodes.
    pub addresses: Vec<(IpAddr, Located)>,
    /// Who lives on them, by the node's number.
    pub identities: HashMap<u32, Vec<SpiffeId>>,
    /// About which addresses their word is all there is to know.
    pub networks: HashMap<u32, Vec<IpNet>>,
}

/// The pairs, before they run.
pub struct Service {
    shared: Arc<Shared>,
    roster: watch::Receiver<Option<Arc<Roster>>>,
    /// Epochs of the keys in use, by node, as the kernel's map has them.
    uses: HashMap<u32, u64>,
    words: Words,
    touched: Instant,
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
    speaker: watch::Sender<Arc<Speaker>>,
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
            words: Words::new(Instant::now()),
            touched: Instant::now(),
        }
    }

    /// What the last agent left of nodes that there still are, as far as they may still say so.
    pub fn recalled(&self) -> Recalled {
        let roster = self.roster.borrow().clone();
        let kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut recalled = Recalled::default();
        let now = unix_seconds();
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
            let is_disputed = |address| speaker.is_some_and(|speaker| speaker.is_disputed(address));
            let who = |address, who| if is_disputed(address) { Who::Disputed } else { who };
            let own = speaker.into_iter().flat_map(|speaker| speaker.own_addresses());
            recalled
                .addresses
                .extend(own.map(|address| (address, locate(who(address, Who::Node)))));
            if kept.rest(node, self.shared.settings.hold, now).is_zero() {
                continue;
            }
            let held = node.held_at(now);
            let lives: HashSet<&SpiffeId> = held.iter().map(|(id, _)| id).collect();
            for resident in &node.residents {
                let address = resident.address;
                if speaker.is_some_and(|speaker| !speaker.speaks_for(address))
                    || !lives.contains(&resident.spiffe)
                {
                    continue;
                }
                let who = who(address, Who::Workload(resident.spiffe.clone()));
                recalled.addresses.push((address, locate(who)));
            }
            recalled.networks.insert(node.number, node.networks.clone());
            let identities = held.into_iter().map(|(id, _)| id).collect();
            recalled.identities.insert(node.number, identities);
        }
        recalled
    }

    /// Works until the task is aborted.
    pub async fn run(mut self, listener: TcpListener) {
        let mut tasks = JoinSet::new();
        let mut running: BTreeMap<Arc<str>, Running> = BTreeMap::new();
        let (come, mut coming) = mpsc::channel(QUEUE);
        let roster = self.roster.clone();
        tasks.spawn(door::accept(listener, Arc::clone(&self.shared), roster, come));
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
        self.say_disputes(&roster);
        let is_same = |name: &str, pair: &Running| {
            let agent = roster.get(name).map(|speaker| &speaker.agent);
            agent == Some(&pair.speaker.borrow().agent)
        };
        let gone: Vec<Arc<str>> = running
            .iter()
            .filter(|(name, pair)| !is_same(name, pair))
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
            if let Some(pair) = running.get(name) {
                // What else it has goes on.
                pair.speaker.send_if_modified(|before| {
                    let differs = *before != *speaker;
                    if differs {
                        *before = Arc::clone(speaker);
                    }
                    differs
                });
                continue;
            }
            let (number, recalled) = {
                let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
                let now = unix_seconds();
                let before = kept.get(name).map(|node| Recall {
                    proves: node.proves,
                    residents: node.residents.clone(),
                    held: node.held_at(now),
                    networks: node.networks.clone(),
                    rest: kept.rest(node, self.shared.settings.hold, now),
                });
                (kept.number(name), before.unwrap_or_default())
            };
            let Some(number) = number else {
                tracing::error!(node = %name, "there are more other nodes than this agent can keep apart: nothing is believed of this one");
                continue;
            };
            health.listed(name, &speaker.neighbour.address);
            let (arrived, arriving) = mpsc::channel(1);
            let uses = self.uses.remove(&number).unwrap_or(0);
            let (speaker, speakers) = watch::channel(Arc::clone(speaker));
            let pair = Pair::new(
                Arc::clone(&self.shared),
                speakers,
                number,
                uses,
                recalled,
                arriving,
            );
            let task = tasks.spawn(pair.run());
            let pair = Running {
                speaker,
                number,
                arrived,
                task,
            };
            running.insert(Arc::clone(name), pair);
        }
    }

    /// Says what nodes disagree about, where that is new.
    fn say_disputes(&mut self, roster: &Roster) {
        let known = self.shared.health.status().disputes;
        let new = roster
            .disputes()
            .iter()
            .filter(|dispute| !known.contains(dispute));
        for dispute in new {
            let Some(unsaid) = self.words.may_say(Instant::now()) else {
                continue;
            };
            let claimants: Vec<&str> = dispute.claimants.iter().map(|name| &**name).collect();
            let (net, claimants) = (dispute.net, claimants.join(", "));
            match &dispute.owner {
                Some(owner) => {
                    tracing::warn!(%net, %owner, claimants, unsaid, "addresses of one node are claimed by others, which are not believed about them");
                }
                None => {
                    tracing::warn!(%net, claimants, unsaid, "addresses are claimed by several nodes: whoever is there is unknown");
                }
            }
        }
        self.shared.health.disputed(roster.disputes());
    }

    /// There is no such node any more, or its agent is another one.
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
    fn arrived(&mut self, stream: TlsStream<TcpStream>, running: &BTreeMap<Arc<str>, Running>) {
        let health = Arc::clone(&self.shared.health);
        let (id, expires) = match who_is(&stream) {
            Ok(shown) => shown,
            Err(error) => {
                health.refused(None, "tls", &error.to_string());
                return;
            }
        };
        let roster = self.roster.borrow();
        let Some(speaker) = roster.as_ref().and_then(|roster| roster.of_agent(&id)) else {
            if let Some(unsaid) = self.words.may_say(Instant::now()) {
                tracing::warn!(caller = %id, unsaid, "refused who dialled: it is the agent of no node that is known");
            }
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

    async fn save(&mut self) {
        let text = self
            .shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .text();
        let path = self.shared.settings.memory.clone();
        let to = path.clone();
        let is_new = text.is_some();
        if !is_new && self.touched.elapsed() < TOUCH {
            return;
        }
        self.touched = Instant::now();
        let written = tokio::task::spawn_blocking(move || match text {
            Some(text) => kept::replace(&to, &text?),
            None => touch(&to),
        });
        let written = written
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)));
        if let Err(error) = written {
            tracing::warn!(file = %path.display(), %error, "other nodes cannot be remembered for the next start");
            if is_new {
                self.shared
                    .kept
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .unsaved();
            }
        }
    }
}
