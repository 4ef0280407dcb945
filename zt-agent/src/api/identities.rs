// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/identities`: who is who on this node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters};
use crate::identity::Mode;
use crate::spiffe_id::SpiffeId;
use crate::state::{Placed, Snapshot};

/// Who is who on this node.
#[derive(Serialize, ToSchema)]
pub(super) struct Identities {
    identities: Vec<Identity>,
}

/// One workload, or an identity that policy speaks about and that has none here.
#[derive(Serialize, ToSchema)]
struct Identity {
    /// Its SPIFFE ID.
    #[schema(value_type = String)]
    spiffe_id: SpiffeId,
    /// The kernel's number, in decimal as `bpftool` prints it; a text because it does not fit a double.
    number: String,
    /// The mode in force; `None` without a workload here.
    #[schema(value_type = Option<String>, required = true)]
    mode: Option<Mode>,
    /// Its cgroup below the cgroup2 mount.
    #[schema(required = true)]
    cgroup: Option<String>,
    /// Ids of its cgroup and of those nested in it; none while it waits for its cgroup.
    cgroups: Vec<u64>,
    /// Where peers reach it.
    #[schema(value_type = Vec<String>)]
    addresses: Vec<IpAddr>,
    /// Its pod, where there is one.
    #[schema(required = true)]
    pod: Option<String>,
}

/// Lists the identities that this node knows.
#[utoipa::path(get, path = "/v1/identities", tag = "node", responses(
    (status = 200, description = "The identities", body = Identities),
    (status = "4XX", description = "The request is not valid", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn list(State(state): State<ApiState>, given: Given) -> Result<Response, ApiProblem> {
    Parameters::new(given.0, &[]).finish()?;
    let snapshot = state.snapshot();
    let here: BTreeSet<&SpiffeId> = snapshot
        .workloads
        .iter()
        .map(|placed| &placed.record.spiffe)
        .collect();
    let known: BTreeSet<&SpiffeId> = snapshot
        .table
        .identities()
        .iter()
        .chain(snapshot.policies.identities())
        .collect();
    let mut identities: Vec<Identity> = snapshot
        .workloads
        .iter()
        .map(|placed| placed_here(placed, &snapshot))
        .collect();
    identities.extend(known.difference(&here).map(|id| elsewhere(id)));
    identities.sort_by(|a, b| (&a.spiffe_id, &a.cgroup).cmp(&(&b.spiffe_id, &b.cgroup)));
    Ok(Json(Identities { identities }).into_response())
}

fn placed_here(placed: &Placed, snapshot: &Snapshot) -> Identity {
    Identity {
        spiffe_id: placed.record.spiffe.clone(),
        number: placed.record.spiffe.number().to_string(),
        mode: Some(if snapshot.observe_all {
            Mode::Observe
        } else {
            placed.mode
        }),
        cgroup: Some(placed.record.cgroup.display().to_string()),
        cgroups: placed.cgroup_ids.clone(),
        addresses: placed.record.addresses.clone(),
        pod: placed.record.pod.clone(),
    }
}

fn elsewhere(id: &SpiffeId) -> Identity {
    Identity {
        spiffe_id: id.clone(),
        number: id.number().to_string(),
        mode: None,
        cgroup: None,
        cgroups: Vec::new(),
        addresses: Vec::new(),
        pod: None,
    }
}
