// SPDX-License-Identifier: Apache-2.0
//! The `peers` identity source at work: the agents of other nodes, and what they are told of this one.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::node::Command;
use super::{AppError, forward};
use crate::config::{Config, Handshake};
use crate::identity::peers::{Agents, Local, Svids, is_reachable};
use crate::kernel::netns;
use crate::kubernetes;
use crate::kubernetes::nodes::{self, follow_nodes};
use crate::peers::{FILE, Health, PROTOCOL, Parts, Recalled, Service, Settings, Timing, Told, follow_local};
use crate::state::Snapshot;
use crate::tls;

/// What other agents say that the node thread has not done yet.
const QUEUE: usize = 64;

/// How long an agent that has just ended may keep the port.
const PORT_TIME: Duration = Duration::from_secs(5);
const PORT_PAUSE: Duration = Duration::from_millis(50);
/// How long a start waits to be told which other nodes there are, where the last agent has not left that.
const FIRST_LIST: Duration = Duration::from_secs(5);

/// Listens at an address, also where another agent is about to leave it.
async fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let deadline = Instant::now() + PORT_TIME;
    loop {
        match TcpListener::bind(listen).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                sleep(PORT_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// The addresses of this machine's interfaces, as far as others can reach them.
fn own_addresses() -> Vec<IpAddr> {
    let addresses = netns::addresses().unwrap_or_default();
    let addresses = addresses.into_iter().map(IpAddr::from);
    addresses.filter(|address| is_reachable(*address)).collect()
}

type Following = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The agents of other nodes, before they are spoken to.
pub(super) struct Peers {
    service: Service,
    listener: TcpListener,
    reloader: tls::Reloader<Option<tls::Mutual>>,
    svids: watch::Receiver<Svids>,
    /// Follows which other nodes there are.
    nodes: Option<Following>,
    local: watch::Sender<Option<Arc<Local>>>,
    said: mpsc::Receiver<Told>,
    health: Arc<Health>,
}

impl Peers {
    /// Takes the address at which others reach this agent, and takes up what the last agent left. Which other nodes there are
    /// is asked of `kubernetes`, if that is given, and in the configuration otherwise. Must be called inside a tokio runtime.
    pub(super) async fn open(
        config: &Config,
        uses: HashMap<u32, u64>,
        svids: Option<watch::Receiver<Svids>>,
        kubernetes: Option<(kubernetes::Client, Arc<kubernetes::Freshness>)>,
        health: Arc<Health>,
    ) -> Result<Self, AppError> {
        let (cert, key, client_ca) = config.api.tls.all().ok_or(AppError::Ended {
            part: "the reading of api.tls",
        })?;
        let files = tls::Files {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: client_ca.clone(),
        };
        let (reloader, certificates) = tls::Reloader::start_mutual(files, PROTOCOL)?;
        let listen = config.identity.peers.listen;
        let listener = bind(listen)
            .await
            .map_err(|source| AppError::Peers { listen, source })?;
        let (roster, mut known) = watch::channel(None);
        let nodes = if let Some((client, freshness)) = kubernetes {
            let settings = nodes::Settings {
                timing: kubernetes::Timing::default(),
                agents: Agents {
                    pattern: config.agent_pattern(),
                    own: config.node.clone(),
                    port: listen.port(),
                },
                here: own_addresses,
                memory: config.state_directory().join(nodes::FILE),
            };
            let recalled = settings.recall();
            let is_known = recalled.is_some();
            roster.send_replace(recalled.map(Arc::new));
            let mut following: Following = Box::pin(follow_nodes(client, settings, freshness, roster));
            if !is_known {
                // What the last agent left is believed of nodes that are known to be there.
                tokio::select! {
                    () = &mut following => {}
                    _ = timeout(FIRST_LIST, known.wait_for(Option::is_some)) => {}
                }
            }
            Some(following)
        } else {
            let listed = config
                .roster(&own_addresses())
                .map_err(|source| AppError::Roster { source })?;
            roster.send_replace(Some(Arc::new(listed)));
            None
        };
        let (told, said) = mpsc::channel(QUEUE);
        let (local, own) = watch::channel(None);
        let service = Service::new(Parts {
            settings: Settings {
                node: config.node.as_str().into(),
                trust_domain: config.trust_domain.clone(),
                proves: config.handshake == Handshake::Auto,
                hold: config.identity.peers.hold,
                memory: config.state_directory().join(FILE),
                timing: Timing::default(),
            },
            roster: known,
            uses,
            certificates,
            local: own,
            out: told,
            health: Arc::clone(&health),
        });
        Ok(Self {
            service,
            listener,
            reloader,
            // Where nobody sends, there are no SVIDs.
            svids: svids.unwrap_or_else(|| watch::channel(Svids::new()).1),
            nodes,
            local,
            said,
            health,
        })
    }

    /// How it stands with the other agents.
    pub(super) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// What the last agent left.
    pub(super) fn recalled(&self) -> &Recalled {
        self.service.recalled()
    }

    /// Has the node told of what the others say, and the others of what is in force here.
    pub(super) fn follow(
        self,
        snapshots: &watch::Receiver<Arc<Snapshot>>,
        commands: &mpsc::Sender<Command>,
    ) -> Vec<JoinHandle<()>> {
        let mut tasks = vec![
            tokio::spawn(follow_local(snapshots.clone(), self.svids, self.local)),
            tokio::spawn(self.reloader.run()),
            tokio::spawn(self.service.run(self.listener)),
            forward(self.said, commands.clone(), Command::Peers),
        ];
        tasks.extend(self.nodes.map(tokio::spawn));
        tasks
    }
}
