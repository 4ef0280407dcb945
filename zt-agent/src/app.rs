// SPDX-License-Identifier: Apache-2.0
//! The composition root: builds every part, wires them, watches over them and drains them. Nothing else starts tasks or
//! threads that live as long as the agent.
//!
//! Down: policy files, workloads and cgroups reach one thread, the [`node`], which owns the kernel side and publishes
//! what is in force. Up: the [`reader`] takes events from the ring buffer to the audit pipeline.

mod control;
mod input;
mod node;
mod reader;
mod signals;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::api::{self, ApiState, Readiness};
use crate::audit::names::NameBook;
use crate::audit::pipeline;
use crate::audit::sqlite::{self, Store, StoreError};
use crate::cgroup::{CgroupError, Watcher};
use crate::config::Config;
use crate::identity::file as identity_file;
use crate::kernel::{Kernel, KernelError, ManagedRoot, Pins};
use crate::metrics::Metrics;
use crate::policy::{CompileError, PolicySet};
use crate::policy_dir;
use crate::problem::Problem;
use crate::state;
use crate::watch::Follower;

use self::control::Handle;
use self::input::Input;
use self::node::{Command, Node, Parts};
use self::reader::Reader;
use self::signals::Signals;

/// How long records may take to reach the store when the agent stops.
const FLUSH_TIME: Duration = Duration::from_secs(10);
/// Names of earlier runs that are kept in memory for the events of earlier runs.
const REMEMBERED_NAMES: usize = 65_536;

/// Why the agent did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The policy or the workloads cannot be used.
    #[error("{}", lines(problems))]
    Input {
        /// Each with its place.
        problems: Vec<Problem>,
    },
    /// The policy does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The cgroup tree.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No managed cgroup exists.
    #[error("none of the managed cgroups exists: {}; start what makes them (kubelet, or systemd for a slice), or set `managedCgroup`", paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "))]
    NothingManaged {
        /// Where they were looked for.
        paths: Vec<PathBuf>,
    },
    /// The audit store.
    #[error("audit.dsn: {0}")]
    Store(#[from] StoreError),
    /// The API.
    #[error(transparent)]
    Serve(#[from] api::ServeError),
    /// A thread or signal handler of the agent.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A part that must live as long as the agent ended.
    #[error("{part} ended unexpectedly; enforcement goes on in the kernel with the last good policy")]
    Ended {
        /// Which.
        part: &'static str,
    },
}

impl AppError {
    /// Whether what the operator wrote is at fault: nothing was started (exit code 64).
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Input { .. }
                | Self::Compile(_)
                | Self::Serve(api::ServeError::NotLoopback { .. })
                | Self::Kernel(KernelError::TooLarge { .. })
        )
    }

    /// Whether this host lacks something (exit code 77).
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Kernel(error) => error.is_unsupported(),
            Self::Cgroup(_) | Self::NothingManaged { .. } => true,
            _ => false,
        }
    }
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Runs the node agent until a signal asks it to stop. Enforcement stays on afterwards.
pub async fn run(config: Config) -> Result<(), AppError> {
    let started = crate::audit::clock::now();
    let (stop_sender, stopping) = watch::channel(false);

    // Input first: nothing is touched when it is bad.
    let input = Input::read(&config)?;
    // From here on a signal waits for its turn: before it is listened for, it would end the agent on the spot.
    let signals = Signals::listen()?;
    let api_endpoint = api::bind_api(config.api.listen).await?;
    let health_endpoint = api::bind_health(config.api.health).await?;

    let roots = present_roots(&config, &input.mount)?;
    let kernel = Kernel::load(&config.bpffs)?;
    let store = Arc::new(open_store(&config).await?);
    let names = Arc::new(NameBook::new(store.remembered(REMEMBERED_NAMES).await?));
    let metrics = Metrics::new();
    let (intake, recorder) = pipeline::pipeline(
        Arc::clone(&store),
        Arc::clone(&names),
        Arc::<Metrics>::clone(&metrics),
        pipeline::Settings::new(&config.cluster, &config.node),
    );
    let recorder = tokio::spawn(recorder.run());
    let (snapshot_sender, snapshots) = state::channel(state::Snapshot::default());
    let (ready_sender, readiness) = watch::channel(Readiness::default());
    let (commands, inbox) = mpsc::channel::<Command>(node::QUEUE);

    let ring = kernel.ring()?;
    let counters = kernel.counter_reader()?;
    let watcher = Watcher::new(input.mount.clone(), input.root_paths.clone())?;
    let cgroups = watcher.snapshot();
    let parts = Parts {
        config: config.clone(),
        mount: input.mount,
        root_paths: input.root_paths,
        roots,
        kernel,
        intake: intake.clone(),
        names: Arc::clone(&names),
        metrics: Arc::clone(&metrics),
        snapshots: snapshot_sender,
        ready: ready_sender,
    };
    let start = move || Node::start(parts, input.policies, input.records, cgroups);
    let node = tokio::task::spawn_blocking(start)
        .await
        .map_err(|_| AppError::Ended {
            part: "the start of the node",
        })??;
    let node = spawn_thread("zt-node", move || node.run(inbox))?;
    let reader = Reader::new(ring, intake.clone(), commands.clone(), stopping.clone());
    let reader = spawn_thread("zt-events", move || reader.run())?;

    let handle = Arc::new(Handle::new(&commands));
    metrics.read_pipeline(Arc::clone(intake.stats()));
    metrics.read_kernel(Box::new(counters));
    metrics.read_snapshots(snapshots.clone());
    let state = ApiState::new(api::Parts {
        cluster: config.cluster.as_str().into(),
        node: config.node.as_str().into(),
        snapshots,
        store: Arc::clone(&store),
        intake: intake.clone(),
        metrics,
        control: handle,
        readiness: readiness.clone(),
        stopping: stopping.clone(),
        started,
    });
    tracing::info!(
        api = %api_endpoint.address(),
        health = %health_endpoint.address(),
        node = %config.node,
        "zt-agent is running"
    );
    let serving = [
        tokio::spawn(api_endpoint.serve(api::router(state.clone()), stopping.clone())),
        tokio::spawn(health_endpoint.serve(api::health_router(state), stopping.clone())),
    ];
    let following = follow(input.policy_follower, input.workload_follower, watcher, &commands);
    let weak = commands.downgrade();
    drop(commands);
    notify(sd_notify::NotifyState::Ready);

    let outcome = wait_for_the_end(signals, node.is_finished_in(), reader.is_finished_in(), &weak).await;

    notify(sd_notify::NotifyState::Stopping);
    tracing::info!("stopping: records are flushed, enforcement stays on");
    stop_sender.send_replace(true);
    for task in following {
        task.abort();
    }
    for task in serving {
        // A server that panicked has said so already.
        let _ = task.await;
    }
    // The reader first: it takes what is still in the ring, and the node must hear of it.
    reader.join().await;
    node.join().await;
    intake.shut_down(FLUSH_TIME);
    let _ = recorder.await;
    if let Some(store) = Arc::into_inner(store) {
        store.close().await?;
    }
    outcome
}

async fn open_store(config: &Config) -> Result<Store, StoreError> {
    Store::open(sqlite::Settings {
        dsn: config.audit.dsn.clone(),
        max_disk_bytes: config.audit.max_disk_bytes,
        retention_days: Some(config.audit.retention_days),
    })
    .await
}

/// Removes every hook, map and pin of ours. Returns the number of pins removed.
pub fn detach(config: &Config) -> Result<usize, AppError> {
    crate::kernel::check_privileges()?;
    Ok(Pins::below(&config.bpffs).remove()?)
}

fn present_roots(config: &Config, mount: &std::path::Path) -> Result<Vec<ManagedRoot>, AppError> {
    let present = node::roots(&config.managed_cgroup.present(mount), mount);
    if present.is_empty() {
        return Err(AppError::NothingManaged {
            paths: config.managed_cgroup.roots(),
        });
    }
    Ok(present)
}

/// Starts what tells the node of changes.
fn follow(
    policies: Follower<policy_dir::Contents>,
    workloads: Follower<identity_file::Contents>,
    watcher: Watcher,
    commands: &mpsc::Sender<Command>,
) -> Vec<JoinHandle<()>> {
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
    let (policy_sender, policy_receiver) = mpsc::channel(1);
    let (workload_sender, workload_receiver) = mpsc::channel(1);
    let (cgroup_sender, cgroup_receiver) = mpsc::channel(1024);
    vec![
        tokio::spawn(policies.run(policy_sender)),
        tokio::spawn(workloads.run(workload_sender)),
        tokio::spawn(async move {
            if let Err(error) = watcher.run(cgroup_sender).await {
                tracing::error!(%error, "the cgroup watcher stopped: new cgroups are known by their ancestors only; restart the agent");
            }
        }),
        forward(policy_receiver, commands.clone(), Command::Policies),
        forward(workload_receiver, commands.clone(), Command::Workloads),
        forward(cgroup_receiver, commands.clone(), Command::Cgroup),
    ]
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
