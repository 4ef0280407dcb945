// SPDX-License-Identifier: Apache-2.0
//! `POST /v1/mode`: break-glass, and its end.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::{ApiProblem, Details};
use super::recorded::recorded;
use super::{ApiState, Caller, Service, body};
use crate::audit::pipeline::ApiEvent;

/// How long the answer waits for its record: shorter than `zt-agent mode` waits for the answer.
const RECORD_TIME: Duration = Duration::from_secs(3);
/// The code of the problem that says that the mode was changed and has no record.
const NOT_RECORDED: &str = "mode_not_recorded";

/// What is asked of the node.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ModeBody {
    mode: Change,
}

/// Break-glass, or its end.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Change {
    /// Nothing is refused on this node.
    Observe,
    /// Workloads have their own modes again.
    Restore,
}

/// What the node does now.
#[derive(Serialize, ToSchema)]
#[schema(as = ModeChanged)]
pub(super) struct Changed {
    mode: Change,
    /// Nothing is refused.
    observe_all: bool,
}

/// Stops refusing on this node, or goes back.
#[utoipa::path(post, path = "/v1/mode", tag = "node", request_body = ModeBody, responses(
    (status = 200, description = "Done, and its record stored", body = Changed),
    (status = "4XX", description = "The request is not valid", body = Details, content_type = "application/problem+json"),
    (status = 503, description = "Done, and without a record that is known to be stored", body = Details, content_type = "application/problem+json"),
    (status = 500, description = "The kernel side did not do it", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn change(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiProblem> {
    let ModeBody { mode } = body::json(&headers, body).await?;
    if state.service == Service::Engine {
        let detail = "a policy engine enforces nothing: ask the agent of the node";
        return Err(ApiProblem::new(StatusCode::CONFLICT, "no_kernel", detail));
    }
    let observe_all = matches!(mode, Change::Observe);
    if let Err(error) = state.control.observe_all(observe_all).await {
        tracing::error!(%error, observe_all, "the mode of this node cannot be changed");
        return Err(ApiProblem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "mode_not_changed",
            error.to_string(),
        ));
    }
    tracing::warn!(observe_all, caller = %caller.name, "the mode of this node was changed over the API");
    let revision = state.snapshot().revision;
    let event = ApiEvent::ModeChanged {
        observe_all,
        caller: caller.name,
        revision,
    };
    // It has happened, whatever becomes of its record.
    if let Err(unrecorded) = recorded(&state, vec![event], RECORD_TIME).await {
        tracing::error!(observe_all, %unrecorded, "the change of mode has no record that is known to be stored");
        let what = if observe_all {
            "nothing is refused on this node now, and this has no record"
        } else {
            "workloads are in their configured modes again, and this has no record"
        };
        return Err(unrecorded.problem(NOT_RECORDED, what));
    }
    Ok(Json(Changed { mode, observe_all }).into_response())
}
