// SPDX-License-Identifier: Apache-2.0
//! `GET /openapi.json`: the API described by the code that serves it.

use axum::Extension;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

/// What is said of the API as a whole. Paths and schemas come from the handlers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "zt-agent",
        description = "Identity policy, enforced by the Linux kernel: decisions, policies and the audit trail. Errors are problem details (RFC 9457) with a stable `code`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "evaluate", description = "What policy says"),
        (name = "policies", description = "What is in force, and changes of it"),
        (name = "audit", description = "What was decided, and by whom it was changed"),
        (name = "nodes", description = "Nodes that follow this agent"),
        (name = "node", description = "This node"),
    ),
    components(schemas(super::evaluate::Answers)),
)]
pub(super) struct Document;

/// The document as it is served.
#[derive(Clone)]
pub(super) struct Served(Bytes);

impl Served {
    /// Of this document.
    pub(super) fn of(document: &utoipa::openapi::OpenApi) -> Self {
        // Made of texts, lists and maps: it cannot fail to be JSON.
        Self(serde_json::to_vec(document).unwrap_or_default().into())
    }
}

/// Describes this API.
#[utoipa::path(get, path = "/openapi.json", tag = "node", responses(
    (status = 200, description = "This document", content_type = "application/json"),
))]
pub(super) async fn show(Extension(Served(bytes)): Extension<Served>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], bytes).into_response()
}

/// Describes what `audit::Kept` serializes to.
///
/// An entry of the trail: the record of the specification and the fields that are added to it. A change of policy, mode
/// or identity has `change`, and null where a decision has something.
#[derive(Serialize, ToSchema)]
pub(super) struct Record {
    /// `UUIDv7`.
    id: String,
    /// `decision`, `policy_change`, `mode_change` or `identity_change`.
    r#type: String,
    /// RFC 3339 in UTC.
    timestamp: String,
    /// `ALLOW` or `DENY`.
    #[schema(required = true)]
    decision: Option<String>,
    /// Who connects.
    #[schema(value_type = Option<Object>, required = true)]
    source: Option<serde_json::Value>,
    /// To whom.
    #[schema(value_type = Option<Object>, required = true)]
    destination: Option<serde_json::Value>,
    /// The rule that decided.
    #[schema(required = true)]
    policy_matched: Option<String>,
    /// Microseconds.
    #[schema(required = true)]
    latency_us: Option<f64>,
    /// The cluster whose agent recorded this.
    cluster: String,
    /// Revision in force.
    revision: u64,
    /// Who asked or changed something.
    caller: Option<String>,
    /// Of an operator's evaluation: whether they gave a second factor, as the caller says.
    mfa: Option<bool>,
    /// Of an operator's evaluation: the incident that they named, as the caller says.
    incident: Option<String>,
    /// What was changed.
    #[schema(value_type = Option<Object>)]
    change: Option<serde_json::Value>,
}

/// Describes what `audit::query::Unreadable` serializes to.
///
/// A row of the trail that is no record: damaged, of a later version, or made up by somebody who may insert. It stands where
/// the record would; the fields of a decision are there and null.
#[derive(Serialize, ToSchema)]
pub(super) struct Unreadable {
    /// `UUIDv7`.
    id: String,
    /// `unreadable`.
    r#type: String,
    /// RFC 3339 in UTC.
    timestamp: String,
    /// In whose chain it says that it is.
    writer: String,
    /// Where in that chain.
    seq: u64,
    /// The login that inserted it; null where there are no logins, in a file.
    login: Option<String>,
    /// What is wrong with it.
    cause: String,
}

/// Describes what `audit::query::Shown` serializes to.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes and is not made")]
pub(super) enum RecordOrUnreadable {
    /// A record.
    Record(Record),
    /// What cannot be read.
    Unreadable(Unreadable),
}

/// Describes what `audit::query::Graph` serializes to: who talks to whom.
#[derive(Serialize, ToSchema)]
pub(super) struct GraphAnswer {
    /// Each party once.
    #[schema(value_type = Vec<Object>)]
    nodes: Vec<serde_json::Value>,
    /// Each pair, protocol and port once.
    #[schema(value_type = Vec<Object>)]
    edges: Vec<serde_json::Value>,
}
