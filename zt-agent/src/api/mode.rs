// SPDX-License-Identifier: Apache-2.0
//! `POST /v1/mode`: break-glass, and its end.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::problem::ApiProblem;
use super::{ApiState, Caller, body};
use crate::audit::pipeline::ApiEvent;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeBody {
    mode: Change,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    /// Nothing is refused on this node.
    Observe,
    /// Workloads have their own modes again.
    Restore,
}

#[derive(Serialize)]
struct Changed {
    mode: Change,
    observe_all: bool,
}

pub(super) async fn change(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiProblem> {
    let ModeBody { mode } = body::json(&headers, body).await?;
    let observe_all = matches!(mode, Change::Observe);
    if let Err(error) = state.control.observe_all(observe_all).await {
        tracing::error!(%error, observe_all, "the mode of this node cannot be changed");
        return Err(ApiProblem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "mode_not_changed",
            error.to_string(),
        ));
    }
    tracing::warn!(observe_all, caller = %caller.0, "the mode of this node was changed over the API");
    let revision = state.snapshot().revision;
    let event = ApiEvent::ModeChanged {
        observe_all,
        caller: caller.name(),
        revision,
    };
    // It has happened and is in the log; a trail that cannot be written is no reason to hold back the answer.
    let recorded = tokio::time::timeout(super::audit::FLUSH_TIME, state.intake.record_api(vec![event])).await;
    if !matches!(recorded, Ok(Ok(()))) {
        tracing::error!(
            observe_all,
            "the change of mode could not be recorded in the audit trail"
        );
    }
    Ok(Json(Changed { mode, observe_all }).into_response())
}
