// SPDX-License-Identifier: Apache-2.0
//! The node thread: the single writer. It owns the kernel side, merges policy, workloads and cgroups into what shall be
//! in force, puts that in force, sweeps, and publishes it. Everything it is told comes through one queue.

mod force;
mod namespaces;
mod publish;
mod switches;
mod wellbeing;
mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use zt_common::abi::Connection;
use zt_common::entry::AllowKey;

use super::{AppError, Loaded};
use crate::api::{ControlError, NodeStatus, Readiness};
use crate::audit::names::NameBook;
use crate::audit::pipeline::{ApiEvent, Intake};
use crate::cgroup::{self, CgroupEvent};
use crate::config::Config;
use crate::identity::{WorkloadRecord, file as identity_file};
use crate::kernel::netns::{self, Namespaces};
use crate::kernel::{Kernel, KernelError, KernelLog, ManagedRoot, RefusedSocket};
use crate::metrics::Metrics;
use crate::policy::{self, PolicySet};
use crate::policy_dir;
use crate::spiffe_id::SpiffeId;
use crate::state::Snapshot;

pub(super) use self::workloads::{read as read_workloads, roots};

/// Commands that may wait.
pub(super) const QUEUE: usize = 4096;
/// How often hooks are checked, namespaces looked at, and the kernel's log read.
const TICK: Duration = Duration::from_secs(1);
/// How often all namespaces' addresses are read again.
const REFRESH: Duration = Duration::from_secs(15);

/// Something for the node thread to do.
pub(super) enum Command {
    /// The policy documents on disk, after a change.
    Policies(policy_dir::Contents),
    /// The workloads file, after a change.
    Workloads(identity_file::Contents),
    /// A managed cgroup came or went.
    Cgroup(CgroupEvent),
    /// A workload bound a UDP port.
    UdpBound {
        /// The workload's cgroup id.
        workload: u64,
        /// The namespace it did so in.
        netns: u64,
        /// The process that did.
        pid: u32,
    },
    /// Turns the kernel side's diagnostics on or off.
    ToggleDiagnostics,
    /// A socket listens whose owner no hook saw.
    UnownedListener,
    /// A decision was made in this namespace, by this process.
    Seen {
        /// The namespace.
        netns: u64,
        /// The process.
        pid: u32,
    },
    /// A fenced socket waits.
    Refused(RefusedSocket),
    /// Break-glass, on or off.
    ObserveAll {
        /// Whether it shall be on.
        on: bool,
        /// Whether it is.
        answer: oneshot::Sender<Result<(), ControlError>>,
    },
    /// A change of mode that was made by hand is in the trail.
    Recorded,
    /// What the kernel says now.
    Status(oneshot::Sender<NodeStatus>),
}

/// What the node thread is made of.
pub(super) struct Parts {
    pub config: Config,
    pub mount: PathBuf,
    pub root_paths: Vec<PathBuf>,
    pub roots: Vec<ManagedRoot>,
    pub kernel: Kernel,
    pub intake: Intake,
    /// Takes changes of mode that were made by hand; each is answered with [`Command::Recorded`].
    pub by_hand: mpsc::UnboundedSender<ApiEvent>,
    pub names: Arc<NameBook>,
    pub metrics: Arc<Metrics>,
    pub snapshots: watch::Sender<Arc<Snapshot>>,
    pub ready: watch::Sender<Readiness>,
}

/// The node thread's state.
pub(super) struct Node {
    parts: Parts,
    settings: Arc<policy::Settings>,
    loaded: Loaded,
    records: Vec<WorkloadRecord>,
    cgroups: BTreeMap<PathBuf, u64>,
    paths: HashMap<u64, PathBuf>,
    /// Identities that the table in force was compiled for: they only grow under one revision, so that a workload that
    /// goes does not cost a swap.
    identities: BTreeSet<SpiffeId>,
    revision: u64,
    observe_all: bool,
    /// What of [`OBSERVE_ALL`] this agent last read or wrote in the kernel.
    observe_written: bool,
    /// Changes of mode that were made without this agent, and not recorded yet.
    unrecorded: Vec<bool>,
    diagnostics: bool,
    /// Why the agent is not ready, as it was said last.
    troubles: Option<String>,
    host_netns: u64,
    namespaces: Namespaces,
    refreshed: Instant,
    older: Vec<(u64, Connection)>,
    log: Option<KernelLog>,
}

impl Node {
    /// Puts the first policy in force and attaches the hooks, in this order: no hook ever decides without a policy.
    pub(super) fn start(
        parts: Parts,
        policies: PolicySet,
        records: Vec<WorkloadRecord>,
        cgroups: BTreeMap<PathBuf, u64>,
    ) -> Result<Self, AppError> {
        let settings = Arc::new(parts.config.policy_settings());
        let paths = cgroups.iter().map(|(path, id)| (*id, path.clone())).collect();
        let host_netns = netns::cookie().map_err(|source| KernelError::Network {
            what: "cannot read the cookie of the host's network namespace (SO_NETNS_COOKIE)",
            source,
        })?;
        let mut node = Self {
            settings,
            loaded: Loaded {
                policies: Arc::new(policies),
                error: None,
            },
            records,
            cgroups,
            paths,
            identities: BTreeSet::new(),
            revision: 0,
            observe_all: false,
            observe_written: false,
            unrecorded: Vec::new(),
            diagnostics: false,
            troubles: None,
            host_netns,
            namespaces: Namespaces::default(),
            refreshed: Instant::now(),
            older: Vec::new(),
            log: None,
            parts,
        };
        node.read_switches()?;
        node.look_at_namespaces(true)?;
        node.gather_identities();
        let left = node.parts.kernel.left_in_force()?;
        let before = left.get(&AllowKey::HEADER).map_or(0, |header| header.number);
        node.revision = before.max(1);
        let mut table = node.compile(&node.loaded.policies, node.revision)?;
        let same = before != 0
            && left.len() == table.len()
            && table.entries().all(|(key, entry)| left.get(&key) == Some(&entry));
        if before != 0 && !same {
            node.revision = before + 1;
            table = node.compile(&node.loaded.policies, node.revision)?;
        }
        node.parts.kernel.enforce(table)?;
        node.direct()?;
        node.write_control()?;
        if before == 0 {
            // Nothing of this version was here: whoever listens already has an owner before the first hook asks for it.
            node.find_older()?;
        }
        node.parts.kernel.attach(&node.parts.roots)?;
        node.log = Some(node.parts.kernel.log()?);
        node.publish();
        node.guard_receivers();
        node.find_older()?;
        node.sweep();
        node.check_hooks();
        Ok(node)
    }

    /// Works until everybody who has something to tell it has gone.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let Ok(runtime) = runtime else {
            tracing::error!("cannot start the node thread's timer");
            return;
        };
        let mut ticked = Instant::now();
        loop {
            let wait = TICK.saturating_sub(ticked.elapsed());
            let command = runtime.block_on(async { tokio::time::timeout(wait, inbox.recv()).await });
            let mut batch = match command {
                Ok(Some(command)) => vec![command],
                Ok(None) => return,
                Err(_) => Vec::new(),
            };
            while batch.len() < QUEUE {
                let Ok(command) = inbox.try_recv() else { break };
                batch.push(command);
            }
            if let Err(error) = self.work(batch) {
                tracing::error!(%error, "a change was not carried out whole; what was in force before still is");
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                if let Err(error) = self.tick() {
                    tracing::error!(%error, "the periodic check of the node failed");
                }
            }
        }
    }

    /// Does a batch of commands; what they change together is merged once.
    fn work(&mut self, batch: Vec<Command>) -> Result<(), AppError> {
        let mut merge = false;
        let mut look = false;
        let mut unowned = false;
        let mut outcome = Ok(());
        for command in batch {
            let done = match command {
                Command::Policies(contents) => {
                    self.policies_changed(contents);
                    Ok(())
                }
                Command::Workloads(contents) => {
                    merge |= self.workloads_changed(&contents);
                    Ok(())
                }
                Command::Cgroup(event) => {
                    merge = true;
                    look = true;
                    self.cgroup_changed(event)
                }
                Command::UdpBound { workload, netns, pid } => self.seen(netns, pid).and(self.guard(workload)),
                Command::ToggleDiagnostics => {
                    self.diagnostics = !self.diagnostics;
                    tracing::info!(on = self.diagnostics, "kernel-side diagnostics");
                    self.write_control()
                }
                Command::UnownedListener => {
                    unowned = true;
                    Ok(())
                }
                Command::Seen { netns, pid } => self.seen(netns, pid),
                Command::Refused(socket) => self.destroy(&socket),
                Command::ObserveAll { on, answer } => {
                    let done = self.set_observe_all(on);
                    let told = match &done {
                        Ok(()) => Ok(()),
                        Err(error) => Err(ControlError {
                            message: error.to_string(),
                        }),
                    };
                    // The caller may have given up waiting.
                    let _ = answer.send(told);
                    done
                }
                Command::Recorded => self.recorded(),
                Command::Status(answer) => {
                    let _ = answer.send(self.status());
                    Ok(())
                }
            };
            outcome = outcome.and(done);
        }
        if look || unowned {
            outcome = outcome.and(self.look_at_namespaces(false));
        }
        if unowned {
            outcome = outcome.and(self.find_older());
        }
        if merge {
            outcome = outcome.and(self.merged());
        }
        outcome
    }

    /// Checks what may have changed without anybody saying so.
    fn tick(&mut self) -> Result<(), AppError> {
        if let Some(log) = &mut self.log {
            log.flush();
        }
        self.adopt_switches()?;
        self.check_roots()?;
        let refresh = self.refreshed.elapsed() >= REFRESH;
        self.look_at_namespaces(refresh)?;
        if refresh {
            // The host may have new addresses.
            self.direct()?;
        }
        self.check_hooks();
        Ok(())
    }

    /// The directory of a managed cgroup.
    fn directory(&self, id: u64) -> Option<PathBuf> {
        self.paths.get(&id).map(|path| self.parts.mount.join(path))
    }

    fn cgroup_changed(&mut self, event: CgroupEvent) -> Result<(), AppError> {
        match event {
            CgroupEvent::Created { path, id } => {
                self.inherit(&path, id)?;
                if self.parts.root_paths.contains(&path) {
                    // At once: whoever is started in it must find the hooks.
                    self.check_roots()?;
                }
                self.paths.insert(id, path.clone());
                self.cgroups.insert(path, id);
            }
            CgroupEvent::Removed { path, id } => {
                self.paths.remove(&id);
                if self.cgroups.get(&path) == Some(&id) {
                    self.cgroups.remove(&path);
                }
                self.parts.kernel.unguard(id);
            }
        }
        Ok(())
    }

    /// A new cgroup gets its own entry at once, by the nearest ancestor that has one.
    fn inherit(&mut self, path: &Path, id: u64) -> Result<(), AppError> {
        let workloads = self.parts.kernel.workloads();
        let inherited = path.ancestors().skip(1).find_map(|ancestor| {
            self.cgroups
                .get(ancestor)
                .and_then(|id| workloads.get(id))
                .copied()
        });
        if let Some(workload) = inherited {
            self.parts.kernel.add_workload(id, workload)?;
        }
        Ok(())
    }
}

/// Depth of a cgroup below the mount.
fn level(path: &Path) -> u32 {
    u32::try_from(cgroup::level_of(path)).unwrap_or(u32::MAX)
}
