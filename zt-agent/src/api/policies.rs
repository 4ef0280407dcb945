// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/policies` and `GET /v1/policies/{name}`: what is in force.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::ApiState;
use super::problem::ApiProblem;
use crate::policy::{KIND, Problem, ServiceAccessPolicy};

/// Where policies of a policy directory are kept.
const STORE: &str = "directory";

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the names are those of the answer")]
struct Policies {
    revision: u64,
    digest: String,
    policies: Vec<Policy>,
    /// Why the documents on disk are not what is in force; empty where they are.
    errors: Vec<Problem>,
}

#[derive(Serialize)]
struct Policy {
    name: String,
    kind: &'static str,
    store: &'static str,
    etag: String,
    document: serde_json::Value,
}

impl From<&ServiceAccessPolicy> for Policy {
    fn from(policy: &ServiceAccessPolicy) -> Self {
        Self {
            name: policy.name.clone(),
            kind: KIND,
            store: STORE,
            etag: policy.digest().to_owned(),
            document: policy.document(),
        }
    }
}

pub(super) async fn list(State(state): State<ApiState>) -> Response {
    let snapshot = state.snapshot();
    let policies = Policies {
        revision: snapshot.revision,
        digest: snapshot.policies.digest().to_owned(),
        policies: snapshot
            .policies
            .policies()
            .iter()
            .map(|policy| Policy::from(&**policy))
            .collect(),
        errors: snapshot.policy_error.as_deref().cloned().unwrap_or_default(),
    };
    Json(policies).into_response()
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(name): Path<String>,
) -> Result<Response, ApiProblem> {
    let snapshot = state.snapshot();
    let Some(policy) = snapshot.policies.get(&name) else {
        let detail = format!("no policy `{name}` is in force at revision {}", snapshot.revision);
        return Err(ApiProblem::new(StatusCode::NOT_FOUND, "policy_not_found", detail));
    };
    let policy = Policy::from(&**policy);
    let etag = format!("\"{}\"", policy.etag);
    Ok(([(header::ETAG, etag)], Json(policy)).into_response())
}
