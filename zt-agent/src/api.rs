// SPDX-License-Identifier: Apache-2.0
//! The HTTP API of the agent, and its health endpoint.
//!
//! Handlers read the snapshot in force, the audit store and the metrics; they never touch a kernel map. What only the
//! composition root can do or know comes through [`NodeControl`]. Errors are problem details (RFC 9457).
//!
//! The API is for this machine's own users: it listens on a loopback address and refuses names that are not
//! loopback's, so that a web page in a browser here cannot reach it under a name of its own.

mod audit;
mod body;
mod evaluate;
mod guard;
mod health;
mod identities;
mod mode;
mod node;
mod party;
mod policies;
mod problem;
mod query;
mod server;
mod status;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use tokio::sync::watch;

pub use self::health::standby_router;
pub use self::node::{ControlError, HookStatus, NodeControl, NodeStatus, RootStatus};
pub use self::problem::ApiProblem;
pub use self::server::{Endpoint, ServeError, bind_api, bind_health};
use crate::audit::pipeline::Intake;
use crate::audit::sqlite::Store;
use crate::metrics::Metrics;
use crate::state::Snapshot;

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct ApiState(Arc<Parts>);

/// The parts of an [`ApiState`].
pub struct Parts {
    /// The cluster of this node.
    pub cluster: Arc<str>,
    /// This node.
    pub node: Arc<str>,
    /// What is in force.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Where records are.
    pub store: Arc<Store>,
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
}

/// Whether this agent does what it is there for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// A policy has been loaded and is in force.
    pub policy: bool,
    /// The kernel reports our hooks where they belong.
    pub hooks: bool,
    /// Why the agent is not ready, where it knows.
    pub reason: Option<Arc<str>>,
}

impl ApiState {
    /// State of these parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.snapshots.borrow())
    }
}

impl std::ops::Deref for ApiState {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Who sent a request.
#[derive(Clone, Copy, Debug)]
struct Caller(SocketAddr);

impl Caller {
    /// As records name it.
    fn name(self) -> Arc<str> {
        Arc::from(self.0.to_string())
    }
}

/// The API.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/v1/evaluate", post(evaluate::evaluate))
        .route("/v1/policies", get(policies::list))
        .route("/v1/policies/{name}", get(policies::show))
        .route("/v1/audit", get(audit::records))
        .route("/v1/graph", get(audit::graph))
        .route("/v1/status", get(status::status))
        .route("/v1/identities", get(identities::list))
        .route("/v1/decisions/stream", get(stream::decisions))
        .route("/v1/mode", post(mode::change))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(axum::middleware::from_fn(guard::loopback_names_only))
        .with_state(state)
}

/// Health and metrics.
pub fn health_router(state: ApiState) -> Router {
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(state)
}

#[cfg(test)]
mod tests;
