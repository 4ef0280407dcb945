// SPDX-License-Identifier: Apache-2.0
//! `POST /v1/rollout`: a node that stopped of its own accord goes on.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::problem::{ApiProblem, Details};
use super::recorded::recorded;
use super::{ApiState, Caller, Service, body};
use crate::audit::pipeline::ApiEvent;

/// How long the answer waits for its record.
const RECORD_TIME: Duration = Duration::from_secs(3);

/// What is asked of the node.
#[derive(Deserialize, ToSchema)]
#[schema(as = RolloutBody)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    #[expect(dead_code, reason = "there is one")]
    action: Action,
}

/// What a node can do by request.
#[derive(Deserialize, ToSchema)]
#[schema(as = RolloutAction)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// Go on as the document says.
    Resume,
}

/// What the node does now.
#[derive(Serialize, ToSchema)]
#[schema(as = RolloutResumed)]
pub(super) struct Resumed {
    /// The stage at which it had stopped; null where it had not.
    #[schema(required = true)]
    stopped_at: Option<String>,
    /// Revision in force.
    revision: u64,
}

/// Has this node go on as the document says, where it stopped of its own accord; its limits hold anew.
#[utoipa::path(post, path = "/v1/rollout", tag = "policies", request_body = Asked, responses(
    (status = 200, description = "Done, and its record stored", body = Resumed),
    (status = "4XX", description = "The request is not valid, or there is no rollout", body = Details, content_type = "application/problem+json"),
    (status = 503, description = "Done, and without a record that is known to be stored", body = Details, content_type = "application/problem+json"),
    (status = 500, description = "The node did not do it", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn resume(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiProblem> {
    let _: Asked = body::json(&headers, body).await?;
    if state.service == Service::Engine {
        let detail = "a policy engine stops at no stage: ask the agent of the node";
        return Err(ApiProblem::new(StatusCode::CONFLICT, "no_kernel", detail));
    }
    let snapshot = state.snapshot();
    let Some((rollout, _)) = snapshot.modes.rollout() else {
        let detail = "there is no rollout in which this node could go on";
        return Err(ApiProblem::new(StatusCode::CONFLICT, "no_rollout", detail));
    };
    let done = state.control.resume_rollout(Arc::clone(&caller.name)).await;
    let stopped_at = done.map_err(|error| {
        tracing::error!(%error, "this node cannot go on in the rollout");
        ApiProblem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "rollout_not_resumed",
            error.to_string(),
        )
    })?;
    let revision = state.snapshot().revision;
    let event = ApiEvent::ModesChanged {
        caller: caller.name,
        what: json!({
            "mode": "rollout",
            "rollout": rollout.head.name,
            "cause": "resumed",
            "stage": stopped_at,
        }),
        revision,
    };
    // It has happened, whatever becomes of its record.
    if let Err(unrecorded) = recorded(&state, vec![event], RECORD_TIME).await {
        tracing::error!(%unrecorded, "that the rollout goes on has no record that is known to be stored");
        let what = "this node goes on in the rollout, and this has no record";
        return Err(unrecorded.problem("resume_not_recorded", what));
    }
    Ok(Json(Resumed { stopped_at, revision }).into_response())
}
