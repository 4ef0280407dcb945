// SPDX-License-Identifier: Apache-2.0
//! The HTTP API of the agent, and its health endpoint.
//!
//! Handlers read the snapshot in force, the audit store and the metrics; they never touch a kernel map. What only the
//! composition root can do or know comes through [`NodeControl`]. Errors are problem details (RFC 9457).
//!
//! A loopback address and the Unix socket are for the operator of this machine; requests to the address that do not name
//! a loopback host are refused, so that a web page in a browser here cannot reach it under a name of its own. From
//! elsewhere callers come over TLS, with a certificate that says who they are.

mod audit;
mod body;
mod caller;
mod changes;
mod evaluate;
mod guard;
mod health;
mod identities;
mod judged;
mod kubernetes;
mod mode;
mod node;
mod nodes;
mod openapi;
mod page;
mod party;
mod peers;
mod policies;
mod problem;
mod query;
mod recorded;
mod resume;
mod revisions;
mod rollout;
mod rules;
mod server;
mod status;
mod stream;
mod turn;

use std::sync::Arc;

use axum::Extension;
use tokio::sync::watch;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::caller::Caller;
use self::changes::Changes;
pub use self::changes::record as record_changes;
pub use self::evaluate::decide_unrecorded;
pub use self::guard::Guard;
pub use self::health::{health_router, standby_router};
pub use self::node::{
    AroundStatus, ControlError, DisputeStatus, HandshakeStatus, HookStatus, NodeControl, NodeStatus,
    PacketSocketsStatus, PathStatus, RootStatus, UnnamedStatus,
};
pub use self::problem::ApiProblem;
pub use self::server::{
    Endpoint, Limits, OwnerOf, Routes, ServeError, Tls, bind_api, bind_health, bind_socket,
};
use self::turn::{Room, Turns};
use crate::audit::archive::Archive;
use crate::audit::pipeline::Intake;
use crate::identity::spire::Health;
use crate::metrics::Metrics;
use crate::policy_dir::Editor;
use crate::policy_follow::Copies;
use crate::state::{Configured, Elsewhere, Followers, PoliciesInForce, Snapshot, SourceStatus};

/// Replay and recommendation: each takes a processor, and the memory of all connections that it judges.
const JUDGING: Room = Room {
    running: 1,
    waiting: 8,
    of_one: 1,
};
/// Rules and graph, which are not kept waiting by these. With the others no more run than a server is asked for at a time.
const COUNTING: Room = Room {
    running: 1,
    waiting: 16,
    of_one: 8,
};

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct ApiState(Arc<Inner>);

struct Inner {
    parts: Parts,
    changes: Changes,
    nodes: nodes::Nodes,
    judging: Turns,
    counting: Turns,
}

/// The parts of an [`ApiState`].
pub struct Parts {
    /// The cluster of this node.
    pub cluster: Arc<str>,
    /// This node.
    pub node: Arc<str>,
    /// What is in force.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The policies that came into force, for the trail.
    pub policies_in_force: Arc<PoliciesInForce>,
    /// What changes policies where they are kept.
    pub editor: Editor,
    /// Where that is.
    pub kept: PolicyStore,
    /// What was in force when the trail told of it, on disk.
    pub told_policies: Copies,
    /// Where records are.
    pub store: Arc<Archive>,
    /// Where records go.
    pub intake: Intake,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// What the composition root knows and does.
    pub control: Arc<dyn NodeControl>,
    /// Whether the agent does its work.
    pub readiness: watch::Receiver<Readiness>,
    /// Turns `true` when the agent stops: streams end.
    pub stopping: watch::Receiver<bool>,
    /// When the agent started, Unix nanoseconds.
    pub started: i64,
    /// Which of the two this is.
    pub service: Service,
    /// The engine that policy comes from, where it does.
    pub source: Option<watch::Receiver<SourceStatus>>,
    /// How it stands with SPIRE, where identities come from there.
    pub spire: Option<Arc<Health>>,
    /// What of the configuration is taken anew.
    pub configuration: watch::Receiver<Arc<Configured>>,
    /// How it stands with the Kubernetes API, if something comes from there.
    pub kubernetes: Option<Arc<crate::kubernetes::Health>>,
    /// How it stands with the agents of other nodes, if they are spoken to.
    pub peers: Option<Arc<crate::peers::Health>>,
    /// What policy engines say in the cluster, where that keeps the policies.
    pub stopped_elsewhere: Option<Box<ToldElsewhere>>,
}

/// What policy engines say of their nodes in the cluster: who stopped, who is silent, who is heard.
pub type ToldElsewhere = dyn Fn() -> Elsewhere + Send + Sync;

/// Where the policies in force are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyStore {
    /// In files of this machine.
    #[default]
    Directory,
    /// At the policy engine that this node follows.
    Engine,
    /// As resources of the Kubernetes cluster.
    Kubernetes,
}

impl PolicyStore {
    /// Its name in answers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Engine => "engine",
            Self::Kubernetes => "kubernetes",
        }
    }
}

/// What kind of agent serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// It enforces on its node.
    Node,
    /// It answers and keeps policy; it has no kernel side.
    Engine,
}

/// Whether this agent does what it is there for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// A policy has been loaded and is in force.
    pub policy: bool,
    /// The kernel reports our hooks where they belong.
    pub hooks: bool,
    /// The agent is about to end: it still answers, and says that it is not ready.
    pub leaving: bool,
    /// Why the agent is not ready, where it knows.
    pub reason: Option<Arc<str>>,
}

impl ApiState {
    /// State of these parts.
    pub fn new(parts: Parts) -> Self {
        let changes = Changes::default();
        let nodes = nodes::Nodes::default();
        let judging = Turns::new(JUDGING, Arc::clone(&parts.metrics));
        let counting = Turns::new(COUNTING, Arc::clone(&parts.metrics));
        Self(Arc::new(Inner {
            parts,
            changes,
            nodes,
            judging,
            counting,
        }))
    }

    /// How many nodes follow this agent, and how far they are. Whoever tells another engine by now follows that one.
    pub fn followers(&self) -> Followers {
        self.nodes().leave_to_others(&self.told_elsewhere().heard);
        self.nodes().followers(&self.snapshot())
    }

    /// When a node said last what is in force there, in Unix nanoseconds.
    pub fn node_heard(&self, node: &str) -> Option<i64> {
        self.nodes().heard(node)
    }

    /// What policy engines say of their nodes in the cluster.
    fn told_elsewhere(&self) -> Elsewhere {
        let told = self.stopped_elsewhere.as_ref();
        told.map_or_else(Elsewhere::default, |told| told())
    }

    fn nodes(&self) -> &nodes::Nodes {
        &self.0.nodes
    }

    /// The turn of those who have recorded connections judged.
    fn judging(&self) -> &Turns {
        &self.0.judging
    }

    /// The turn of those who have them counted.
    fn counting(&self) -> &Turns {
        &self.0.counting
    }

    fn changes(&self) -> &Changes {
        &self.0.changes
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }
}

impl std::ops::Deref for ApiState {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0.parts
    }
}

/// The API.
pub fn router(state: ApiState) -> Routes {
    let (router, document) = routes().split_for_parts();
    let router = router
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(Extension(openapi::Served::of(&document)))
        .with_state(state.clone());
    Routes::with_evaluations(router, state)
}

/// Every route with its description: one that has none cannot be added here.
fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(evaluate::evaluate))
        .routes(routes!(policies::list))
        .routes(routes!(
            policies::show,
            policies::change::put,
            policies::change::delete
        ))
        .routes(routes!(rollout::show))
        .routes(routes!(resume::resume))
        .routes(routes!(rules::rules))
        .routes(routes!(judged::replay, judged::candidate::replay_candidate))
        .routes(routes!(judged::recommend))
        .routes(routes!(judged::compared::difference))
        .routes(routes!(audit::records))
        .routes(routes!(audit::graph))
        .routes(routes!(status::status))
        .routes(routes!(identities::list))
        .routes(routes!(stream::decisions))
        .routes(routes!(revisions::revisions))
        .routes(routes!(nodes::report))
        .routes(routes!(mode::change))
        .routes(routes!(openapi::show))
        .routes(routes!(page::index))
        .routes(routes!(page::file))
}

#[cfg(test)]
mod tests;
