// SPDX-License-Identifier: Apache-2.0
//! The identity sources at work: what tells the node thread who is who.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::cluster_nodes::{self, ClusterNodes};
use super::input::Input;
use super::node::{Command, DEPTH, Sources};
use super::peers::Peers;
use super::{AppError, descriptors, forward};
use crate::cgroup::{CgroupEvent, Watcher};
use crate::config::{Config, IdentitySource, OtherPods};
use crate::identity::kubernetes::Changes;
use crate::identity::spire::{self, Source, own};
use crate::kubernetes;
use crate::metrics::Metrics;
use crate::nri;
use crate::peers;
use crate::state::Snapshot;

/// How long the SPIRE agent may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Descriptors for a process of each cgroup that SPIRE is asked about, and as many for all else.
const DESCRIPTORS: u64 = 32_768;
/// How long a start waits for the first list of pods: what is attached already goes on meanwhile, and what is not has to wait.
const FIRST_LIST: Duration = Duration::from_secs(5);
/// How often it is looked whether the first certificate has come.
const LOOK: Duration = Duration::from_millis(20);

/// The sources that go on telling.
pub(super) struct Followed {
    pub(super) spire: Option<Source>,
    pub(super) pods: Option<kubernetes::Source>,
    /// What SPIRE is asked about pods.
    selectors: watch::Sender<spire::Pods>,
    /// The way to where Services are told of, and where it is noted how that stands.
    pub(super) services: Option<(kubernetes::Client, Arc<kubernetes::Freshness>)>,
    /// How containers are made to wait for it, and where it is noted how that stands.
    nri: Option<(nri::Settings, Arc<nri::Health>)>,
    /// The agents of other nodes.
    pub(super) peers: Option<Peers>,
    /// Follows which nodes the cluster has.
    nodes: Option<JoinHandle<()>>,
}

/// What SPIRE can be asked about pods.
fn selectors(changes: &Changes) -> spire::Pods {
    Arc::new(changes.selectors.iter().cloned().collect())
}

/// The cgroups there are, what is known of them to begin with, and the sources. Must be called inside a tokio runtime.
pub(super) async fn open(
    config: &Config,
    input: &mut Input,
    watcher: &Watcher,
    metrics: &Metrics,
    node_epochs: HashMap<u32, u64>,
) -> Result<(BTreeMap<PathBuf, u64>, Sources, Followed), AppError> {
    let cgroups = watcher.snapshot();
    for source in [
        IdentitySource::File,
        IdentitySource::Kubernetes,
        IdentitySource::Spire,
    ] {
        if config.identity.has(source) {
            metrics.names_come_from(source.name());
        }
    }
    let services = config.identity.has(IdentitySource::Kubernetes);
    let peers_health = Arc::new(peers::Health::default());
    let cluster = services.then(|| ClusterNodes::recall(config));
    let seen = cluster.as_ref().map(ClusterNodes::seen);
    let mut pods = pods(config, input, &cgroups, &peers_health, seen.clone()).await?;
    if let Some(source) = &pods {
        metrics.read_kubernetes(source.health());
    }
    let asked = input.kubernetes.clone().zip(pods.as_ref());
    let nodes = cluster
        .zip(asked)
        .map(|(cluster, (client, source))| cluster.follow(client, Arc::clone(&source.health().freshness)));
    let settings = spire::Settings {
        admin_socket: config.identity.spire_admin_socket.clone(),
        trust_domain: config.trust_domain.clone(),
        mount: input.mount.clone(),
        roots: input.root_paths.clone(),
        depth: DEPTH as usize,
        on_expiry: config.identity.on_expiry,
        patience: PATIENCE,
        memory: config.state_directory().join(spire::FILE),
    };
    let wanted = config.identity.has(IdentitySource::Spire);
    if wanted {
        descriptors::raise(DESCRIPTORS);
    }
    let mut spire = wanted.then(|| Source::new(settings, cgroups.clone()));
    if let Some(source) = &spire {
        metrics.read_spire(source.health());
    }
    let known = spire.as_ref().map(|source| source.known().clone());
    let changes = pods.as_mut().map(kubernetes::Source::changes).unwrap_or_default();
    let (selectors, told) = watch::channel(selectors(&changes));
    if let (Some(source), Some(_)) = (&mut spire, &pods) {
        source.ask_about(told);
    }
    let peers = if config.identity.has(IdentitySource::Peers) {
        let svids = spire.as_mut().map(Source::show);
        // A list in the configuration is what counts.
        let mut seen = seen.filter(|_| config.identity.peers.nodes.is_empty());
        if let Some(seen) = &mut seen {
            cluster_nodes::known(seen).await;
        }
        Some(Peers::open(config, node_epochs, svids, seen, peers_health).await?)
    } else {
        None
    };
    if let Some(peers) = &peers {
        metrics.read_peers(peers.health());
    }
    let sources = Sources {
        peers: peers
            .as_ref()
            .map(|peers| peers.recalled().clone())
            .unwrap_or_default(),
        declared: std::mem::take(&mut input.records),
        attested: known.unwrap_or_default(),
        pods: changes,
        services: services.then(|| config.state_directory().join(crate::identity::services::FILE)),
    };
    let services = pods.as_ref().and_then(|source| {
        let freshness = Arc::clone(&source.health().freshness);
        Some((input.kubernetes.clone()?, freshness))
    });
    let followed = Followed {
        spire,
        pods,
        selectors,
        services,
        nri: nri_plugin(config, input, metrics),
        peers,
        nodes,
    };
    Ok((cgroups, sources, followed))
}

/// The plugin of the container runtime, if there is to be one.
fn nri_plugin(
    config: &Config,
    input: &Input,
    metrics: &Metrics,
) -> Option<(nri::Settings, Arc<nri::Health>)> {
    let socket = config.identity.nri_socket.clone()?;
    let settings = nri::Settings::new(socket, config.identity.nri_wait, input.root_paths.clone());
    let health = Arc::new(nri::Health::default());
    metrics.read_nri(Arc::clone(&health));
    Some((settings, health))
}

/// The `kubernetes` source, if identities come from there, with what it could learn at once.
async fn pods(
    config: &Config,
    input: &Input,
    cgroups: &BTreeMap<PathBuf, u64>,
    peers: &Arc<peers::Health>,
    nodes: Option<kubernetes::Nodes>,
) -> Result<Option<kubernetes::Source>, AppError> {
    let Some((client, nodes)) = input.kubernetes.clone().zip(nodes) else {
        return Ok(None);
    };
    let naming = config
        .identity
        .template
        .fixed(&config.trust_domain, &config.cluster)?;
    let settings = kubernetes::Settings {
        client,
        naming,
        node: config.node.clone(),
        roots: input.root_paths.clone(),
        cluster: config.cluster_cidrs.clone(),
        nodes,
        memory: config.state_directory().join(kubernetes::FILE),
        timing: kubernetes::Timing::default(),
        others: others(config, peers),
    };
    Ok(Some(
        kubernetes::Source::start(settings, cgroups, FIRST_LIST).await,
    ))
}

/// Whether the API is to tell of pods of other nodes. Where all of these have agents that tell of them, it need not.
fn others(config: &Config, peers: &Arc<peers::Health>) -> kubernetes::Others {
    let settings = &config.identity.peers;
    // A list of nodes need not have all of them.
    let all = config.identity.has(IdentitySource::Peers) && settings.nodes.is_empty();
    if !all {
        peers.others_are_asked("`identity.peers.nodes` need not have all nodes");
        return kubernetes::Others::default();
    }
    if settings.pods == OtherPods::Always {
        peers.others_are_asked("`identity.peers.pods: always`");
        return kubernetes::Others::default();
    }
    let peers = Arc::clone(peers);
    kubernetes::Others(Box::new(move |asked| peers.others_wanted(asked, Instant::now())))
}

/// What keeps the agent's own SVID, and how that stands.
pub(super) struct Own {
    task: JoinHandle<()>,
    health: Arc<own::Health>,
}

impl Own {
    /// Has metrics and the API say how it stands.
    pub(super) fn shown(self, metrics: &Metrics) -> JoinHandle<()> {
        metrics.read_svid(self.health);
        self.task
    }
}

/// Keeps the agent's own SVID on disk, if its certificates are SPIRE's. Returns when there is one, or after a while: what
/// needs it waits for it by itself.
pub(super) async fn own(config: &Config) -> Option<Own> {
    if !config.api.tls.spire {
        return None;
    }
    let health = Arc::new(own::Health::default());
    let task = tokio::spawn(own::keep(
        config.identity.spire_socket.clone(),
        config.trust_domain.clone(),
        config.svid_directory(),
        Arc::clone(&health),
    ));
    let there = async {
        while config.api.tls.all().is_some_and(|(cert, _, _)| !cert.exists()) {
            sleep(LOOK).await;
        }
    };
    if timeout(PATIENCE, there).await.is_err() {
        tracing::warn!(socket = %config.identity.spire_socket.display(), "SPIRE has given this agent no certificate yet; going on without");
    }
    Some(Own { task, health })
}

/// Has the node told of cgroups, and of who SPIRE says they are: of a cgroup always first that it exists.
pub(super) fn follow(
    watcher: Watcher,
    followed: Followed,
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    commands: &mpsc::Sender<Command>,
) -> Vec<JoinHandle<()>> {
    let (cgroup_sender, mut cgroup_receiver) = mpsc::channel(1024);
    let (to_spire, for_spire) = mpsc::unbounded_channel::<CgroupEvent>();
    let (to_pods, for_pods) = mpsc::unbounded_channel::<CgroupEvent>();
    let to_node = commands.clone();
    let mut tasks = vec![
        tokio::spawn(async move {
            if let Err(error) = watcher.run(cgroup_sender).await {
                tracing::error!(%error, "the cgroup watcher stopped: new cgroups are known by their ancestors only; restart the agent");
            }
        }),
        tokio::spawn(async move {
            while let Some(event) = cgroup_receiver.recv().await {
                if to_node
                    .send(Command::Cgroup(event.clone(), Instant::now()))
                    .await
                    .is_err()
                {
                    return;
                }
                // Nobody listens without the source.
                let _ = to_spire.send(event.clone());
                let _ = to_pods.send(event);
            }
        }),
    ];
    if let Some(source) = followed.spire {
        let (said_sender, said) = mpsc::channel(1024);
        tasks.push(tokio::spawn(source.run(for_spire, said_sender)));
        tasks.push(forward(said, commands.clone(), Command::Attested));
    }
    if let Some(source) = followed.pods {
        let (said_sender, said) = mpsc::channel(16);
        tasks.push(tokio::spawn(source.run(for_pods, said_sender)));
        let asked = followed.selectors;
        tasks.push(forward(said, commands.clone(), move |changes| {
            if changes.workloads.is_some() {
                asked.send_replace(selectors(&changes));
            }
            Command::Pods(changes)
        }));
    }
    if let Some((client, freshness)) = followed.services {
        let (said_sender, said) = mpsc::channel(16);
        let timing = kubernetes::Timing::default();
        let following = kubernetes::services::follow_services(client, timing, freshness, said_sender);
        tasks.push(tokio::spawn(following));
        tasks.push(forward(said, commands.clone(), Command::Services));
    }
    if let Some(peers) = followed.peers {
        tasks.extend(peers.follow(snapshots, commands));
    }
    tasks.extend(followed.nodes);
    if let Some((settings, health)) = followed.nri {
        let following = nri::follow(settings, snapshots.clone(), health);
        tasks.push(tokio::spawn(async move {
            following.await;
        }));
    }
    tasks
}
