// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/audit` and `GET /v1/graph`.

use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::ApiState;
use super::problem::ApiProblem;
use super::query::{Parameters, flag};
use crate::audit::Kept;
use crate::audit::query::{DEFAULT_LIMIT, Filter, GraphFilter, MAX_LIMIT};
use crate::audit::sqlite::StoreError;

const PARAMETERS: &[&str] = &[
    "type",
    "since",
    "until",
    "decision",
    "enforced",
    "source",
    "destination",
    "port",
    "policy",
    "node",
    "limit",
    "cursor",
];

/// How long a question may take.
const MAX_TIME: Duration = Duration::from_secs(10);
/// How long it waits for what was decided before it was asked to be stored.
pub(super) const FLUSH_TIME: Duration = Duration::from_secs(1);

type Pairs = Query<Vec<(String, String)>>;

#[derive(Serialize)]
struct Records {
    records: Vec<Kept>,
    next_cursor: Option<String>,
}

pub(super) async fn records(
    State(state): State<ApiState>,
    Query(given): Pairs,
) -> Result<Response, ApiProblem> {
    let mut given = Parameters::new(given, PARAMETERS);
    let filter = Filter {
        kind: given.parsed("type"),
        since: given.parsed("since"),
        until: given.parsed("until"),
        decision: given.with("decision", |text| {
            text.to_ascii_uppercase()
                .parse()
                .map_err(|_| format!("must be ALLOW or DENY, not `{text}`"))
        }),
        enforced: given.with("enforced", flag),
        source: given.parsed("source"),
        destination: given.parsed("destination"),
        port: given.with("port", |text| {
            text.parse()
                .map_err(|_| format!("must be a number from 0 to 65535, not `{text}`"))
        }),
        policy: given.text("policy"),
        node: given.text("node"),
    };
    let limit = given.with("limit", |text| match text.parse() {
        Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        _ => Err(format!("must be a number from 1 to {MAX_LIMIT}, not `{text}`")),
    });
    let cursor = given.parsed("cursor");
    given.finish()?;
    flush(&state).await;
    let page = answered(state.store.query(&filter, cursor, limit.unwrap_or(DEFAULT_LIMIT))).await?;
    let next_cursor = page.next.map(|cursor| cursor.to_string());
    Ok(Json(Records {
        records: page.records,
        next_cursor,
    })
    .into_response())
}

pub(super) async fn graph(
    State(state): State<ApiState>,
    Query(given): Pairs,
) -> Result<Response, ApiProblem> {
    let mut given = Parameters::new(given, &["since", "until", "namespace"]);
    let filter = GraphFilter {
        since: given.parsed("since"),
        until: given.parsed("until"),
        namespace: given.text("namespace"),
    };
    given.finish()?;
    flush(&state).await;
    Ok(Json(answered(state.store.graph(&filter)).await?).into_response())
}

/// Who asks sees what was decided before. A store that is behind answers with what it has.
async fn flush(state: &ApiState) {
    // Nothing is lost by not waiting longer; what is missing shows as lag.
    let _ = tokio::time::timeout(FLUSH_TIME, state.intake.flush()).await;
}

async fn answered<T>(question: impl Future<Output = Result<T, StoreError>>) -> Result<T, ApiProblem> {
    match tokio::time::timeout(MAX_TIME, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            tracing::error!(%error, "the audit store does not answer");
            Err(ApiProblem::unavailable("audit_unavailable", error.to_string()))
        }
        Err(_) => {
            let detail =
                "the audit store did not answer within 10 seconds: narrow the question by time or party";
            Err(ApiProblem::unavailable("audit_slow", detail))
        }
    }
}
