// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/status`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters};
use super::{ApiState, NodeStatus};
use crate::audit::clock;
use crate::audit::record::Timestamp;
use crate::audit::spool::Account;
use crate::identity::Mode;
use crate::policy::Problem;

/// What the agent is and does.
#[derive(Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "flattened: its name is never seen")]
pub(super) struct Status {
    version: &'static str,
    cluster: String,
    node: String,
    #[schema(value_type = String)]
    started: Timestamp,
    uptime_seconds: u64,
    ready: bool,
    /// Why not.
    not_ready: Option<String>,
    policy: PolicyStatus,
    modes: ModeStatus,
    workloads: WorkloadStatus,
    audit: AuditStatus,
    #[serde(flatten)]
    node_status: NodeStatus,
}

#[derive(Serialize, ToSchema)]
struct PolicyStatus {
    revision: u64,
    digest: String,
    policies: usize,
    entries: usize,
    /// Why the documents on disk are not what is in force; empty where they are.
    errors: Vec<Problem>,
}

#[derive(Serialize, ToSchema)]
struct ModeStatus {
    /// Break-glass is on: nothing is refused.
    observe_all: bool,
    #[schema(value_type = String)]
    default: Mode,
    observe: usize,
    enforce: usize,
}

#[derive(Serialize, ToSchema)]
struct WorkloadStatus {
    declared: usize,
    /// With a cgroup that exists.
    present: usize,
    waiting: usize,
}

#[derive(Serialize, ToSchema)]
struct AuditStatus {
    store: String,
    received: u64,
    stored: u64,
    store_failures: u64,
    pruned_for_space: u64,
    pruned_for_age: u64,
    lag_seconds: f64,
    /// What waits for PostgreSQL; null where the store is a local file.
    spool: Option<SpoolStatus>,
    lost: BTreeMap<&'static str, u64>,
}

#[derive(Serialize, ToSchema)]
struct SpoolStatus {
    waiting: u64,
    bytes: u64,
    lag_seconds: f64,
    shipped: u64,
    reachable: bool,
    /// Why the last attempt failed; null where it did not.
    error: Option<String>,
    lost: BTreeMap<&'static str, u64>,
}

fn spool(account: &Account) -> SpoolStatus {
    SpoolStatus {
        waiting: account.waiting(),
        bytes: account.used_bytes(),
        lag_seconds: account.lag().as_secs_f64(),
        shipped: account.shipped_total(),
        reachable: account.is_reachable(),
        error: account.error(),
        lost: account.losses().into_iter().collect(),
    }
}

/// Shows hooks, policy, identities, modes, counters and losses.
#[utoipa::path(get, path = "/v1/status", tag = "node", responses(
    (status = 200, description = "As the kernel and the agent report it now", body = Status),
    (status = "4XX", description = "The request is not valid", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn status(State(state): State<ApiState>, given: Given) -> Result<Response, ApiProblem> {
    Parameters::new(given.0, &[]).finish()?;
    let node_status = state.control.status().await;
    let snapshot = state.snapshot();
    let readiness = state.readiness.borrow().clone();
    let account = state.intake.stats();
    let (pruned_for_space, pruned_for_age) = account.pruned_total();
    let declared = snapshot.workloads.len();
    let present = snapshot
        .workloads
        .iter()
        .filter(|placed| !placed.cgroup_ids.is_empty())
        .count();
    let enforce = snapshot
        .workloads
        .iter()
        .filter(|placed| placed.mode == Mode::Enforce)
        .count();
    let uptime = clock::now().saturating_sub(state.started).max(0).unsigned_abs() / 1_000_000_000;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        cluster: state.cluster.to_string(),
        node: state.node.to_string(),
        started: Timestamp(state.started),
        uptime_seconds: uptime,
        ready: readiness.policy && readiness.hooks,
        not_ready: readiness.reason.as_deref().map(str::to_owned),
        policy: PolicyStatus {
            revision: snapshot.revision,
            digest: snapshot.policies.digest().to_owned(),
            policies: snapshot.policies.policies().len(),
            entries: snapshot.table.len(),
            errors: snapshot.policy_error.as_deref().cloned().unwrap_or_default(),
        },
        modes: ModeStatus {
            observe_all: snapshot.observe_all,
            default: snapshot.default_mode,
            observe: declared - enforce,
            enforce,
        },
        workloads: WorkloadStatus {
            declared,
            present,
            waiting: declared - present,
        },
        audit: AuditStatus {
            store: state.store.place(),
            received: account.received_total(),
            stored: account.stored_total(),
            store_failures: account.failures_total(),
            pruned_for_space,
            pruned_for_age,
            lag_seconds: account.lag().as_secs_f64(),
            spool: state.store.spool().map(|account| spool(account)),
            lost: account.losses().by_cause().into_iter().collect(),
        },
        node_status,
    })
    .into_response())
}
