// SPDX-License-Identifier: Apache-2.0
//! `/v1/policies`: what is in force, and changes of it.

pub(super) mod change;
mod changed;
pub(super) mod conditions;
mod settle;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use self::conditions::Conditions;
use super::ApiState;
use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters, PolicyName};
use crate::policy::{AnyPolicy, Problem};

/// What is in force.
#[derive(Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the names are those of the answer")]
pub(super) struct Policies {
    /// Counts the policies that came into force on this node.
    revision: u64,
    /// What nodes are compared by.
    digest: String,
    /// Sorted by name.
    policies: Vec<Policy>,
    /// Why the documents on disk are not what is in force; empty where they are.
    errors: Vec<Problem>,
}

/// One policy.
#[derive(Serialize, ToSchema)]
pub(super) struct Policy {
    /// `metadata.name`.
    name: String,
    /// `ServiceAccessPolicy`, `OperatorAccessPolicy` or `EnforcementRollout`.
    kind: &'static str,
    /// Where it is kept.
    store: &'static str,
    /// Its digest, which is its `ETag` without the quotes.
    etag: String,
    /// The document in its canonical form.
    #[schema(value_type = Object)]
    document: serde_json::Value,
}

impl Policy {
    fn new(policy: &AnyPolicy, store: &'static str) -> Self {
        Self {
            name: policy.name().to_owned(),
            kind: policy.kind(),
            store,
            etag: policy.digest().to_owned(),
            document: policy.document(),
        }
    }
}

/// Lists the policies in force.
#[utoipa::path(get, path = "/v1/policies", tag = "policies",
    params(("If-None-Match" = Option<String>, Header, description = "An ETag that the client has")),
    responses(
    (status = 200, description = "The policies in force; the ETag is their digest, and missing while there are errors", body = Policies, headers(("ETag" = String))),
    (status = 304, description = "They are those that the client has"),
    (status = "4XX", description = "The request is not valid", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn list(
    State(state): State<ApiState>,
    given: Given,
    headers: HeaderMap,
) -> Result<Response, ApiProblem> {
    Parameters::new(given.0, &[]).finish()?;
    let conditions = Conditions::of(&headers)?;
    let snapshot = state.snapshot();
    let digest = snapshot.policies.digest();
    // While there are errors, what is told is more than what the digest stands for.
    let etag = snapshot.policy_error.is_none().then(|| format!("\"{digest}\""));
    if let Some(etag) = etag.as_ref().filter(|_| conditions.has(digest)) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let store = state.kept.name();
    let policies = Policies {
        revision: snapshot.revision,
        digest: snapshot.policies.digest().to_owned(),
        policies: snapshot
            .policies
            .all()
            .iter()
            .map(|policy| Policy::new(policy, store))
            .collect(),
        errors: snapshot.policy_error.as_deref().cloned().unwrap_or_default(),
    };
    let mut response = Json(policies).into_response();
    if let Some(value) = etag.and_then(|etag| HeaderValue::from_str(&etag).ok()) {
        response.headers_mut().insert(header::ETAG, value);
    }
    Ok(response)
}

/// Shows one policy in force.
#[utoipa::path(get, path = "/v1/policies/{name}", tag = "policies",
    params(PolicyName, ("If-None-Match" = Option<String>, Header, description = "An ETag that the client has")),
    responses(
        (status = 200, description = "The policy", body = Policy, headers(("ETag" = String))),
        (status = 304, description = "It is the one that the client has"),
        (status = "4XX", description = "There is none of that name", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn show(
    State(state): State<ApiState>,
    PolicyName(name): PolicyName,
    given: Given,
    headers: HeaderMap,
) -> Result<Response, ApiProblem> {
    Parameters::new(given.0, &[]).finish()?;
    let conditions = Conditions::of(&headers)?;
    let snapshot = state.snapshot();
    let store = state.kept.name();
    let Some(policy) = snapshot.policies.get(&name) else {
        let shown: String = name.chars().take(80).collect();
        let detail = format!(
            "no policy `{shown}` is in force at revision {}",
            snapshot.revision
        );
        return Err(ApiProblem::new(StatusCode::NOT_FOUND, "policy_not_found", detail));
    };
    let etag = format!("\"{}\"", policy.digest());
    if conditions.has(policy.digest()) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    Ok(([(header::ETAG, etag)], Json(Policy::new(policy, store))).into_response())
}
