// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/status`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::kubernetes::KubernetesStatus;
use super::nodes::NodeEntry;
use super::peers::PeersStatus;
use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters};
use super::{ApiState, NodeStatus, Service, UnnamedStatus};
use crate::audit::clock;
use crate::audit::record::Timestamp;
use crate::audit::spool::Account;
use crate::identity::{Mode, spire};
use crate::policy::Problem;
use crate::state::{Configured, SourceStatus};

/// What the agent is and does.
#[derive(Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "flattened: its name is never seen")]
pub(super) struct Status {
    version: &'static str,
    /// Whether it enforces on a node, or is a policy engine.
    service: Service,
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
    configuration: ConfigurationStatus,
    services: ServicesStatus,
    /// Null where identities do not come from SPIRE.
    #[schema(required = true)]
    spire: Option<SpireStatus>,
    /// The certificate of this agent itself; null where it is none of SPIRE's.
    #[schema(required = true)]
    svid: Option<SvidStatus>,
    /// Null where nothing comes from the Kubernetes API.
    #[schema(required = true)]
    kubernetes: Option<KubernetesStatus>,
    /// Null where agents of other nodes are not spoken to.
    #[schema(required = true)]
    peers: Option<PeersStatus>,
    audit: AuditStatus,
    /// The nodes that follow this agent, and what is in force there.
    nodes: Vec<NodeEntry>,
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
    /// The engine that policy comes from; null where it comes from a directory.
    #[schema(required = true)]
    source: Option<EngineStatus>,
}

/// What of the configuration is taken anew while the agent runs.
#[derive(Serialize, ToSchema)]
struct ConfigurationStatus {
    /// Entries of `api.callers` in force.
    callers: usize,
    /// Why the file on disk is not taken; empty where it is.
    errors: Vec<Problem>,
    /// Other keys have changed on disk: they are taken at the next start.
    restart_needed: bool,
}

impl From<&Configured> for ConfigurationStatus {
    fn from(reloaded: &Configured) -> Self {
        Self {
            callers: reloaded.callers.len(),
            errors: reloaded.problems.to_vec(),
            restart_needed: reloaded.restart,
        }
    }
}

#[derive(Serialize, ToSchema)]
struct EngineStatus {
    #[schema(value_type = String)]
    url: Arc<str>,
    /// What is in force is not known to be the engine's.
    stale: bool,
    #[schema(value_type = String)]
    since: Timestamp,
    /// When the engine last said that it is.
    #[schema(value_type = Option<String>, required = true)]
    confirmed: Option<Timestamp>,
    /// The engine's own count.
    #[schema(required = true)]
    revision: Option<u64>,
    #[schema(value_type = Option<String>, required = true)]
    error: Option<Arc<str>>,
    failures: u64,
    refused: BTreeMap<&'static str, u64>,
}

impl From<SourceStatus> for EngineStatus {
    fn from(source: SourceStatus) -> Self {
        Self {
            url: source.url,
            stale: source.stale,
            since: Timestamp(source.since),
            confirmed: source.confirmed.map(Timestamp),
            revision: source.revision,
            error: source.error,
            failures: source.failures,
            refused: source.refused,
        }
    }
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
struct ServicesStatus {
    /// Virtual addresses and ports that lead to somebody.
    places: usize,
    /// Those behind which more than one identity is, at more than one port, or an address that no pod has.
    groups: usize,
    /// Those that there was no room for in the kernel's map.
    left_out: usize,
    /// Groups that there was no room for in the allow table: whoever connects there connects to `unknown`.
    groups_left_out: usize,
}

#[derive(Serialize, ToSchema)]
struct SpireStatus {
    /// The SPIRE agent answers.
    connected: bool,
    /// Since when, or since when not.
    #[schema(value_type = String)]
    since: Timestamp,
    /// Why it does not.
    #[schema(value_type = Option<String>, required = true)]
    error: Option<Arc<str>>,
    /// Cgroups with an identity.
    named: usize,
    /// Cgroups in which somebody runs and that have none.
    waiting: usize,
    /// Cgroups whose identity is held although its SVID has expired.
    expired: usize,
    rotations: u64,
    /// Identities that were taken back, by cause.
    withdrawn: BTreeMap<&'static str, u64>,
    /// What SPIRE said and was not believed, by cause.
    refused: BTreeMap<&'static str, u64>,
    /// The last of these.
    #[schema(value_type = Option<String>, required = true)]
    refusal: Option<Arc<str>>,
    /// How often the SPIRE agent could not be reached.
    failures: u64,
}

impl From<spire::Status> for SpireStatus {
    fn from(status: spire::Status) -> Self {
        Self {
            connected: status.connected,
            since: Timestamp(status.since),
            error: status.error,
            named: status.named,
            waiting: status.waiting,
            expired: status.expired,
            rotations: status.rotations.values().sum(),
            withdrawn: status.withdrawn,
            refused: status.refused,
            refusal: status.refusal,
            failures: status.failures,
        }
    }
}

#[derive(Serialize, ToSchema)]
struct SvidStatus {
    /// Whom it names.
    #[schema(value_type = Option<String>, required = true)]
    spiffe_id: Option<Arc<str>>,
    /// Until when it is valid.
    #[schema(value_type = Option<String>, required = true)]
    expires: Option<Timestamp>,
    /// Why there is none, it has expired, or it is not renewed.
    #[schema(required = true)]
    problem: Option<String>,
    /// Certificates that were taken from SPIRE.
    renewals: u64,
    /// What went wrong: attempts at SPIRE, and answers that could not be used.
    failures: u64,
}

impl From<spire::own::Status> for SvidStatus {
    fn from(status: spire::own::Status) -> Self {
        Self {
            problem: status.problem(),
            spiffe_id: status.spiffe,
            expires: status
                .expires
                .map(|seconds| Timestamp(seconds.saturating_mul(1_000_000_000))),
            renewals: status.renewals,
            failures: status.failures,
        }
    }
}

#[derive(Serialize, ToSchema)]
struct AuditStatus {
    store: String,
    /// Decisions that reached the pipeline.
    received: u64,
    /// Decisions whose records are stored.
    stored: u64,
    /// Records that are stored: fewer where denials that repeat were joined.
    records: u64,
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
    let mut node_status = state.control.status().await;
    if let Some(health) = &state.spire {
        let waiting = |one: &&mut UnnamedStatus| one.why == "waiting_for_spire";
        for one in node_status.unnamed.iter_mut().filter(waiting) {
            if health.has_no_room_for(&one.cgroups) {
                one.why = "too_many";
            }
        }
    }
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
        service: state.service,
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
            source: state.source.as_ref().map(|source| source.borrow().clone().into()),
        },
        modes: ModeStatus {
            observe_all: snapshot.observe_all,
            default: snapshot.modes.default_mode(),
            observe: declared - enforce,
            enforce,
        },
        workloads: WorkloadStatus {
            declared,
            present,
            waiting: declared - present,
        },
        configuration: (&**state.configuration.borrow()).into(),
        services: ServicesStatus {
            places: snapshot.fronts.len(),
            groups: snapshot.fronts.groups(),
            left_out: snapshot.fronts.left_out(),
            groups_left_out: snapshot.table.undecided().len(),
        },
        spire: state.spire.as_ref().map(|health| health.status().into()),
        svid: state.metrics.svid().map(Into::into),
        kubernetes: state.kubernetes.as_deref().map(Into::into),
        peers: state.peers.as_deref().map(Into::into),
        audit: AuditStatus {
            store: state.store.place(),
            received: account.received_total(),
            stored: account.stored_total(),
            records: account.records_total(),
            store_failures: account.failures_total(),
            pruned_for_space,
            pruned_for_age,
            lag_seconds: account.lag().as_secs_f64(),
            spool: state.store.spool().map(|account| spool(account)),
            lost: account.losses().by_cause().into_iter().collect(),
        },
        nodes: state.nodes().list(snapshot.policies.digest()),
        node_status,
    })
    .into_response())
}
