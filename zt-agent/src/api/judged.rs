// SPDX-License-Identifier: Apache-2.0
//! `/v1/replay`, `/v1/recommend` and `/v1/recommend/diff`: recorded connections, and the policy in force or one that is not there yet.
//!
//! They are what the commands of the same names do. They take memory and a processor, so that one is answered at a time, and
//! a few wait.

mod ahead;
mod answer;
mod behind;
pub(super) mod candidate;
pub(super) mod compared;
mod wishes;

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use self::ahead::Ahead;
use self::answer::{RecordedBy, Replay};
use self::wishes::{DeniedQuery, PatternQuery, include_denied, patterns};
use super::audit::{answered, settled};
use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters};
use super::{ApiState, Caller};
use crate::audit::query::{Fold, GraphFilter, MAX_ADDRESSES_ANSWERED, MAX_ANSWERED, MAX_BYTES_ANSWERED};
use crate::policy::{self, RecommendError, Wishes};
use crate::state::Snapshot;
use crate::traffic::{self, Range};

/// Most rows of each list of an answer; how many there are is said beside it.
const MAX_ROWS: usize = 1000;

/// The query of all.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `filter` reads")]
struct RangeQuery {
    /// RFC 3339; not before, by the hour
    since: Option<String>,
    /// RFC 3339; before, by the hour; later than `since`
    until: Option<String>,
    /// With one end in this namespace
    namespace: Option<String>,
}

/// The query of what is judged by the policy in force.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `replay` reads")]
struct StageQuery {
    /// The stage of the rollout in force as at which `would_deny` is judged, instead of the next one
    stage: Option<String>,
}

fn filter(given: Given) -> Result<GraphFilter, ApiProblem> {
    let mut given = Parameters::new(given.0, &["since", "until", "namespace"]);
    let filter = of_range(&mut given);
    given.finish()?;
    Ok(filter)
}

fn of_range(given: &mut Parameters) -> GraphFilter {
    let (since, until) = given.span();
    GraphFilter {
        namespace: given.text("namespace"),
        ..GraphFilter::since(since, until)
    }
}

/// Judges recorded connections by the policy in force.
#[utoipa::path(get, path = "/v1/replay", tag = "policies", params(RangeQuery, StageQuery), responses(
    (status = 200, description = "What the policy in force makes of them, and what it would deny of those that went through, as at the rollout's next stage", body = Replay),
    (status = 404, description = "No connections of that range are recorded (`nothing_recorded`): there is nothing to judge by", body = Details, content_type = "application/problem+json"),
    (status = "4XX", description = "The request is not valid, or there are more than 20,000 different connections, or more than 1,000,000 counts of their single addresses, or those of ends without a name take more than 64 MiB of memory, or they take more room than the server gives to a question (`too_much`): narrow it by time or namespace", body = Details, content_type = "application/problem+json"),
    (status = 503, description = "The store does not answer, or too many wait for such an answer (`busy`, with `Retry-After`)", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn replay(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    given: Given,
) -> Result<Json<Replay>, ApiProblem> {
    let mut given = Parameters::new(given.0, &["since", "until", "namespace", "stage"]);
    let (filter, stage) = (of_range(&mut given), given.text("stage"));
    given.finish()?;
    // Nothing is read for a stage that there is not.
    Ahead::of(&state.snapshot(), stage.as_deref())?;
    let recorded_by = RecordedBy::of(&state.store);
    let fold = |snapshot: &Snapshot| traffic::to_judge(&snapshot.policies, &snapshot.settings);
    let answer = judged(state, &caller, (filter, fold), move |range, snapshot| {
        let table = policy::compile(
            &snapshot.policies,
            &range.workloads(),
            &snapshot.settings,
            snapshot.revision,
        );
        let table = table.map_err(|error| uncompiled(&error))?;
        let mut replay = Replay::of(range, &table, snapshot.revision, recorded_by);
        if let Some(ahead) = Ahead::of(snapshot, stage.as_deref())? {
            ahead.look(&mut replay, (range, &table), snapshot)?;
        }
        Ok(replay)
    });
    answer.await.map(Json)
}

/// A policy that would allow what was recorded.
#[derive(Serialize, ToSchema)]
pub(super) struct Recommendation {
    /// Different connections that it is made for.
    flows: usize,
    /// All of them.
    connections: u64,
    /// How many rules it has.
    rules: usize,
    /// The document: YAML, with how often and when last in comments.
    policy: String,
    /// What it does not allow, and why, at most 1000.
    unsaid: Vec<Unsaid>,
    /// Connections that were decided for another reason than policy, by that reason.
    left_out: BTreeMap<String, u64>,
}

/// Connections that no rule could be written for.
#[derive(Serialize, ToSchema)]
struct Unsaid {
    /// Which.
    connection: String,
    /// Why.
    reason: String,
}

/// Makes the smallest policy that allows what went through.
#[utoipa::path(get, path = "/v1/recommend", tag = "policies", params(RangeQuery, PatternQuery, DeniedQuery), responses(
    (status = 200, description = "The policy that `zt-agent policy recommend` prints. Read it before you put it in force: it allows what happened, wanted or not", body = Recommendation),
    (status = 404, description = "No connections of that range are recorded (`nothing_recorded`), or none of them went through (`nothing_passed`): a policy for that would deny all", body = Details, content_type = "application/problem+json"),
    (status = "4XX", description = "The request is not valid, or its patterns need more entries than the allow table has room for (`policy_does_not_compile`): narrow them; or there are more than 20,000 different connections, or more than 1,000,000 counts of their single addresses, or those of ends without a name take more than 64 MiB of memory, or they take more room than the server gives to a question (`too_much`): narrow it by time or namespace", body = Details, content_type = "application/problem+json"),
    (status = 503, description = "The store does not answer, or too many wait for such an answer (`busy`, with `Retry-After`)", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn recommend(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    given: Given,
) -> Result<Json<Recommendation>, ApiProblem> {
    let known = &["since", "until", "namespace", "pattern", "include_denied"];
    let mut given = Parameters::new(given.0, known);
    let filter = of_range(&mut given);
    let (patterns, included) = (patterns(&mut given), include_denied(&mut given));
    given.finish()?;
    let wishes = Wishes {
        name: "recommended".to_owned(),
        patterns,
    };
    let has_patterns = !wishes.patterns.is_empty();
    let fold = move |snapshot: &Snapshot| traffic::to_recommend(&snapshot.settings, included);
    let answer = judged(state, &caller, (filter, fold), move |range, snapshot| {
        let advice = traffic::advise(range, &wishes, included, &snapshot.settings);
        let advice = advice.map_err(|error| match error {
            RecommendError::Compile(error) if has_patterns => too_wide(&error),
            RecommendError::Compile(error) => uncompiled(&error),
            RecommendError::Invalid(problems) => {
                let detail = "no valid policy can be made of what is recorded: see `errors`";
                ApiProblem::unavailable("not_recommended", detail).with_errors(problems)
            }
        })?;
        if let Some(why) = advice.nothing(range) {
            return Err(ApiProblem::new(StatusCode::NOT_FOUND, "nothing_passed", why));
        }
        let unsaid = advice.unsaid.into_iter().take(MAX_ROWS);
        Ok(Recommendation {
            flows: advice.flows,
            connections: advice.connections,
            rules: advice.made.rules,
            policy: advice.made.text,
            unsaid: unsaid
                .map(|(connection, reason)| Unsaid { connection, reason })
                .collect(),
            left_out: range.left_out.clone(),
        })
    });
    answer.await.map(Json)
}

/// The refusal of a recommendation that does not fit for what was wished for.
fn too_wide(error: &policy::CompileError) -> ApiProblem {
    let detail = format!("{error}; narrow `pattern`, or ask without it");
    ApiProblem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "policy_does_not_compile",
        detail,
    )
}

fn uncompiled(error: &policy::CompileError) -> ApiProblem {
    ApiProblem::unavailable("policy_not_compiled", error.to_string())
}

/// Reads the connections of a range and has them judged, when it is the caller's turn. `fold` says which addresses are one.
async fn judged<T: Send + 'static>(
    state: ApiState,
    caller: &Caller,
    (filter, fold): (GraphFilter, impl FnOnce(&Snapshot) -> Fold + Send + 'static),
    judge: impl FnOnce(&Range, &Snapshot) -> Result<T, ApiProblem> + Send + 'static,
) -> Result<T, ApiProblem> {
    let turn = state.judging().take(&caller.account).await?;
    turn.spent_on(judged_in_turn(state, (filter, fold), judge)).await
}

/// The same for whose turn it is.
async fn judged_in_turn<T: Send + 'static>(
    state: ApiState,
    (filter, fold): (GraphFilter, impl FnOnce(&Snapshot) -> Fold + Send + 'static),
    judge: impl FnOnce(&Range, &Snapshot) -> Result<T, ApiProblem> + Send + 'static,
) -> Result<T, ApiProblem> {
    settled(&state).await;
    let snapshot = state.snapshot();
    let fold = fold(&snapshot)
        .at_most(MAX_ANSWERED, MAX_ADDRESSES_ANSWERED)
        .within(MAX_BYTES_ANSWERED);
    let traffic = answered(state.store.traffic(&filter, &fold)).await?;
    apart(move || {
        let mut range = Range::from(traffic);
        if range.has_unknown_services() {
            range.look_behind(&behind::services(&snapshot.fronts));
        }
        match range.nothing(&filter) {
            Some(why) => Err(ApiProblem::new(StatusCode::NOT_FOUND, "nothing_recorded", why)),
            None => judge(&range, &snapshot),
        }
    })
    .await
}

/// Works something out where that keeps nobody else waiting.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiProblem> + Send + 'static,
) -> Result<T, ApiProblem> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(ApiProblem::unavailable(
            "not_judged",
            "judging what is recorded broke off: see the agent's log",
        ))
    })
}
