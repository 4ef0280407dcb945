// SPDX-License-Identifier: Apache-2.0
//! `/healthz`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use serde_json::json;

use super::problem::ApiProblem;
use super::{ApiState, Caller, guard, problem};
use crate::metrics::{self, Metrics};

/// Health and metrics.
pub fn health_router(state: ApiState) -> Router {
    let metrics = Arc::clone(&state.metrics);
    let routes = Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(show_metrics));
    guarded(routes.with_state(state), Some(metrics))
}

/// Health of an agent that waits for the one that runs to end. It is ready: its programs are verified, and the node's
/// hooks are attached and its policy is loaded by the other, which a supervisor may now stop.
pub fn standby_router(status: String) -> Router {
    let ready = move || async move { line(&json!({ "status": "standing_by", "detail": status })) };
    let routes = Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready));
    // It has no metrics to show yet.
    guarded(routes, None)
}

/// The same for those who may ask; the others are counted in `metrics`.
fn guarded(routes: Router, metrics: Option<Arc<Metrics>>) -> Router {
    routes
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(from_fn_with_state(metrics, check))
}

async fn check(
    State(metrics): State<Option<Arc<Metrics>>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Result<Response, ApiProblem> {
    if let Err(refused) = guard::check_health(&caller, request.headers()) {
        if let Some(metrics) = metrics {
            metrics.api_refused(guard::HOST_REFUSED);
        }
        return Err(refused);
    }
    Ok(next.run(request).await)
}

/// The process runs and answers, whatever it depends on.
async fn alive() -> Response {
    line(&json!({ "status": "ok" }))
}

/// The policy in force is loaded and the hooks are attached.
async fn ready(State(state): State<ApiState>) -> Response {
    let readiness = state.readiness.borrow().clone();
    let waiting = match (readiness.policy, readiness.hooks) {
        _ if readiness.leaving => "it is about to end",
        (true, true) => return line(&ready_words(&state)),
        (false, true) => "no policy is loaded",
        (true, false) => "the hooks are not attached",
        (false, false) => "no policy is loaded and the hooks are not attached",
    };
    let reason = readiness.reason.as_deref().unwrap_or(waiting);
    let (head, body) = ApiProblem::unavailable("not_ready", reason)
        .into_response()
        .into_parts();
    // It is in memory already.
    let mut text = to_bytes(body, usize::MAX).await.unwrap_or_default().to_vec();
    text.push(b'\n');
    Response::from_parts(head, Body::from(text))
}

/// JSON that ends in a newline: these answers are read by people with `curl`, too.
fn line(value: &serde_json::Value) -> Response {
    let json = (header::CONTENT_TYPE, "application/json");
    ([json], format!("{value}\n")).into_response()
}

/// Ready is ready: an old policy is enforced too, and so are identities that SPIRE or Kubernetes cannot
/// confirm now. It is said.
fn ready_words(state: &ApiState) -> serde_json::Value {
    let source = state.source.as_ref().map(|source| source.borrow().clone());
    let mut words = match source.filter(|source| source.stale) {
        Some(source) => {
            let why = source
                .error
                .as_deref()
                .unwrap_or("the engine has not confirmed it yet");
            let detail = format!("the policy in force may be old, {}: {why}", source.url);
            json!({ "status": "ready", "stale": true, "detail": detail })
        }
        None => json!({ "status": "ready" }),
    };
    if let Some(problem) = state.metrics.svid().and_then(|status| status.problem()) {
        words["svid"] = json!(problem);
    }
    let spire = state.spire.as_ref().map(|health| health.status());
    if let Some(status) = spire.filter(|status| !status.connected) {
        let why = status.error.as_deref().unwrap_or("it does not answer");
        words["spire"] = json!(format!("identities are those that were known: {why}"));
    }
    let pods = state.kubernetes.as_ref().and_then(|health| health.stale());
    if let Some((collection, status)) = pods {
        let why = status.error.as_deref().unwrap_or("it does not answer");
        words["kubernetes"] = json!(format!("{collection} are those that were known: {why}"));
    }
    words
}

async fn show_metrics(State(state): State<ApiState>) -> Result<Response, ApiProblem> {
    match state.metrics.encode() {
        Ok(text) => Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()),
        Err(error) => Err(ApiProblem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "metrics_unavailable",
            error.to_string(),
        )),
    }
}
