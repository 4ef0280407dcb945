// SPDX-License-Identifier: Apache-2.0
//! All pairs of this node: one task for each other node, and a listener for those that dial.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsStream;

use super::allowance::Words;
use super::connection::unix_seconds;
use super::door;
use super::health::{Health, MOST_DISPUTES, State};
use super::memory::{Kept, touch};
use super::pair::{Pair, Recall, Shared};
use super::reach::{Arrived, who_is};
use super::recalled::Recalled;
use super::{Settings, Told};
use crate::identity::kept;
use crate::identity::peers::{Dispute, Local, Roster, Speaker};
use crate::tls::{As, Certificates};

/// Connections with good certificates that wait to be looked at.
const QUEUE: usize = 64;
/// How often it is left on disk that this agent is at work, where nothing is new.
const TOUCH: Duration = Duration::from_secs(30);

/// The pairs, before they run.
pub struct Service {
    shared: Arc<Shared>,
    roster: watch::Receiver<Option<Arc<Roster>>>,
    /// Epochs of the keys in use, by node, as the kernel's map has them.
    uses: HashMap<u32, u64>,
    recalled: Recalled,
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
    /// What this node says of itself; `None` until that is known.
    pub local: watch::Receiver<Option<Arc<Local>>>,
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
        let roster = parts.roster.borrow().clone();
        let hold = parts.settings.hold;
        let recalled = Recalled::new(&kept, roster.as_deref(), hold, unix_seconds());
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
            recalled,
            words: Words::new(Instant::now()),
            touched: Instant::now(),
        }
    }

    /// What the last agent left of nodes that there still are, as far as they may still say so.
    pub fn recalled(&self) -> &Recalled {
        &self.recalled
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
        self.say_disputes(&roster);
        self.shared.health.knows(&roster);
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
            let (number, before) = {
                let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
                let number = kept.number(name);
                (number, kept.get(name).cloned().unwrap_or_default())
            };
            let Some(number) = number else {
                let why = "there are more other nodes than this agent can keep apart: nothing is believed of this one";
                if self.shared.health.stands(name, State::Unknown, Some(why)) {
                    tracing::error!(node = %name, "{why}");
                }
                continue;
            };
            let (arrived, arriving) = mpsc::channel(1);
            let recall = Recall {
                uses: self.uses.remove(&number).unwrap_or(0),
                // The kernel was told of it then, and of no other.
                networks: self.recalled.networks.remove(&number),
                node: before,
            };
            let (speaker, speakers) = watch::channel(Arc::clone(speaker));
            let pair = Pair::new(Arc::clone(&self.shared), speakers, recall, arriving);
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
        let known: HashSet<Dispute> = self.shared.health.disputes().into_iter().collect();
        let new = roster.disputes().iter().take(MOST_DISPUTES);
        let new = new.filter(|dispute| !known.contains(dispute));
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
    }

    /// There is no such node any more, or its agent is another one.
    async fn forget(&self, name: &Arc<str>, number: u32) {
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
        let shown = match who_is(&self.shared, &stream, As::Client) {
            Ok(shown) => shown,
            Err(error) => {
                health.refused(None, "tls", &error.to_string());
                return;
            }
        };
        let roster = self.roster.borrow();
        let Some(speaker) = roster.as_ref().and_then(|roster| roster.of_agent(&shown.id)) else {
            if let Some(unsaid) = self.words.may_say(Instant::now()) {
                tracing::warn!(caller = %shown.id, unsaid, "refused who dialled: it is the agent of no node that is known");
            }
            health.refused(None, "not_a_node", shown.id.as_str());
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
            let _ = pair.arrived.try_send(Arrived {
                stream,
                expires: shown.expires,
            });
        }
    }

    async fn save(&mut self) {
        let new = self
            .shared
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .unwritten();
        let path = self.shared.settings.memory.clone();
        let to = path.clone();
        let is_new = new.is_some();
        if !is_new && self.touched.elapsed() < TOUCH {
            return;
        }
        self.touched = Instant::now();
        let written = tokio::task::spawn_blocking(move || match new {
            Some(new) => {
                let (text, left_out) = new.text()?;
                kept::replace(&to, &text).map(|()| left_out)
            }
            None => touch(&to).map(|()| Vec::new()),
        });
        let written = written
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)));
        for node in written.iter().flatten() {
            let why = "what it says is more than is kept for the next start: of that, this agent's successor knows nothing until the node is heard";
            if self.shared.health.refused(Some(node), "unkept", why) {
                tracing::warn!(file = %path.display(), %node, "{why}");
            }
        }
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
