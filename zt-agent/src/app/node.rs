// SPDX-License-Identifier: Apache-2.0
//! The node thread: the single writer. It owns the kernel side, merges policy, workloads and cgroups into what shall be
//! in force, puts that in force, sweeps, and publishes it. Everything it is told comes through one queue.

mod around;
mod begin;
mod cgroups;
mod direct;
mod elsewhere;
mod enforced;
mod force;
mod guards;
mod modes;
mod nameless;
mod namespaces;
mod naming;
mod numbers;
mod peers;
mod pending;
mod publish;
mod raw;
mod recover;
mod restraint;
mod rollout;
mod services;
mod speaking;
mod sweep;
mod switches;
mod unnamed;
mod untold;
mod wellbeing;
mod work;
mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};
use zt_common::abi::{Connection, MODE_ENFORCE};

use super::newly::Newly;
use super::paths::Paths;
use super::{AppError, Loaded};
use crate::api::{ControlError, NodeStatus, Readiness};
use crate::audit::names::NameBook;
use crate::audit::pipeline::{ApiEvent, Intake};
use crate::cgroup::{self, CgroupEvent};
use crate::config::{Config, Handshake};
use crate::identity::kubernetes::Changes;
use crate::identity::merge::Dispute;
use crate::identity::services::ServiceEvent;
use crate::identity::spire::{Attestation, Known};
use crate::identity::{WorkloadRecord, file as identity_file};
use crate::kernel::netns::{self, Namespaces};
use crate::kernel::{Adopted, CounterReader, Kernel, KernelError, KernelLog, ManagedRoot, RefusedSocket};
use crate::metrics::Metrics;
use crate::peers::{Recalled, Told};
use crate::policy::{self, Alike, PolicySet};
use crate::policy_dir;
use crate::spiffe_id::SpiffeId;
use crate::state::merge::Places;
use crate::state::{NodeModes, Publisher};

use self::around::Around;
use self::cgroups::Cgroups;
use self::elsewhere::Elsewhere;
use self::enforced::EnforcedAs;
use self::guards::Receivers;
use self::naming::Naming;
use self::pending::Pending;
use self::recover::Losses;
use self::restraint::Restraint;
use self::rollout::Rollout;
use self::services::Fronting;
use self::unnamed::Unnamed;
pub(super) use self::workloads::{DEPTH, read as read_workloads, roots};

/// Commands that may wait.
pub(super) const QUEUE: usize = 4096;
/// Something for the node thread to do.
pub(super) enum Command {
    /// The policy documents on disk, after a change.
    Policies(policy_dir::Contents),
    /// The workloads file, after a change.
    Workloads(identity_file::Contents),
    /// What SPIRE says of a cgroup.
    Attested(Attestation),
    /// What is new of the pods in Kubernetes.
    Pods(Changes),
    /// What the agent of another node says.
    Peers(Told),
    /// What the Kubernetes API says of Services.
    Services(Vec<ServiceEvent>),
    /// A managed cgroup came or went, as was seen then.
    Cgroup(CgroupEvent, Instant),
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
    UnownedListener {
        /// The namespace that it listens in.
        netns: u64,
    },
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
    /// This node goes on in the rollout, by request.
    ResumeRollout {
        /// Whose.
        caller: Arc<str>,
        /// The stage at which it had stopped, if it had.
        answer: oneshot::Sender<Option<String>>,
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
    pub snapshots: Publisher,
    pub ready: watch::Sender<Readiness>,
    /// Denials of workloads that a rollout newly enforced.
    pub newly: Arc<Newly>,
    /// Ways on which the identity option does not arrive.
    pub paths: Arc<Paths>,
}

/// What the identity sources say in the beginning.
pub(super) struct Sources {
    /// The workloads file.
    pub declared: Vec<WorkloadRecord>,
    /// What SPIRE said before the agent was started.
    pub attested: Known,
    /// What Kubernetes says.
    pub pods: Changes,
    /// What the agents of other nodes said before the agent was started.
    pub peers: Recalled,
    /// Where it is kept what stands behind virtual addresses, if that is told of at all.
    pub services: Option<PathBuf>,
}

/// The node thread's state.
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that have nothing to do with one another"
)]
pub(super) struct Node {
    parts: Parts,
    settings: Arc<policy::Settings>,
    loaded: Loaded,
    /// What the workloads file says.
    declared: Vec<Arc<WorkloadRecord>>,
    /// What SPIRE says.
    attested: Known,
    /// What Kubernetes says of this node.
    pods: Vec<Arc<WorkloadRecord>>,
    /// What Kubernetes says of the others.
    elsewhere: Elsewhere,
    /// Other nodes of which the kernel is to be told who lives there.
    residents_changed: BTreeSet<u32>,
    /// Those of which it could not be told, as was said last.
    residents_left: BTreeSet<u32>,
    /// What they disagree about.
    disputes: Vec<Dispute>,
    /// Addresses of pods that have no identity.
    nobody: Vec<IpAddr>,
    /// Names that are nobody as another has their number, as was told of last.
    alike: Alike,
    /// How many groups the table had no room for, as was told of last.
    undecided: usize,
    /// Pods that SPIRE has not named.
    waiting: Vec<Arc<WorkloadRecord>>,
    /// What holds of pods that have no identity yet.
    unnamed: Unnamed,
    places: Places,
    /// In which mode whom is.
    modes: NodeModes,
    rollout: Rollout,
    /// By which name each cgroup came to enforce.
    enforced_as: EnforcedAs,
    /// Names that are new since a table was compiled last, as no table could be compiled for them. They are nobody until then: a
    /// DENY that holds of them by a pattern is not in force.
    unruled: HashSet<SpiffeId>,
    /// The workloads file says something new that is not in force yet.
    file_is_new: bool,
    /// What was put together is not in the kernel as it should be.
    behind: bool,
    /// Service meshes and load balancers.
    around: Around,
    /// The hooks are attached, and what the agent before it left has been taken over.
    is_at_work: bool,
    /// What stands behind virtual addresses.
    fronting: Fronting,
    cgroups: Cgroups,
    /// New ones of which the kernel does not know yet who is in them.
    naming: Naming,
    /// Identities that the table in force was compiled for: they only grow under one revision, so that a workload that
    /// goes does not cost a swap.
    identities: BTreeSet<SpiffeId>,
    receivers: Receivers,
    revision: u64,
    observe_all: bool,
    /// What of [`OBSERVE_ALL`](zt_common::control::OBSERVE_ALL) this agent last read or wrote in the kernel.
    observe_written: bool,
    /// Changes of mode that were made without this agent, and not recorded yet.
    unrecorded: Vec<bool>,
    diagnostics: bool,
    /// Hooks of another version decide beside these. Two do not write into the same handshakes: this one waits.
    beside: bool,
    /// Why the agent is not ready, as it was said last.
    troubles: Option<String>,
    host_netns: u64,
    namespaces: Namespaces,
    /// When the addresses of all namespaces may be read again, and when those of the host.
    next_refresh: Instant,
    next_host: Instant,
    /// When meshes and load balancers may be looked for again.
    next_around: Instant,
    /// When all processes may be looked at again.
    next_look: Instant,
    /// Connections that are not in the kernel's map, or not as what they are now, by cookie.
    older: HashMap<u64, Connection>,
    /// What became of older listeners.
    adopted: Adopted,
    /// Workloads that are refused raw sockets, and have been looked at for older ones.
    raw_refused: BTreeSet<u64>,
    counters: CounterReader,
    /// What the kernel had lost when all sockets were looked at last.
    lost: Losses,
    /// Keeps what a flood can set off to a share of the time: looking at all sockets, and at those of a namespace.
    losses_turn: Restraint,
    owners_turn: Restraint,
    pending: Pending,
    log: Option<KernelLog>,
}

impl Node {
    /// Puts the first policy in force and attaches the hooks, in this order: no hook ever decides without a policy.
    pub(super) fn start(
        parts: Parts,
        policies: PolicySet,
        sources: Sources,
        cgroups: BTreeMap<PathBuf, u64>,
    ) -> Result<Self, AppError> {
        let settings = Arc::new(parts.config.policy_settings());
        let counters = parts.kernel.counter_reader()?;
        let host_netns = netns::cookie().map_err(|source| KernelError::Network {
            what: "cannot read the cookie of the host's network namespace (SO_NETNS_COOKIE)",
            source,
        })?;
        let cgroups = Cgroups::new(cgroups);
        let fast_open_off = parts.config.handshake == Handshake::Auto;
        let unnamed = Unnamed::new(&parts.config, &parts.mount, &parts.root_paths, &cgroups);
        let mut node = Self {
            settings,
            loaded: Loaded {
                policies: Arc::new(policies),
                error: None,
            },
            declared: sources.declared.into_iter().map(Arc::new).collect(),
            attested: sources.attested,
            pods: Vec::new(),
            elsewhere: Elsewhere::default(),
            residents_changed: BTreeSet::new(),
            residents_left: BTreeSet::new(),
            disputes: Vec::new(),
            nobody: Vec::new(),
            alike: Alike::new(),
            undecided: 0,
            waiting: Vec::new(),
            unnamed,
            places: Places::default(),
            modes: parts.config.modes().into(),
            rollout: Rollout::open(&parts.config.state_directory()),
            enforced_as: EnforcedAs::open(&parts.config.state_directory(), &cgroups),
            unruled: HashSet::new(),
            file_is_new: false,
            behind: false,
            around: Around::default(),
            is_at_work: false,
            fronting: Fronting::new(sources.services, &parts.config.trust_domain),
            cgroups,
            naming: Naming::default(),
            identities: BTreeSet::new(),
            receivers: Receivers::default(),
            revision: 0,
            observe_all: false,
            observe_written: false,
            unrecorded: Vec::new(),
            diagnostics: false,
            beside: parts.kernel.is_beside(),
            troubles: None,
            host_netns,
            namespaces: Namespaces::new(fast_open_off),
            next_refresh: Instant::now(),
            next_host: Instant::now(),
            next_around: Instant::now(),
            next_look: Instant::now(),
            older: HashMap::new(),
            adopted: Adopted::default(),
            raw_refused: BTreeSet::new(),
            counters,
            lost: Losses::default(),
            losses_turn: Restraint::default(),
            owners_turn: Restraint::default(),
            pending: Pending::default(),
            log: None,
            parts,
        };
        // Everything is written anyway.
        node.pods_changed(sources.pods, &mut Vec::new());
        node.recall_peers(sources.peers)?;
        node.begin()?;
        crate::app::memory::give_back();
        Ok(node)
    }

    /// Whether any cgroup is enforced upon.
    fn any_enforced(&self) -> bool {
        let known = self.known_workloads();
        known.values().any(|workload| workload.mode == MODE_ENFORCE)
    }
}

/// Depth of a cgroup below the mount.
fn level(path: &Path) -> u32 {
    u32::try_from(cgroup::level_of(path)).unwrap_or(u32::MAX)
}
