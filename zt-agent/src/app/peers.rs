// SPDX-License-Identifier: Apache-2.0
//! The `peers` identity source at work: the agents of other nodes, and what they are told of this one.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::cluster_nodes::own_addresses;
use super::node::Command;
use super::{AppError, forward};
use crate::config::{Config, Handshake};
use crate::identity::peers::{Local, Svids};
use crate::kubernetes;
use crate::peers::{FILE, Health, PROTOCOL, Parts, Recalled, Service, Settings, Timing, Told, follow_local};
use crate::state::Snapshot;
use crate::tls;

/// What other agents say that the node thread has not done yet.
const QUEUE: usize = 64;

/// How long an agent that has just ended may keep the port.
const PORT_TIME: Duration = Duration::from_secs(5);
const PORT_PAUSE: Duration = Duration::from_millis(50);

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

/// The agents of other nodes, before they are spoken to.
pub(super) struct Peers {
    service: Service,
    listener: TcpListener,
    reloader: tls::Reloader<Option<tls::Mutual>>,
    svids: watch::Receiver<Svids>,
    local: watch::Sender<Option<Arc<Local>>>,
    said: mpsc::Receiver<Told>,
    health: Arc<Health>,
}

impl Peers {
    /// Takes the address at which others reach this agent, and takes up what the last agent left. Which other nodes there are
    /// `nodes` says, if that is given, and the configuration otherwise. Must be called inside a tokio runtime.
    pub(super) async fn open(
        config: &Config,
        uses: HashMap<u32, u64>,
        svids: Option<watch::Receiver<Svids>>,
        nodes: Option<kubernetes::Nodes>,
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
        let roster = if let Some(nodes) = nodes {
            nodes
        } else {
            let listed = config
                .roster(&own_addresses())
                .map_err(|source| AppError::Roster { source })?;
            watch::channel(Some(Arc::new(listed))).1
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
            roster,
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
        vec![
            tokio::spawn(follow_local(snapshots.clone(), self.svids, self.local)),
            tokio::spawn(self.reloader.run()),
            tokio::spawn(self.service.run(self.listener)),
            forward(self.said, commands.clone(), Command::Peers),
        ]
    }
}
