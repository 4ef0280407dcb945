// SPDX-License-Identifier: Apache-2.0
//! What only the composition root knows and does.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::Serialize;

use crate::audit::record::Timestamp;

/// The node behind the API.
pub trait NodeControl: Send + Sync + 'static {
    /// What the kernel says about our hooks and counters, asked now.
    fn status(&self) -> BoxFuture<'_, NodeStatus>;

    /// Break-glass: `true` has this node refuse nothing from the moment this returns; `false` gives the workloads
    /// their own modes back. The caller records it.
    fn observe_all(&self, on: bool) -> BoxFuture<'_, Result<(), ControlError>>;

    /// Has this node go on in the rollout as the document says, where it had stopped of its own accord: at that stage, which is
    /// answered. Its limits hold anew. `caller` asks for it, and records it.
    fn resume_rollout(&self, caller: Arc<str>) -> BoxFuture<'_, Result<Option<String>, ControlError>>;
}

/// Why the node did not do what it was asked to.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// What failed and what to do about it.
    pub message: String,
}

/// The part of `/v1/status` that comes from the kernel.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
pub struct NodeStatus {
    /// Our hooks, as the kernel reports them.
    pub hooks: Vec<HookStatus>,
    /// The managed cgroups that they are attached to.
    pub roots: Vec<RootStatus>,
    /// Managed cgroups that do not exist yet and are waited for.
    pub awaited: Vec<String>,
    /// Cgroups that have no identity because the identity sources disagree.
    pub disputes: Vec<DisputeStatus>,
    /// Pods of this node that have no identity, with `kubernetes` among the identity sources.
    pub unnamed: Vec<UnnamedStatus>,
    /// How many more there are than are listed.
    pub unnamed_more: usize,
    /// Service meshes and load balancers that change where connections go.
    pub around: Vec<AroundStatus>,
    /// How the node proves identities in TCP handshakes.
    pub handshake: HandshakeStatus,
    /// Whether packet sockets and sockets of other families beside IP are decided on.
    pub packet_sockets: PacketSocketsStatus,
    /// Workloads whose incoming datagrams are guarded.
    pub guarded: usize,
    /// Hooks, links and pins that were missing and put back since the agent started.
    pub restored: u64,
    /// The kernel programs' counters by name, summed over all CPUs.
    pub counters: BTreeMap<&'static str, u64>,
}

/// A cgroup about which the identity sources disagree.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct DisputeStatus {
    /// Below the cgroup2 mount.
    pub cgroup: String,
    /// Who it is by the workloads file; null where that does not say.
    #[schema(required = true)]
    pub file: Option<String>,
    /// Who it is by Kubernetes; null where that does not say.
    #[schema(required = true)]
    pub kubernetes: Option<String>,
    /// Who it is by SPIRE; null where that does not say.
    #[schema(required = true)]
    pub spire: Option<String>,
}

/// A pod that has no identity.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct UnnamedStatus {
    /// Its cgroup, or the one in it that is disputed, below the cgroup2 mount.
    pub cgroup: String,
    /// Its namespace and name; null where Kubernetes has not told of it.
    #[schema(required = true)]
    pub pod: Option<String>,
    /// Who it would be by Kubernetes; null where that has not told of it.
    #[schema(required = true)]
    pub name: Option<String>,
    /// `waiting_for_spire`: SPIRE has not named it, mostly as there is no entry for it; `too_many`: nor is SPIRE asked, as too
    /// many cgroups are; `disputed`: SPIRE or the workloads file names it otherwise; `untold`: Kubernetes has told of no pod there
    /// that has a name.
    pub why: &'static str,
    /// Why `unknownWorkload: deny` does not hold of it: `observed`, by what `modes` says of its name; `static`, as by what it
    /// says of static pods; `host_network`, until Kubernetes has told of this node's pods. Null where it does, or where nobody
    /// is denied.
    #[schema(required = true)]
    pub left_alone: Option<&'static str>,
    /// The ids of that cgroup and of those in it.
    #[serde(skip)]
    pub cgroups: Vec<u64>,
}

/// A service mesh, or a load balancer in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AroundStatus {
    /// What it seems to be: `istio`, `istio-ambient`, `linkerd`, `cilium`, `calico`, or `other`.
    pub what: &'static str,
    /// Whether its program runs `before` policy is asked, which is then about the destination that it chose, or `after`; null
    /// where it is no program.
    #[schema(required = true)]
    pub order: Option<&'static str>,
    /// By what it is known.
    pub evidence: String,
}

/// How the node proves identities in TCP handshakes.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
pub struct HandshakeStatus {
    /// `auto` or `off`.
    pub mode: String,
    /// Listeners older than the agent that were made to prove who they are.
    pub older_proving: usize,
    /// Those that read who calls and cannot prove who they are, as the kernel cannot be asked for it: restart them.
    pub older_reading: usize,
    /// Those that do neither: what they accept is named by the node's own sockets and by addresses.
    pub older_failed: usize,
    /// Network namespaces of workloads in which TCP Fast Open was switched off.
    pub fast_open_off: usize,
    /// Those in which it is on, and could not be.
    pub fast_open_left: usize,
    /// Ways on which the identity option did not arrive in the last hour, the last one first; at most 256.
    pub paths: Vec<PathStatus>,
}

/// A way on which the identity option does not arrive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct PathStatus {
    /// The node at the other end; null where that is this one, or none whose agent is known.
    #[schema(required = true)]
    pub node: Option<String>,
    /// The network that the address there is in, of the last time.
    pub network: String,
    /// When it began.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// When it was seen last.
    #[schema(value_type = String)]
    pub last: Timestamp,
    /// Connections that came about only when the SYN was repeated without the option: something drops it, or nobody was there to
    /// answer for a few seconds.
    pub dropped: u64,
    /// Connections to workloads of that node whose SYN bore the option, and whose answer did not: something takes it out, or who
    /// answers has none.
    pub stripped: u64,
    /// Connections from there that bore none although that node's workloads prove who they are, and that policy denies for that.
    pub missing: u64,
}

/// One hook.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct HookStatus {
    /// Name of the program.
    pub program: String,
    /// What it is attached to do, as `bpftool` calls it: `cgroup_inet4_connect` …
    pub attach_type: String,
    /// The cgroup that it is attached to.
    pub cgroup: String,
    /// Whether the kernel reports our program there.
    pub attached: bool,
    /// Id of the program.
    #[schema(required = true)]
    pub program_id: Option<u32>,
    /// Id of the link.
    #[schema(required = true)]
    pub link_id: Option<u32>,
}

/// Whether sockets that reach the network below or beside IP are decided on when workloads make them.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
pub struct PacketSocketsStatus {
    /// Whether they are. It takes a kernel with BPF LSM.
    pub decided: bool,
    /// Why they are not.
    #[schema(required = true)]
    pub reason: Option<String>,
}

/// A managed cgroup.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct RootStatus {
    /// Below the cgroup2 mount.
    pub path: String,
    /// Its id.
    pub id: u64,
}
