// SPDX-License-Identifier: Apache-2.0
//! `/healthz`, `/readyz` and `/metrics`.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::ApiState;
use super::problem::ApiProblem;
use crate::metrics;

/// The process runs and answers, whatever it depends on.
pub(super) async fn alive() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// The policy in force is loaded and the hooks are attached.
pub(super) async fn ready(State(state): State<ApiState>) -> Result<Response, ApiProblem> {
    let readiness = *state.readiness.borrow();
    let waiting = match (readiness.policy, readiness.hooks) {
        (true, true) => return Ok(Json(json!({ "status": "ready" })).into_response()),
        (false, true) => "no policy is loaded",
        (true, false) => "the hooks are not attached",
        (false, false) => "no policy is loaded and the hooks are not attached",
    };
    Err(ApiProblem::unavailable("not_ready", waiting))
}

pub(super) async fn metrics(State(state): State<ApiState>) -> Result<Response, ApiProblem> {
    match state.metrics.encode() {
        Ok(text) => Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()),
        Err(error) => Err(ApiProblem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "metrics_unavailable",
            error.to_string(),
        )),
    }
}
