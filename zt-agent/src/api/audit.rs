// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/audit` and `GET /v1/graph`.

use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::RecordOrUnreadable;
use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters, flag};
use super::{ApiState, Caller};
use crate::audit::archive::ArchiveError;
use crate::audit::query::{DEFAULT_LIMIT, Filter, Graph, GraphFilter, MAX_LIMIT, Shown};

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
/// How long it waits for what was decided before it was asked to be stored. A recorder that keeps up needs less; one
/// that does not is not waited for, its lag is a metric.
const FLUSH_TIME: Duration = Duration::from_millis(50);

/// A page of the trail.
#[derive(Serialize, ToSchema)]
pub(super) struct Records {
    /// The newest first.
    #[schema(value_type = Vec<RecordOrUnreadable>)]
    records: Vec<Shown>,
    /// Where the next page begins; null on the last one.
    #[schema(required = true)]
    next_cursor: Option<String>,
}

/// The query of the trail.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `records` reads")]
struct RecordsQuery {
    /// `decision`, `policy_change`, `mode_change` or `identity_change`
    r#type: Option<String>,
    /// RFC 3339; not before
    since: Option<String>,
    /// RFC 3339; before; later than `since`
    until: Option<String>,
    /// `ALLOW` or `DENY`
    decision: Option<String>,
    /// Decided at an end that enforces, or that does not
    enforced: Option<bool>,
    /// A SPIFFE ID, a pattern of them, or an entity
    source: Option<String>,
    /// As `source`
    destination: Option<String>,
    /// The target port
    port: Option<u16>,
    /// A policy, or one rule of it
    policy: Option<String>,
    /// With one end on this node
    node: Option<String>,
    /// 1 to 1000
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// The `next_cursor` of an earlier answer
    cursor: Option<String>,
}

/// Searches the trail.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(RecordsQuery), responses(
    (status = 200, description = "A page, the newest first. It may have fewer records than `limit`, or none, and go on all the same: where `next_cursor` is not null there may be more", body = Records),
    (status = "4XX", description = "The request is not valid", body = Details, content_type = "application/problem+json"),
    (status = 503, description = "The store does not answer (`audit_unavailable`), or not within ten seconds (`audit_slow`)", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn records(State(state): State<ApiState>, given: Given) -> Result<Response, ApiProblem> {
    let mut given = Parameters::new(given.0, PARAMETERS);
    let (since, until) = given.span();
    let filter = Filter {
        kind: given.parsed("type"),
        since,
        until,
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
    shortly(flush(&state)).await;
    let page = answered(state.store.query(&filter, cursor, limit.unwrap_or(DEFAULT_LIMIT))).await?;
    let next_cursor = page.next.map(|cursor| cursor.to_string());
    Ok(Json(Records {
        records: page.into_shown(),
        next_cursor,
    })
    .into_response())
}

/// The query of the graph.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `graph` reads")]
struct GraphQuery {
    /// RFC 3339; not before
    since: Option<String>,
    /// RFC 3339; before; later than `since`
    until: Option<String>,
    /// With one end in this namespace
    namespace: Option<String>,
}

/// Says who talks to whom.
#[utoipa::path(get, path = "/v1/graph", tag = "audit", params(GraphQuery), responses(
    (status = 200, description = "Who talks to whom", body = Graph),
    (status = "4XX", description = "The request is not valid, or the graph has more than 100,000 edges, or takes more room than the server gives to a question (`too_much`): narrow it by time or namespace", body = Details, content_type = "application/problem+json"),
    (status = 503, description = "The store does not answer (`audit_unavailable`), or not within ten seconds (`audit_slow`), or too many wait for such an answer (`busy`, with `Retry-After`)", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn graph(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    given: Given,
) -> Result<Response, ApiProblem> {
    let mut given = Parameters::new(given.0, &["since", "until", "namespace"]);
    let (since, until) = given.span();
    let filter = GraphFilter {
        since,
        until,
        namespace: given.text("namespace"),
    };
    given.finish()?;
    let turn = state.counting().take(&caller.account).await?;
    let answer = async move {
        settled(&state).await;
        Ok(Json(answered(state.store.graph(&filter)).await?).into_response())
    };
    turn.spent_on(answer).await
}

/// Waits until what was decided before the question is counted, but not for long.
pub(super) async fn settled(state: &ApiState) {
    shortly(async {
        flush(state).await;
        state.store.settle().await;
    })
    .await;
}

/// Waits until what was decided before the question is stored.
async fn flush(state: &ApiState) {
    // An error means that the agent is stopping.
    let _ = state.intake.flush().await;
}

/// Waits, but not for long: an answer without the latest is worth more than a late one. Says whether it was done.
pub(super) async fn shortly(work: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(FLUSH_TIME, work).await.is_ok()
}

/// The answer of the store, in bounded time.
pub(super) async fn answered<T>(
    question: impl Future<Output = Result<T, ArchiveError>>,
) -> Result<T, ApiProblem> {
    answered_within(MAX_TIME, question).await
}

async fn answered_within<T>(
    time: Duration,
    question: impl Future<Output = Result<T, ArchiveError>>,
) -> Result<T, ApiProblem> {
    let slow = || {
        let detail = "the audit store did not answer within 10 seconds: narrow the question by time or party";
        Err(ApiProblem::unavailable("audit_slow", detail))
    };
    match tokio::time::timeout(time, question).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if error.is_slow() => slow(),
        Ok(Err(error)) if error.is_too_much() => Err(ApiProblem::bad_request("too_much", error.to_string())),
        Ok(Err(error)) if error.is_forbidden() => {
            let detail = format!(
                "this agent records for others and may not read what they keep: ask a policy engine, or an agent whose login in audit.dsn, or in audit.readDsn, is a member of zt_audit_reader ({error})"
            );
            Err(ApiProblem::new(StatusCode::CONFLICT, "audit_elsewhere", detail))
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "the audit store does not answer");
            Err(ApiProblem::unavailable("audit_unavailable", error.to_string()))
        }
        Err(_) => slow(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;
    use crate::audit::postgres::PgError;
    use crate::audit::query::TooMuch;
    use crate::audit::sqlite::StoreError;

    async fn told(question: impl Future<Output = Result<(), ArchiveError>>) -> (u16, String) {
        let problem = answered_within(Duration::from_millis(10), question).await;
        let answer = problem.expect_err("not answered").into_response();
        let status = answer.status().as_u16();
        let body = to_bytes(answer.into_body(), 1 << 16).await.expect("body");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        (status, body["code"].as_str().expect("a code").to_owned())
    }

    #[tokio::test]
    async fn a_question_that_is_not_answered_is_told_why() {
        let slow = std::future::pending();
        assert_eq!(told(slow).await, (503, "audit_slow".to_owned()));
        let slow = ArchiveError::from(PgError::Slow { seconds: 10 });
        assert_eq!(told(async { Err(slow) }).await, (503, "audit_slow".to_owned()));
        for too_much in [
            TooMuch::Edges,
            TooMuch::Seen(1),
            TooMuch::Addresses(1),
            TooMuch::Bytes(1),
            TooMuch::Room,
        ] {
            let error = ArchiveError::from(StoreError::from(too_much));
            assert_eq!(told(async { Err(error) }).await, (400, "too_much".to_owned()));
        }
        let closed = ArchiveError::from(StoreError::Dsn { problem: "x" });
        assert_eq!(
            told(async { Err(closed) }).await,
            (503, "audit_unavailable".to_owned())
        );
    }
}
