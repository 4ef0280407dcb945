// SPDX-License-Identifier: Apache-2.0
//! The node thread: the single writer. It owns the kernel side, merges policy, workloads and cgroups into what shall be
//! in force, puts that in force, sweeps, and publishes it. Everything it is told comes through one queue.

mod force;
mod namespaces;
mod publish;
mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use zt_common::abi::Connection;
use zt_common::control::{DIAGNOSTICS, HAS_ENFORCED, OBSERVE_ALL, UNKNOWN_DENY};
use zt_common::entry::AllowKey;

use super::{AppError, Loaded};
use crate::api::{ControlError, NodeStatus, Readiness};
use crate::audit::names::NameBook;
use crate::audit::pipeline::Intake;
use crate::cgroup::{self, CgroupEvent};
use crate::config::{Config, UnknownWorkload};
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
    diagnostics: bool,
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
            diagnostics: false,
            host_netns,
            namespaces: Namespaces::default(),
            refreshed: Instant::now(),
            older: Vec::new(),
            log: None,
            parts,
        };
        node.observe_all = node.parts.kernel.flags()? & OBSERVE_ALL != 0;
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

    /// Writes the switches.
    fn write_control(&mut self) -> Result<(), AppError> {
        let flags = [
            (self.observe_all, OBSERVE_ALL),
            (
                self.parts.config.unknown_workload == UnknownWorkload::Deny,
                UNKNOWN_DENY,
            ),
            (!self.enforced().is_empty(), HAS_ENFORCED),
            (self.diagnostics, DIAGNOSTICS),
        ];
        let flags = flags
            .into_iter()
            .filter(|(on, _)| *on)
            .fold(0, |flags, (_, flag)| flags | flag);
        Ok(self
            .parts
            .kernel
            .set_control(flags, self.host_netns, &self.parts.roots)?)
    }

    fn set_observe_all(&mut self, on: bool) -> Result<(), AppError> {
        self.observe_all = on;
        self.write_control()?;
        self.publish();
        if on {
            tracing::warn!("break-glass: nothing is refused on this node until `zt-agent mode restore`");
        } else {
            tracing::warn!("break-glass is over: the workloads' own modes hold again");
            self.sweep();
        }
        Ok(())
    }

    /// Checks what may have changed without anybody saying so.
    fn tick(&mut self) -> Result<(), AppError> {
        if let Some(log) = &mut self.log {
            log.flush();
        }
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

    /// Attaches to a managed root that appeared, or that was removed and made anew.
    fn check_roots(&mut self) -> Result<(), AppError> {
        let present = roots(
            &self.parts.config.managed_cgroup.present(&self.parts.mount),
            &self.parts.mount,
        );
        if !present.is_empty() && present != self.parts.roots {
            tracing::warn!(roots = ?present.iter().map(|root| &root.path).collect::<Vec<_>>(), "the managed cgroups changed: attaching anew");
            self.parts.roots = present;
            self.write_control()?;
            self.parts.kernel.attach(&self.parts.roots)?;
        }
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
