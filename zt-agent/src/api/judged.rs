// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/replay` and `GET /v1/recommend`: recorded connections, and the policy in force or one that is not there yet.
//!
//! Both are what the commands of the same names do, with the policy of this moment. They take memory and a processor, so that
//! one is answered at a time, and a few wait.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::audit::{answered, settled};
use super::problem::{ApiProblem, Details};
use super::query::{Given, Parameters};
use super::{ApiState, Caller};
use crate::audit::query::{GraphFilter, MAX_ANSWERED};
use crate::audit::record::Timestamp;
use crate::policy::{self, RecommendError, Wishes};
use crate::state::Snapshot;
use crate::traffic::{self, Change, Range, Replayed, WouldDeny};

/// Most rows of each list of an answer; how many there are is said beside it.
const MAX_ROWS: usize = 1000;

/// The query of both.
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

fn filter(given: Given) -> Result<GraphFilter, ApiProblem> {
    let mut given = Parameters::new(given.0, &["since", "until", "namespace"]);
    let (since, until) = given.span();
    let filter = GraphFilter {
        namespace: given.text("namespace"),
        ..GraphFilter::since(since, until)
    };
    given.finish()?;
    Ok(filter)
}

/// What the policy in force makes of recorded connections.
#[derive(Serialize, ToSchema)]
pub(super) struct Replay {
    /// Revision in force.
    revision: u64,
    /// Different connections that were looked at.
    flows: u64,
    /// All of them.
    connections: u64,
    /// Those that went through and that the policy in force denies: what enforcing would refuse now.
    would_deny: Sum,
    /// What was allowed is denied now.
    newly_denied: Sum,
    /// What was allowed must prove who it is now.
    needs_proof: Sum,
    /// What was denied is allowed now.
    newly_allowed: Sum,
    /// What cannot be said from what is recorded.
    undecided: Sum,
    /// Connections that were decided for another reason than policy, by that reason.
    left_out: BTreeMap<String, u64>,
    /// The connections of `would_deny`, the most frequent first, at most 1000.
    denied: Vec<Judged>,
    /// The connections of the others, at most 1000.
    changes: Vec<Changed>,
}

/// How many.
#[derive(Serialize, ToSchema)]
#[schema(as = ReplaySum)]
struct Sum {
    /// Different ones.
    flows: usize,
    /// All.
    connections: u64,
}

/// Connections of one kind, and what the policy in force says of them.
#[derive(Serialize, ToSchema)]
#[schema(as = ReplayJudged)]
struct Judged {
    /// SPIFFE ID or entity.
    source: String,
    /// SPIFFE ID or entity.
    destination: String,
    /// Target port.
    port: u16,
    /// IP protocol.
    protocol: String,
    /// The rule that decides; null where none does.
    #[schema(required = true)]
    rule: Option<String>,
    /// Why.
    reason: String,
    /// How many; of those that would be denied, how many went through.
    connections: u64,
    /// The first.
    #[schema(value_type = String)]
    first_seen: Timestamp,
    /// The last.
    #[schema(value_type = String)]
    last_seen: Timestamp,
}

impl From<WouldDeny<'_>> for Judged {
    fn from(one: WouldDeny<'_>) -> Self {
        let (recorded, span) = (one.recorded, one.recorded.passed_span());
        Self {
            source: recorded.source.clone(),
            destination: recorded.destination.clone(),
            port: recorded.port,
            protocol: recorded.protocol.clone(),
            rule: one.rule,
            reason: one.reason.to_owned(),
            connections: recorded.passed(false),
            first_seen: span.first,
            last_seen: span.last,
        }
    }
}

/// Connections of which the policy in force says something else than was said.
#[derive(Serialize, ToSchema)]
#[schema(as = ReplayChange)]
struct Changed {
    /// `newly_denied`, `needs_proof`, `newly_allowed` or `undecided`.
    #[schema(value_type = String)]
    change: Change,
    /// Which they are, and what is said of them now.
    #[serde(flatten)]
    judged: Judged,
    /// Of ends without a name of their own.
    #[schema(value_type = Vec<String>)]
    addresses: BTreeSet<IpAddr>,
}

/// Judges recorded connections by the policy in force.
#[utoipa::path(get, path = "/v1/replay", tag = "policies", params(RangeQuery), responses(
    (status = 200, description = "What the policy in force makes of them, as `zt-agent policy replay` says of a candidate", body = Replay),
    (status = 404, description = "No connections of that range are recorded (`nothing_recorded`): there is nothing to judge by", body = Details, content_type = "application/problem+json"),
    (status = "4XX", description = "The request is not valid, or there are more than 20,000 different connections, or they take more room than the server gives to a question (`too_much`): narrow it by time or namespace", body = Details, content_type = "application/problem+json"),
    (status = 503, description = "The store does not answer, or too many wait for such an answer (`busy`, with `Retry-After`)", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn replay(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    given: Given,
) -> Result<Json<Replay>, ApiProblem> {
    let filter = filter(given)?;
    let answer = judged(state, &caller, filter, |range, snapshot| {
        let table = policy::compile(
            &snapshot.policies,
            &range.workloads(),
            &snapshot.settings,
            snapshot.revision,
        );
        let table = table.map_err(|error| uncompiled(&error))?;
        let replayed = Replayed::of(range, &table);
        let denied = traffic::would_deny(range, &table);
        let sum = |change| {
            let (flows, connections) = replayed.sum(change);
            Sum { flows, connections }
        };
        Ok(Replay {
            revision: snapshot.revision,
            flows: replayed.flows,
            connections: replayed.connections,
            would_deny: Sum {
                flows: denied.len(),
                connections: denied
                    .iter()
                    .fold(0_u64, |sum, one| sum.saturating_add(one.recorded.passed(false))),
            },
            newly_denied: sum(Change::NewlyDenied),
            needs_proof: sum(Change::NeedsProof),
            newly_allowed: sum(Change::NewlyAllowed),
            undecided: sum(Change::Undecided),
            left_out: range.left_out.clone(),
            denied: denied.into_iter().take(MAX_ROWS).map(Judged::from).collect(),
            changes: changes(replayed),
        })
    });
    answer.await.map(Json)
}

fn changes(replayed: Replayed) -> Vec<Changed> {
    let rows = replayed.rows.into_iter().take(MAX_ROWS);
    rows.map(|(row, times)| Changed {
        change: row.change,
        judged: Judged {
            source: row.source,
            destination: row.destination,
            port: row.port,
            protocol: row.protocol,
            rule: row.rule,
            reason: row.reason,
            connections: times.connections,
            first_seen: times.first_seen,
            last_seen: times.last_seen,
        },
        addresses: times.addresses,
    })
    .collect()
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
#[utoipa::path(get, path = "/v1/recommend", tag = "policies", params(RangeQuery), responses(
    (status = 200, description = "The policy that `zt-agent policy recommend` prints. Read it before you put it in force: it allows what happened, wanted or not", body = Recommendation),
    (status = 404, description = "No connections of that range are recorded (`nothing_recorded`), or none of them went through (`nothing_passed`): a policy for that would deny all", body = Details, content_type = "application/problem+json"),
    (status = "4XX", description = "The request is not valid, or there are more than 20,000 different connections, or they take more room than the server gives to a question (`too_much`): narrow it by time or namespace", body = Details, content_type = "application/problem+json"),
    (status = 503, description = "The store does not answer, or too many wait for such an answer (`busy`, with `Retry-After`)", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn recommend(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    given: Given,
) -> Result<Json<Recommendation>, ApiProblem> {
    let filter = filter(given)?;
    let answer = judged(state, &caller, filter, |range, snapshot| {
        let wishes = Wishes {
            name: "recommended".to_owned(),
            patterns: Vec::new(),
        };
        let advice =
            traffic::advise(range, &wishes, false, &snapshot.settings).map_err(|error| match error {
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

fn uncompiled(error: &policy::CompileError) -> ApiProblem {
    ApiProblem::unavailable("policy_not_compiled", error.to_string())
}

/// Reads the connections of a range, and has them judged where that keeps nobody else waiting.
async fn judged<T: Send + 'static>(
    state: ApiState,
    caller: &Caller,
    filter: GraphFilter,
    judge: impl FnOnce(&Range, &Snapshot) -> Result<T, ApiProblem> + Send + 'static,
) -> Result<T, ApiProblem> {
    let turn = state.judging().take(&caller.account).await?;
    let answer = async move {
        settled(&state).await;
        let traffic = answered(state.store.traffic(&filter, MAX_ANSWERED)).await?;
        let snapshot = state.snapshot();
        let judged = tokio::task::spawn_blocking(move || {
            let range = Range::from(traffic);
            match range.nothing(&filter) {
                Some(why) => Err(ApiProblem::new(StatusCode::NOT_FOUND, "nothing_recorded", why)),
                None => judge(&range, &snapshot),
            }
        });
        judged.await.unwrap_or_else(|_| {
            Err(ApiProblem::unavailable(
                "not_judged",
                "judging what is recorded broke off: see the agent's log",
            ))
        })
    };
    turn.spent_on(answer).await
}
