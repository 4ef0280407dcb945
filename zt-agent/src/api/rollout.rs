// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/rollout`: how far the cluster is on its way to enforcing, and this node with it.

mod stop;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use self::stop::Stopped;
use super::nodes::{NodeStanding, Selected};
use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters};
use super::{ApiState, Service};
use crate::identity::Mode;
use crate::policy::{EnforcementRollout, Stage};
use crate::state::{NodeModes, Snapshot};

pub(super) use self::stop::StopReason;

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
    /// The nodes that follow this agent, and those that other policy engines say in the cluster have stopped or are silent, by name; none
    /// where there is no rollout.
    nodes: Vec<NodeStanding>,
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
    /// Workloads of this node, and how many of them enforce. Null at a policy engine, which does not see the workloads of nodes.
    #[schema(required = true)]
    workloads: Option<Workloads>,
    /// In order.
    stages: Vec<StageStatus>,
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
    /// Whether it selects anybody whom this agent knows: workloads here and elsewhere, whom policies name, and whom nodes that follow
    /// have. Null where a policy engine cannot tell.
    #[schema(required = true)]
    selects_anybody: Option<bool>,
}

/// Shows the rollout and how far it is on this node.
#[utoipa::path(get, path = "/v1/rollout", tag = "policies", responses(
    (status = 200, description = "The rollout, or null", body = Status),
    (status = "4XX", description = "The request is not valid", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn show(State(state): State<ApiState>, given: Given) -> Result<Json<Status>, ApiProblem> {
    Parameters::new(given.0, &[]).finish()?;
    let snapshot = state.snapshot();
    let rollout = snapshot.modes.rollout();
    Ok(Json(Status {
        revision: snapshot.revision,
        observe_all: snapshot.observe_all,
        errors: snapshot.policy_error.as_deref().cloned().unwrap_or_default(),
        rollout: rollout.map(|(rollout, reached)| {
            let view = View {
                snapshot: &snapshot,
                rollout,
                reached,
                sees: state.service != Service::Engine,
                selected_by_nodes: state.nodes().selected(&snapshot),
            };
            view.standing()
        }),
        nodes: rollout.map_or_else(Vec::new, |(rollout, _)| {
            state
                .nodes()
                .in_rollout(&snapshot, rollout, state.told_elsewhere())
        }),
    }))
}

/// What is looked at.
struct View<'s> {
    snapshot: &'s Snapshot,
    rollout: &'s EnforcementRollout,
    /// How many stages are in force here.
    reached: usize,
    /// Workloads are seen: this is a node.
    sees: bool,
    /// Stages that select workloads of nodes that follow.
    selected_by_nodes: Selected,
}

impl View<'_> {
    fn standing(&self) -> Standing {
        let (snapshot, rollout) = (self.snapshot, self.rollout);
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
            in_force: name(self.reached),
            stopped: snapshot.stopped.as_deref().map(Stopped::from),
            workloads: self.sees.then(|| Workloads {
                total: workloads.len(),
                enforced: enforced(snapshot, modes, self.reached),
                newly_enforced: newly.count(),
                enforced_without_name: snapshot.enforced_nameless,
            }),
            stages: (0..)
                .zip(&rollout.stages)
                .map(|(index, stage)| self.stage(index, stage))
                .collect(),
        }
    }

    fn stage(&self, index: usize, stage: &Stage) -> StageStatus {
        let modes = &self.snapshot.modes;
        let selected = self
            .snapshot
            .workloads
            .iter()
            .filter(|placed| stage.require_policy || stage.selects(&placed.record.spiffe));
        let taken = selected
            .clone()
            .filter(|placed| modes.takes(stage, &placed.record));
        StageStatus {
            name: stage.name.to_string(),
            mode: stage.mode.name(),
            state: if index < self.reached {
                "in_force"
            } else if index < self.rollout.reached() {
                "stopped"
            } else if index == self.rollout.reached() {
                "next"
            } else {
                "later"
            },
            percent: stage.canary.map(|canary| canary.percent),
            by: stage.canary.map(|canary| canary.by.name()),
            require_policy: stage.require_policy,
            selected: self.sees.then(|| selected.count()),
            taken: self.sees.then(|| taken.count()),
            enforced: self.sees.then(|| enforced(self.snapshot, modes, index + 1)),
            selects_anybody: self.selects_anybody(index, stage),
        }
    }

    /// A node knows its workloads, and those elsewhere that it has heard of. An engine knows those of its file, whom policies name
    /// outright, and what nodes say of stages to come: unless all of these have what is in force and say whom they have, and where
    /// policies name by a pattern whom the stage may select, it cannot tell.
    fn selects_anybody(&self, index: usize, stage: &Stage) -> Option<bool> {
        let snapshot = self.snapshot;
        let identities = snapshot.table.identities();
        let nodes = &self.selected_by_nodes;
        let is_told = nodes.is_whole && index >= self.rollout.reached();
        let here = snapshot.workloads.iter().map(|placed| &placed.record.spiffe);
        match stage.selects_anybody(here.chain(identities), snapshot.policies.patterns()) {
            Some(true) => Some(true),
            _ if nodes.stages.contains(&*stage.name) => Some(true),
            _ if self.sees => Some(false),
            told => told.filter(|_| is_told),
        }
    }
}

fn enforced(snapshot: &Snapshot, modes: &NodeModes, reached: usize) -> usize {
    let enforces = |record: &_| modes.at(reached, record) == Mode::Enforce;
    let placed = snapshot.workloads.iter();
    placed.filter(|placed| enforces(&placed.record)).count()
}
