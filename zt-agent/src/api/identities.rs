// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/identities`: who is who on this node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters};
use crate::identity::Mode;
use crate::identity::services::{Backend, Place};
use crate::policy::{AllowTable, Party, Protocol, entity_name};
use crate::spiffe_id::SpiffeId;
use crate::state::{Front, Placed, Snapshot};

/// Who is who on this node.
#[derive(Serialize, ToSchema)]
pub(super) struct Identities {
    identities: Vec<Identity>,
    /// Virtual addresses of Kubernetes Services, and who stands behind them.
    services: Vec<ServiceFront>,
}

/// A virtual address and port.
#[derive(Serialize, ToSchema)]
struct ServiceFront {
    /// Its Service, as `namespace/name`; several that claim the place are joined by `+`.
    #[schema(value_type = String)]
    service: Arc<str>,
    #[schema(value_type = String)]
    address: IpAddr,
    port: u16,
    /// `TCP` or `UDP`.
    protocol: &'static str,
    /// The port that policy speaks about, and that is recorded.
    target_port: u16,
    /// The kernel's number of whoever is behind it, in decimal: of an identity, or of a group.
    number: String,
    /// More than one, or whose name depends on the policy: a rule must let the source reach each of them.
    group: bool,
    /// Who is behind it.
    backends: Vec<ServiceBackend>,
}

/// One of those behind a virtual address; one of the first three is given.
#[derive(Serialize, ToSchema)]
struct ServiceBackend {
    /// A workload.
    #[schema(value_type = Option<String>, required = true)]
    spiffe_id: Option<SpiffeId>,
    /// An entity; `unknown` where a pod has no identity, or nobody is there.
    #[schema(required = true)]
    entity: Option<&'static str>,
    /// An address that no pod and no node has.
    #[schema(value_type = Option<String>, required = true)]
    address: Option<IpAddr>,
    /// Where it listens.
    port: u16,
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
    let services = snapshot
        .fronts
        .iter()
        .map(|(place, front)| service(place, front, &snapshot.table))
        .collect();
    Ok(Json(Identities { identities, services }).into_response())
}

fn placed_here(placed: &Placed, snapshot: &Snapshot) -> Identity {
    Identity {
        spiffe_id: placed.record.spiffe.clone(),
        number: snapshot
            .table
            .number(Party::Spiffe(&placed.record.spiffe))
            .to_string(),
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

fn service(place: &Place, front: &Front, table: &AllowTable) -> ServiceFront {
    let number = front.number_in(table);
    ServiceFront {
        service: Arc::clone(&front.service),
        address: place.address,
        port: place.port,
        protocol: if place.protocol == Protocol::Udp.number() {
            Protocol::Udp.name()
        } else {
            Protocol::Tcp.name()
        },
        target_port: front.target_port,
        number: number.to_string(),
        group: zt_common::identity::is_group(number),
        backends: front
            .backends
            .iter()
            .map(|(backend, port)| {
                let (spiffe_id, entity, address) = match backend {
                    Backend::Workload(id) => (Some(id.clone()), None, None),
                    Backend::Entity(number) => (None, Some(entity_name(*number).unwrap_or("unknown")), None),
                    Backend::Address(address) => (None, None, Some(*address)),
                };
                ServiceBackend {
                    spiffe_id,
                    entity,
                    address,
                    port: *port,
                }
            })
            .collect(),
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
