// SPDX-License-Identifier: Apache-2.0
//! The composition root: builds every part, wires them, watches over them and drains them. Nothing else starts tasks or
//! threads that live as long as the agent.
//!
//! Down: policy files, workloads and cgroups reach one thread, the [`node`], which owns the kernel side and publishes
//! what is in force. Up: the [`reader`] takes events from the ring buffer to the audit pipeline.

mod callers;
mod cluster_nodes;
mod control;
mod descriptors;
mod engine;
mod error;
mod feed;
mod identities;
mod input;
mod memory;
mod newly;
mod node;
mod paths;
mod peers;
mod reader;
mod serving;
mod signals;
mod trail;
mod turn;

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::api::{self, ApiState, Readiness};
use crate::cgroup::Watcher;
use crate::config::{Config, Sources};
use crate::identity::file as identity_file;
use crate::identity::spire::Source;
use crate::kernel::Kernel;
pub use crate::kernel::{ManagedRoot, Removal};
use crate::kubernetes;
use crate::metrics::Metrics;
use crate::policy::PolicySet;
use crate::policy_follow::Copies;
use crate::problem::Problem;
use crate::state;
use crate::watch::Follower;

pub use self::engine::run_engine;
pub use self::error::AppError;
pub use self::feed::engine_to_follow;

use self::callers::Callers;
use self::control::Handle;
use self::feed::PolicyFeed;
use self::input::Input;
use self::node::{Command, Node, Parts};
use self::paths::Paths;
use self::peers::Peers;
use self::reader::{Gathering, Reader};
use self::serving::Endpoints;
use self::signals::Signals;
use self::trail::Trail;
use self::turn::Turn;

/// Starts the node, which takes a while, where nobody waits for it.
async fn off_the_runtime(
    start: impl FnOnce() -> Result<Node, AppError> + Send + 'static,
) -> Result<Node, AppError> {
    let part = "the start of the node";
    let started = tokio::task::spawn_blocking(start).await;
    started.map_err(|_| AppError::Ended { part })?
}

/// Runs the node agent until a signal asks it to stop. Enforcement stays on afterwards.
///
/// Where another agent works on the same pins, this one waits for its turn; with `take_over` it asks the other to end.
/// `sources` are read again for what may change meanwhile.
#[expect(
    clippy::too_many_lines,
    reason = "the parts, put together in the order in which they need each other"
)]
pub async fn run(config: Config, sources: Sources, take_over: bool) -> Result<(), AppError> {
    let started = crate::audit::clock::now();
    memory::keep_large_apart();
    let (stop_sender, stopping) = watch::channel(false);

    // The way to a policy engine may need it.
    let own = identities::own(&config).await;
    // Input first: nothing is touched when it is bad.
    let mut input = Input::read(&config).await?;
    // From here on a signal waits for its turn: before it is listened for, it would end the agent on the spot.
    let mut signals = Signals::listen()?;
    let (callers, configured) = Callers::follow(&config, sources)?;
    let Some(turn) = turn::wait(&config, take_over, &mut signals).await? else {
        return Ok(());
    };
    if turn.waited {
        // Who knows how long it was.
        input = Input::read(&config).await?;
    }
    let Turn { lock, verified, .. } = turn;
    let lock = Arc::new(lock);
    let metrics = Metrics::new();
    let own = own.map(|own| own.shown(&metrics));
    let endpoints = Endpoints::bind(&config, turn.waited, &metrics, &configured).await?;
    let roots = node::roots(&config.managed_cgroup.present(&input.mount), &input.mount);
    let kernel = Kernel::load(Arc::clone(&lock), turn::wanted(&config), verified)?;
    let trail = Trail::open(&config, &metrics).await?;
    let (stored, intake) = (trail.store.ring_mark().await?, trail.intake.clone());
    let (publisher, snapshots) = state::channel(state::Snapshot::default());
    let policies_in_force = publisher.policies();
    let newly = Arc::new(newly::Newly::default());
    let (ready_sender, readiness) = watch::channel(Readiness::default());
    let (commands, inbox) = mpsc::channel::<Command>(node::QUEUE);
    let (ring, counters) = (kernel.ring()?, kernel.counter_reader()?);
    let watcher = Watcher::new(input.mount.clone(), input.root_paths.clone())?;
    let epochs = kernel.node_epochs();
    let (cgroups, sources, followers) =
        identities::open(&config, &mut input, &watcher, &metrics, epochs).await?;
    let paths = Arc::new(Paths::new(
        followers.peers.as_ref().map(Peers::health),
        Arc::clone(&metrics),
    ));
    let (by_hand, to_record) = mpsc::unbounded_channel();
    let recording = tokio::spawn(control::record(to_record, intake.clone(), commands.downgrade()));
    let parts = Parts {
        config: config.clone(),
        mount: input.mount,
        root_paths: input.root_paths,
        roots,
        kernel,
        intake: intake.clone(),
        by_hand,
        names: Arc::clone(&trail.names),
        metrics: Arc::clone(&metrics),
        snapshots: publisher,
        ready: ready_sender,
        newly: Arc::clone(&newly),
        paths: Arc::clone(&paths),
    };
    let node = off_the_runtime(move || Node::start(parts, input.policies, sources, cgroups)).await?;
    let node = spawn_thread("zt-node", move || node.run(inbox))?;
    let reader = Reader::new(
        ring,
        stored,
        intake.clone(),
        commands.clone(),
        stopping.clone(),
        Gathering { newly, paths },
    );
    let reader = spawn_thread("zt-events", move || reader.run())?;

    let (kept, editor) = input.policy_feed.editor(&config, input.kubernetes.as_ref());
    metrics.read_kernel(Box::new(counters));
    metrics.read_snapshots(snapshots.clone());
    let followed = snapshots.clone();
    let state = ApiState::new(api::Parts {
        cluster: config.cluster.as_str().into(),
        node: config.node.as_str().into(),
        snapshots,
        policies_in_force,
        editor,
        kept,
        told_policies: Copies::beside(trail.store.local()),
        store: Arc::clone(&trail.store),
        intake,
        source: input.policy_feed.status(&metrics),
        metrics,
        control: Arc::new(Handle::new(&commands)),
        readiness: readiness.clone(),
        stopping: stopping.clone(),
        started,
        service: api::Service::Node,
        configuration: configured,
        spire: followers.spire.as_ref().map(Source::health),
        kubernetes: followers.pods.as_ref().map(kubernetes::Source::health),
        peers: followers.peers.as_ref().map(Peers::health),
        stopped_elsewhere: input.policy_feed.stopped_elsewhere(None),
    });
    let serving = endpoints.serve(&config, &state, &stopping);
    let changes = tokio::spawn(api::record_changes(state));
    let mut following = follow(
        input.policy_feed,
        followed.clone(),
        input.workload_follower,
        identities::follow(watcher, followers, &followed, &commands),
        &commands,
    );
    following.push(callers.start());
    let weak = commands.downgrade();
    drop(commands);
    notify(sd_notify::NotifyState::Ready);

    let outcome = wait_for_the_end(signals, node.is_finished_in(), reader.is_finished_in(), &weak).await;

    notify(sd_notify::NotifyState::Stopping);
    tracing::info!("stopping: records are flushed, enforcement stays on");
    stop_sender.send_replace(true);
    following.into_iter().chain(own).for_each(|task| task.abort());
    // A server that panicked has said so already.
    let _ = futures::future::join_all(serving).await;
    // The reader first: it takes what is still in the ring, and the node must hear of it.
    reader.join().await;
    node.join().await;
    // The node has gone, and with it what changes policy.
    let _ = changes.await;
    // What is not stored by now is recorded by the next start.
    recording.abort();
    trail.close().await?;
    // Last: whoever waits finds the records stored, the ports free, and nobody at the maps.
    drop(lock);
    outcome
}

/// Removes every hook, map and pin of ours, of every version.
pub fn detach(config: &Config) -> Result<Removal, AppError> {
    Ok(crate::kernel::detach(&config.bpffs)?)
}

/// The managed cgroups that are there, with their ids.
pub fn managed_roots(config: &Config, mount: &Path) -> Vec<ManagedRoot> {
    node::roots(&config.managed_cgroup.present(mount), mount)
}

/// Break-glass without an agent: has nothing refused on this node, or ends that. The next start of the agent records
/// it. Whether it was not so before.
pub fn break_glass(bpffs: &Path, on: bool) -> Result<bool, AppError> {
    Ok(crate::kernel::set_observe_all(bpffs, on)?)
}

/// Starts what tells the node of changes.
fn follow(
    policies: PolicyFeed,
    snapshots: watch::Receiver<Arc<state::Snapshot>>,
    workloads: Option<Follower<identity_file::Contents>>,
    mut following: Vec<JoinHandle<()>>,
    commands: &mpsc::Sender<Command>,
) -> Vec<JoinHandle<()>> {
    let (policy_sender, policy_receiver) = mpsc::channel(1);
    following.push(tokio::spawn(policies.run(policy_sender, snapshots)));
    following.push(forward(policy_receiver, commands.clone(), Command::Policies));
    if let Some(workloads) = workloads {
        let (workload_sender, workload_receiver) = mpsc::channel(1);
        following.push(tokio::spawn(workloads.run(workload_sender)));
        following.push(forward(workload_receiver, commands.clone(), Command::Workloads));
    }
    following
}

/// Passes on to the node thread what comes.
fn forward<T: Send + 'static>(
    mut from: mpsc::Receiver<T>,
    to: mpsc::Sender<Command>,
    wrap: impl Fn(T) -> Command + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(value) = from.recv().await {
            if to.send(wrap(value)).await.is_err() {
                return;
            }
        }
    })
}

/// Ends with a signal, or when a part that must not end does. `SIGUSR1` turns the kernel side's diagnostics on or off.
async fn wait_for_the_end(
    mut signals: Signals,
    node: impl Future<Output = ()>,
    reader: impl Future<Output = ()>,
    commands: &mpsc::WeakSender<Command>,
) -> Result<(), AppError> {
    let (mut node, mut reader) = (pin!(node), pin!(reader));
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            () = &mut node => return Err(AppError::Ended { part: "the node thread" }),
            () = &mut reader => return Err(AppError::Ended { part: "the event reader" }),
            _ = signals.diagnose.recv() => {
                if let Some(commands) = commands.upgrade() {
                    // A node thread that is gone has been noticed above.
                    let _ = commands.send(Command::ToggleDiagnostics).await;
                }
            }
        }
    }
}

/// Tells systemd, where it asked to be told.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell systemd");
    }
}

/// A thread whose end can be awaited.
struct Worker {
    handle: std::thread::JoinHandle<()>,
    done: watch::Receiver<()>,
}

impl Worker {
    /// Completes when the thread has ended.
    fn is_finished_in(&self) -> impl Future<Output = ()> + use<> {
        let mut done = self.done.clone();
        async move {
            // The sender lives in the thread: an error is the thread's end.
            while done.changed().await.is_ok() {}
        }
    }

    async fn join(self) {
        self.is_finished_in().await;
        if self.handle.join().is_err() {
            tracing::error!("a thread of the agent panicked");
        }
    }
}

fn spawn_thread(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<Worker, AppError> {
    let (sender, done) = watch::channel(());
    let handle = std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let _sender = sender;
            run();
        })
        .map_err(|source| AppError::System {
            what: "start a thread",
            source,
        })?;
    Ok(Worker { handle, done })
}

/// What a policy was parsed from and to.
#[derive(Clone, Debug, Default)]
struct Loaded {
    policies: Arc<PolicySet>,
    error: Option<Arc<Vec<Problem>>>,
}
