// SPDX-License-Identifier: Apache-2.0
//! The configuration: a file, overridden by `ZT_*` environment variables, overridden by flags.
//!
//! Everything is read and checked before anything starts. A key that this version does not have is an error, never
//! silently passed over: what one believes to be configured would not be.

mod apply;
mod audit;
mod callers;
mod drain;
mod load;
mod modes;
mod nri;
mod peers;
mod setting;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::audit::spool::WhenFull;
use crate::audit::sqlite::Durability;
use crate::caller::CallerRule;
use crate::cgroup::ManagedCgroup;
use crate::identity::kubernetes::Template;
pub use crate::identity::spire::OnExpiry;
use crate::identity::{Mode, ModeRule, Modes};
use crate::policy;
use crate::problem::Problem;

pub use load::Sources;
pub use peers::{OtherPods, Peers};
pub use setting::{SETTINGS, Setting};

/// Where the configuration file is looked for if none is named.
pub const DEFAULT_FILE: &str = "/etc/zt/agent.yaml";

/// `audit.apiShare` of a node, where nothing is configured.
pub const API_SHARE: u8 = 50;

/// The whole configuration of an agent. [`Config::default`] is what an empty file means, with the host's name as node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `cluster`: the cluster's name, as it stands in records.
    pub cluster: String,
    /// `trustDomain`: the SPIFFE trust domain of all workloads here.
    pub trust_domain: String,
    /// `node`: this node's name, as it stands in records.
    pub node: String,
    /// `policyPath`: a directory of policy files, or one file.
    pub policy_path: PathBuf,
    /// `policySource`: where policy comes from.
    pub policy_source: PolicySource,
    /// `engineUrl`: the policy engine that is followed, with `policySource: engine`.
    pub engine_url: Option<String>,
    /// `mode`: for workloads that nothing else names.
    pub mode: Mode,
    /// `modes`: for workloads by pattern; the first that matches counts.
    pub modes: Vec<ModeRule>,
    /// `unknownWorkload`: what happens to a managed process that never had an identity.
    pub unknown_workload: UnknownWorkload,
    /// `handshake`: whether TCP handshakes within the node bear identities.
    pub handshake: Handshake,
    /// `packetGuard`: whether each segment of established connections is looked at, too.
    pub packet_guard: bool,
    /// `allowHost`: whether this node may always reach its workloads (`builtin/host`).
    pub allow_host: bool,
    /// `allowSelf`: whether a workload may always reach itself (`builtin/self`).
    pub allow_self: bool,
    /// `clusterCIDRs`: where the cluster's own addresses are.
    pub cluster_cidrs: Vec<IpNet>,
    /// `managedCgroup`: below which cgroups policy is asked.
    pub managed_cgroup: ManagedCgroup,
    /// `bpffs`: where programs and maps are pinned, in a directory per ABI version below it.
    pub bpffs: PathBuf,
    /// `identity`: who the workloads are.
    pub identity: Identity,
    /// `audit`: where decisions are recorded.
    pub audit: Audit,
    /// `api`: where the agent listens.
    pub api: Api,
    /// `kubernetes.kubeconfig`: how the Kubernetes API is reached; `None`: by the pod's service account, or `KUBECONFIG`.
    pub kubeconfig: Option<PathBuf>,
}

/// `policySource`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicySource {
    /// The files at `policyPath`.
    #[default]
    Directory,
    /// A policy engine, over its API.
    Engine,
    /// The resources of the Kubernetes cluster.
    Kubernetes,
}

/// `identity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `identity.source`: at least one, each once.
    pub sources: Vec<IdentitySource>,
    /// `identity.file`: the workloads of the `file` source.
    pub file: PathBuf,
    /// `identity.spireSocket`: where the SPIRE agent serves the Workload API.
    pub spire_socket: PathBuf,
    /// `identity.spireAdminSocket`: where it serves the Delegated Identity API.
    pub spire_admin_socket: PathBuf,
    /// `identity.template`: how the `kubernetes` source names pods.
    pub template: Template,
    /// `identity.onExpiry`: what happens to an identity whose SVID could not be renewed.
    pub on_expiry: OnExpiry,
    /// `identity.nri.socket`: where the container runtime takes plugins; `None`: containers do not wait for identities.
    pub nri_socket: Option<PathBuf>,
    /// `identity.nri.wait`: how long one waits at the most.
    pub nri_wait: Duration,
    /// `identity.peers`: the agents of other nodes.
    pub peers: Peers,
}

impl Identity {
    /// Whether identities come from there.
    pub fn has(&self, source: IdentitySource) -> bool {
        self.sources.contains(&source)
    }
}

/// One of `identity.source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentitySource {
    /// `workloads.yaml`.
    File,
    /// The node's SPIRE agent.
    Spire,
    /// The Kubernetes API.
    Kubernetes,
    /// The agents of other nodes.
    Peers,
}

impl IdentitySource {
    /// Its name, as `identity.source` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Spire => "spire",
            Self::Kubernetes => "kubernetes",
            Self::Peers => "peers",
        }
    }
}

/// `audit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// `audit.dsn`: the database, `sqlite://` and an absolute path, or `postgres://`.
    pub dsn: String,
    /// `audit.readDsn`: the same database with a login that reads; `None`: the one of [`Self::dsn`].
    pub read_dsn: Option<String>,
    /// `audit.maintainDsn`: the same database with a login that looks after the tables; `None`: the one of [`Self::dsn`].
    pub maintain_dsn: Option<String>,
    /// `audit.spool`: the file in which records wait for `PostgreSQL`.
    pub spool: PathBuf,
    /// `audit.whenFull`: which records are lost when the spool is full.
    pub when_full: WhenFull,
    /// `audit.keys`: directory of the keys that checkpoints are signed with; `None`: `keys` beside the database.
    pub keys: Option<PathBuf>,
    /// `audit.sync`: when records are safe from a crash of the machine.
    pub sync: Durability,
    /// `audit.maxDiskBytes`: beyond this the oldest records go, counted.
    pub max_disk_bytes: u64,
    /// `audit.apiShare`: percent of that which evaluations over the API may take; `None`: [`API_SHARE`], and all of it
    /// at a policy engine.
    pub api_share: Option<u8>,
    /// `audit.retentionDays`: records older than this go.
    pub retention_days: u32,
}

/// `api`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// `api.listen`: the API; a loopback address, unless there is TLS.
    pub listen: SocketAddr,
    /// `api.health`: health and metrics; any address.
    pub health: SocketAddr,
    /// `api.socket`: the API for the operator of this machine; `None` for no socket.
    pub socket: Option<PathBuf>,
    /// `api.tls`: certificates; with them, `listen` speaks TLS.
    pub tls: TlsFiles,
    /// `api.callers`: who may come over TLS, and for what.
    pub callers: Vec<CallerRule>,
    /// `api.rateLimit`: questions a second that one caller may ask; a batch is as many as it has.
    pub rate_limit: NonZeroU32,
    /// `api.drain`: how long an engine that is to end goes on answering while it says that it is not ready.
    pub drain: Duration,
}

/// `api.tls`: all three files, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// `spire` instead of files: they are written from what the SPIRE agent says, and are those of
    /// [`Config::svid_directory`].
    pub spire: bool,
    /// `api.tls.cert`: the certificate of the API, PEM.
    pub cert: Option<PathBuf>,
    /// `api.tls.key`: its private key, PEM.
    pub key: Option<PathBuf>,
    /// `api.tls.clientCa`: who issues the certificates of callers, PEM.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Certificate, key and client CA, if there are any.
    pub fn all(&self) -> Option<(&PathBuf, &PathBuf, &PathBuf)> {
        Some((self.cert.as_ref()?, self.key.as_ref()?, self.client_ca.as_ref()?))
    }
}

/// What happens to a process below the managed cgroups that never had an identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownWorkload {
    /// Its connections go through and are recorded with policy's verdict.
    #[default]
    Observe,
    /// Policy's verdict on `unknown` happens.
    Deny,
}

impl UnknownWorkload {
    /// Its name in files and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Deny => "deny",
        }
    }
}

/// Whether TCP handshakes bear identities, which each end's kernel checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Handshake {
    /// Within the node, and with nodes whose agents this one is in contact with.
    #[default]
    Auto,
    /// Nowhere: identities come from the node's own sockets and the directory alone.
    Off,
}

impl Handshake {
    /// Its name in files and answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster: "hanzo-k8s".to_owned(),
            trust_domain: "hanzo.ai".to_owned(),
            node: load::hostname(),
            policy_path: PathBuf::from("/etc/zt/policies/"),
            policy_source: PolicySource::Directory,
            engine_url: None,
            mode: Mode::Observe,
            modes: Vec::new(),
            unknown_workload: UnknownWorkload::Observe,
            handshake: Handshake::Auto,
            packet_guard: false,
            allow_host: true,
            allow_self: true,
            cluster_cidrs: Vec::new(),
            managed_cgroup: ManagedCgroup::Auto,
            bpffs: PathBuf::from("/sys/fs/bpf/zt"),
            identity: Identity {
                sources: vec![IdentitySource::File],
                file: PathBuf::from("/etc/zt/workloads.yaml"),
                spire_socket: PathBuf::from("/run/spire/sockets/agent.sock"),
                spire_admin_socket: PathBuf::from("/run/spire/admin/admin.sock"),
                template: Template::default(),
                on_expiry: OnExpiry::Withdraw,
                nri_socket: None,
                nri_wait: nri::WAIT,
                peers: Peers::default(),
            },
            audit: Audit {
                dsn: "sqlite:///var/lib/zt/audit.db".to_owned(),
                read_dsn: None,
                maintain_dsn: None,
                spool: PathBuf::from("/var/lib/zt/spool.db"),
                when_full: WhenFull::Oldest,
                keys: None,
                sync: Durability::Second,
                max_disk_bytes: 2 << 30,
                api_share: None,
                retention_days: 365,
            },
            api: Api {
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8054)),
                health: SocketAddr::from((Ipv4Addr::LOCALHOST, 8055)),
                socket: Some(PathBuf::from("/run/zt/agent.sock")),
                tls: TlsFiles::default(),
                callers: Vec::new(),
                rate_limit: NonZeroU32::new(100_000).unwrap_or(NonZeroU32::MIN),
                drain: drain::DRAIN,
            },
            kubeconfig: None,
        }
    }
}

impl Config {
    /// Reads the configuration from all its sources.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        load::load(sources).map_err(|problems| ConfigError { problems })
    }

    /// The configuration that `text` is, without environment and flags; `file` is its name in problems.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        load::parse(file, text).map_err(|problems| ConfigError { problems })
    }

    /// Where the agent keeps what must outlive it: beside the audit database, or the spool of one that is elsewhere.
    pub fn state_directory(&self) -> PathBuf {
        let local = self.audit.dsn.strip_prefix("sqlite://").map(Path::new);
        let directory = local.unwrap_or(&self.audit.spool).parent();
        directory.unwrap_or(Path::new("/var/lib/zt")).to_path_buf()
    }

    /// Where the agent's own SVID is kept with `api.tls: spire`: beside its socket, which is in memory (`/run`) as a rule.
    pub fn svid_directory(&self) -> PathBuf {
        let beside = self.api.socket.as_deref().and_then(Path::parent);
        beside
            .map_or_else(|| self.state_directory(), Path::to_path_buf)
            .join("svid")
    }

    /// In which mode workloads are that name none themselves.
    pub fn modes(&self) -> Modes {
        Modes::new(&self.modes, self.mode)
    }

    /// What the policy engine needs to know of it.
    pub fn policy_settings(&self) -> policy::Settings {
        policy::Settings {
            trust_domain: self.trust_domain.clone(),
            allow_self: self.allow_self,
            allow_host: self.allow_host,
            cluster_cidrs: self.cluster_cidrs.clone(),
            most_stages: None,
        }
    }
}

/// Why there is no configuration: every problem, in the order of the sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests;
