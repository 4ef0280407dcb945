// SPDX-License-Identifier: Apache-2.0
//! `POST /v1/replay`: recorded connections, and policies that are not in force.
//!
//! They are judged as `zt-agent policy replay` judges by a directory. They come into force nowhere and are kept nowhere, so that
//! whoever may read may ask.

use std::collections::BTreeSet;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;

use super::{RangeQuery, RecordedBy, Replay, apart, filter, judged_in_turn};
use crate::api::policies::change::{does_not_compile, refused};
use crate::api::problem::{ApiProblem, Details};
use crate::api::query::Given;
use crate::api::{ApiState, Caller, body};
use crate::policy::{self, Document, PolicySet, Settings};
use crate::policy_dir::{BODY, EditError};
use crate::spiffe_id::Pattern;
use crate::state::Snapshot;
use crate::traffic;

/// How often patterns of a candidate are held against identities at most. That is a second or two, and 160 MB where all of them fit:
/// whoever may read shall not take a processor and memory that others need.
const MAX_COMPARED: usize = 20_000_000;

/// Judges recorded connections by policies that are not in force.
#[utoipa::path(
    post, path = "/v1/replay", tag = "policies", params(RangeQuery),
    request_body(
        content((serde_json::Value = "application/yaml"), (serde_json::Value = "application/json")),
        description = "One or several policy documents, YAML or JSON: those by which is judged, in place of all that are in force"
    ),
    responses(
        (status = 200, description = "What they make of the connections, as `zt-agent policy replay` says of a directory. Nothing was changed or recorded", body = Replay),
        (status = 404, description = "No connections of that range are recorded (`nothing_recorded`): there is nothing to judge by", body = Details, content_type = "application/problem+json"),
        (status = "4XX", description = "The request is not valid, or the policies are not (`invalid_policy` with `errors`, `policy_does_not_compile`; as with `PUT /v1/policies/{name}`), or there are more than 20,000 different connections, or more than 1,000,000 counts of their single addresses, or those of ends without a name take more than 64 MiB of memory, or they take more room than the server gives to a question, or there are too many patterns for them (`too_much`): narrow it by time or namespace", body = Details, content_type = "application/problem+json"),
        (status = 503, description = "The store does not answer, or too many wait for such an answer (`busy`, with `Retry-After`)", body = Details, content_type = "application/problem+json"),
    ),
)]
pub(in crate::api) async fn replay_candidate(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    given: Given,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Replay>, ApiProblem> {
    let filter = filter(given)?;
    // Nobody waits for a body that is slow to come.
    let text = body::document(&headers, body).await?;
    let turn = state.judging().take(&caller.account).await?;
    let answer = async move {
        let settings = Settings {
            // Where this node stopped in the rollout in force says nothing of the candidate's.
            most_stages: None,
            ..Settings::clone(&state.snapshot().settings)
        };
        let (set, settings) = apart(move || Ok((parsed(text, &settings)?, settings))).await?;
        let recorded_by = RecordedBy::of(&state.store);
        let fold = traffic::to_judge(&set, &settings);
        judged_in_turn(state, (filter, |_: &Snapshot| fold), move |range, snapshot| {
            let workloads = range.workloads();
            check_effort(&set, workloads.len(), MAX_COMPARED)?;
            let table = policy::compile(&set, &workloads, &settings, snapshot.revision);
            let table = table.map_err(|error| does_not_compile(&error))?;
            Ok(Replay::of(range, &table, snapshot.revision, recorded_by))
        })
        .await
    };
    turn.spent_on(answer).await.map(Json)
}

/// The policies of a body; what is wrong with them is said as it is of a change.
fn parsed(text: String, settings: &Settings) -> Result<PolicySet, ApiProblem> {
    let document = Document {
        file: BODY.to_owned(),
        text,
    };
    policy::parse(&[document], settings).map_err(|problems| refused(EditError::Invalid(problems)))
}

/// Refuses what has so many patterns that finding out whom they stand for, of these workloads and of those that the policies name,
/// would take too long.
fn check_effort(set: &PolicySet, workloads: usize, most: usize) -> Result<(), ApiProblem> {
    let patterns: BTreeSet<&str> = set.patterns().map(Pattern::as_str).collect();
    let (patterns, identities) = (patterns.len(), workloads + set.identities().len());
    if patterns.saturating_mul(identities) <= most {
        return Ok(());
    }
    let detail = format!(
        "{patterns} patterns for {identities} identities are more than an answer may take: narrow it by time or namespace, or use `zt-agent policy replay`"
    );
    Err(ApiProblem::bad_request("too_much", detail))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    #[test]
    fn a_candidate_of_too_many_patterns_is_refused() {
        let text = "
apiVersion: zt.hanzo.ai/v1
kind: ServiceAccessPolicy
metadata: {name: p}
spec:
  rules:
    - from: {spiffe: 'spiffe://hanzo.ai/a/*'}
      to: [{spiffe: 'spiffe://hanzo.ai/b/*', ports: [1]}, {spiffe: 'spiffe://hanzo.ai/c', ports: [1]}]
    - from: {spiffe: 'spiffe://hanzo.ai/a/*'}
      to: [{spiffe: '*', ports: [1]}]
";
        let set = parsed(text.to_owned(), &Settings::default()).expect("valid");
        // Two patterns, each for nine workloads and the one that is named.
        assert!(check_effort(&set, 9, 20).is_ok());
        let refused = check_effort(&set, 9, 19).expect_err("too many");
        assert_eq!(refused.into_response().status().as_u16(), 400);
    }
}
