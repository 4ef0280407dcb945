// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/rollout`: how far the cluster is on its way to enforcing, and this node with it.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters};
use super::{ApiState, Service};
use crate::audit::record::Timestamp;
use crate::identity::Mode;
use crate::policy::{DeniedEdge, EnforcementRollout, Stage, Stop, StopCause};
use crate::state::{NodeModes, Snapshot};

/// How far this node is.
#[derive(Serialize, ToSchema)]
#[schema(as = RolloutStatus)]
pub(super) struct Status {
    /// Revision in force.
    revision: u64,
    /// Nothing is refused on this node, whatever the rollout says: break-glass.
    observe_all: bool,
    /// Why the documents are not what is in force; empty where they are.
    errors: Vec<crate::policy::Problem>,
    /// Null where there is none: then modes are those of workloads and of the configuration.
    #[schema(required = true)]
    rollout: Option<Standing>,
}

/// A rollout on this node.
#[derive(Serialize, ToSchema)]
#[schema(as = Rollout)]
struct Standing {
    /// `metadata.name`.
    name: String,
    /// Its digest, which is its `ETag` without the quotes.
    etag: String,
    /// The stage that the document says is reached; null before the first.
    #[schema(required = true)]
    stage: Option<String>,
    /// The stage in force on this node: another one only where it stopped.
    #[schema(required = true)]
    in_force: Option<String>,
    /// Where and why this node stopped of its own accord.
    #[schema(required = true)]
    stopped: Option<Stopped>,
    /// Workloads of this node, and how many of them enforce. Null at a policy engine, which does not see what nodes do.
    #[schema(required = true)]
    workloads: Option<Workloads>,
    /// In order.
    stages: Vec<StageStatus>,
}

/// Where a node stopped.
#[derive(Serialize, ToSchema)]
#[schema(as = RolloutStop)]
struct Stopped {
    /// The stage.
    stage: String,
    /// `hold`: what comes after it does not hold here; `rollback`: nor does it itself.
    action: &'static str,
    /// Why: `denials`, or `unreadable` where it cannot be read where the node stopped before.
    #[schema(value_type = String)]
    cause: StopCause,
    /// Different connections of those newly enforced that were refused in the minute before.
    denials: u64,
    /// As many would have been borne.
    per_minute: u64,
    /// How often any connection of theirs was refused in the minute before.
    attempts: u64,
    /// As often would have been borne; null where that does not count.
    #[schema(required = true)]
    attempts_per_minute: Option<u64>,
    /// When.
    #[schema(value_type = String)]
    at: Timestamp,
    /// Those of the connections that were refused most often.
    edges: Vec<RefusedEdge>,
}

/// A connection that was refused before a node stopped.
#[derive(Serialize, ToSchema)]
#[schema(as = RolloutRefusal)]
struct RefusedEdge {
    /// Who wanted to.
    source: String,
    /// To whom.
    destination: String,
    /// At which port.
    port: u16,
    /// `TCP` or `UDP`.
    protocol: String,
    /// How often.
    times: u64,
}

/// Workloads of this node.
#[derive(Serialize, ToSchema)]
#[schema(as = RolloutWorkloads)]
struct Workloads {
    /// All.
    total: usize,
    /// Those that enforce.
    enforced: usize,
    /// Those that enforce for the stage in force and did not before.
    newly_enforced: usize,
    /// Cgroups besides that have lost their name and enforce as they did.
    enforced_without_name: usize,
}

/// A stage on this node.
#[derive(Serialize, ToSchema)]
#[schema(as = RolloutStage)]
struct StageStatus {
    /// Its name.
    name: String,
    /// What those do that it takes: `observe` or `enforce`.
    mode: &'static str,
    /// `in_force`, `stopped` (reached and not in force here), `next` or `later`.
    state: &'static str,
    /// The percentage that it takes; null for all.
    #[schema(required = true)]
    percent: Option<u8>,
    /// What that counts: `workload` or `node`.
    #[schema(required = true)]
    by: Option<&'static str>,
    /// Whom no policy names is refused.
    require_policy: bool,
    /// Workloads of this node that it selects. Null at a policy engine, like what follows.
    #[schema(required = true)]
    selected: Option<usize>,
    /// Those of them that it takes.
    #[schema(required = true)]
    taken: Option<usize>,
    /// Workloads of this node that enforce with this stage and those before it.
    #[schema(required = true)]
    enforced: Option<usize>,
}

/// Shows the rollout and how far it is on this node.
#[utoipa::path(get, path = "/v1/rollout", tag = "policies", responses(
    (status = 200, description = "The rollout, or null", body = Status),
    (status = "4XX", description = "The request is not valid", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn show(State(state): State<ApiState>, given: Given) -> Result<Json<Status>, ApiProblem> {
    Parameters::new(given.0, &[]).finish()?;
    let snapshot = state.snapshot();
    let sees = state.service != Service::Engine;
    Ok(Json(Status {
        revision: snapshot.revision,
        observe_all: snapshot.observe_all,
        errors: snapshot.policy_error.as_deref().cloned().unwrap_or_default(),
        rollout: snapshot
            .modes
            .rollout()
            .map(|(rollout, reached)| standing(&snapshot, rollout, reached, sees)),
    }))
}

fn standing(snapshot: &Snapshot, rollout: &EnforcementRollout, reached: usize, sees: bool) -> Standing {
    let name = |reached| rollout.stage_at(reached).map(|stage| stage.name.to_string());
    let workloads = &snapshot.workloads;
    let modes = &snapshot.modes;
    let newly = workloads
        .iter()
        .filter(|placed| modes.is_newly_enforced(&placed.record));
    Standing {
        name: rollout.head.name.clone(),
        etag: rollout.digest().to_owned(),
        stage: name(rollout.reached()),
        in_force: name(reached),
        stopped: snapshot.stopped.as_deref().map(Stopped::from),
        workloads: sees.then(|| Workloads {
            total: workloads.len(),
            enforced: enforced(snapshot, modes, reached),
            newly_enforced: newly.count(),
            enforced_without_name: snapshot.enforced_nameless,
        }),
        stages: (0..)
            .zip(&rollout.stages)
            .map(|(index, stage)| stage_status(snapshot, rollout, (index, stage), reached, sees))
            .collect(),
    }
}

fn enforced(snapshot: &Snapshot, modes: &NodeModes, reached: usize) -> usize {
    let enforces = |record: &_| modes.at(reached, record) == Mode::Enforce;
    let placed = snapshot.workloads.iter();
    placed.filter(|placed| enforces(&placed.record)).count()
}

fn stage_status(
    snapshot: &Snapshot,
    rollout: &EnforcementRollout,
    (index, stage): (usize, &Stage),
    reached: usize,
    sees: bool,
) -> StageStatus {
    let modes = &snapshot.modes;
    let selected = snapshot
        .workloads
        .iter()
        .filter(|placed| stage.require_policy || stage.selects(&placed.record.spiffe));
    let taken = selected
        .clone()
        .filter(|placed| modes.takes(stage, &placed.record));
    StageStatus {
        name: stage.name.to_string(),
        mode: stage.mode.name(),
        state: if index < reached {
            "in_force"
        } else if index < rollout.reached() {
            "stopped"
        } else if index == rollout.reached() {
            "next"
        } else {
            "later"
        },
        percent: stage.canary.map(|canary| canary.percent),
        by: stage.canary.map(|canary| canary.by.name()),
        require_policy: stage.require_policy,
        selected: sees.then(|| selected.count()),
        taken: sees.then(|| taken.count()),
        enforced: sees.then(|| enforced(snapshot, modes, index + 1)),
    }
}

impl From<&Stop> for Stopped {
    fn from(stop: &Stop) -> Self {
        Self {
            stage: stop.stage.clone(),
            action: stop.action.name(),
            cause: stop.cause,
            denials: stop.denials,
            per_minute: stop.per_minute,
            attempts: stop.attempts,
            attempts_per_minute: stop.attempts_per_minute,
            at: Timestamp(
                i64::try_from(stop.at)
                    .unwrap_or(i64::MAX)
                    .saturating_mul(1_000_000),
            ),
            edges: stop.edges.iter().map(RefusedEdge::from).collect(),
        }
    }
}

impl From<&DeniedEdge> for RefusedEdge {
    fn from(edge: &DeniedEdge) -> Self {
        Self {
            source: edge.source.clone(),
            destination: edge.destination.clone(),
            port: edge.port,
            protocol: edge.protocol.clone(),
            times: edge.times,
        }
    }
}
