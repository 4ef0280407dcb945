// SPDX-License-Identifier: Apache-2.0
//! `GET /openapi.json`: the API described by the code that serves it.

use axum::Extension;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use crate::audit::query::Unreadable;
use crate::audit::record::Entry;

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
    /// What it says.
    #[serde(flatten)]
    entry: Entry,
    /// Who gave it its place in their chain; not there where it is older than the chain.
    writer: Option<String>,
    /// Its number in that chain, from 1.
    seq: Option<u64>,
    /// Its hash, hexadecimal.
    hash: Option<String>,
}

/// Describes what `audit::query::Unreadable` serializes to.
///
/// A row of the trail that is no record: damaged, of a later version, or made up by somebody who may insert. It stands where
/// the record would; the fields of a decision are there and null.
#[derive(Serialize, ToSchema)]
pub(super) struct UnreadableRow {
    /// `unreadable`.
    r#type: String,
    /// The row.
    #[serde(flatten)]
    row: Unreadable,
}

/// Describes what `audit::query::Shown` serializes to.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, clippy::large_enum_variant, reason = "describes and is not made")]
pub(super) enum RecordOrUnreadable {
    /// A record.
    Record(Record),
    /// What cannot be read.
    Unreadable(UnreadableRow),
}
