// SPDX-License-Identifier: Apache-2.0
//! `POST /v1/evaluate`: what policy says, by the function that the kernel calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::party::{Named, PartyFields, SourceFields, named};
use super::problem::{ApiProblem, field};
use super::{ApiState, Caller, body};
use crate::audit::Evaluation;
use crate::audit::pipeline::ApiEvent;
use crate::audit::record::{Latency, Mode};
use crate::identity;
use crate::policy::{AllowTable, Protocol};
use crate::problem::Problem;
use crate::state::Snapshot;

/// Most requests of one batch.
const MAX_BATCH: usize = 1000;
/// How long an answer waits for its place in the audit queue. Without one it is not given: what is not recorded has
/// not been decided.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// The body: one request, or `requests`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvaluateBody {
    source: Option<SourceFields>,
    destination: Option<DestinationFields>,
    requests: Option<Vec<Request>>,
    /// An operator's request, which this version knows but does not decide.
    operator: Option<serde_json::Value>,
    target: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    source: Option<SourceFields>,
    destination: Option<DestinationFields>,
    operator: Option<serde_json::Value>,
    target: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DestinationFields {
    spiffe_id: Option<String>,
    entity: Option<String>,
    address: Option<String>,
    port: Option<serde_json::Value>,
    protocol: Option<String>,
}

/// One answer.
#[derive(Debug, Serialize)]
struct Answer {
    decision: &'static str,
    policy_matched: Option<Arc<str>>,
    mode: Mode,
    enforced: bool,
    revision: u64,
    reason: &'static str,
    latency_us: Latency,
}

#[derive(Debug, Serialize)]
struct Answers {
    responses: Vec<Answer>,
}

/// A request that makes sense.
struct Question {
    source: Named,
    destination: Named,
    port: u16,
    protocol: Protocol,
}

pub(super) async fn evaluate(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiProblem> {
    let body: EvaluateBody = body::json(&headers, body).await?;
    let snapshot = state.snapshot();
    let is_batch = body.requests.is_some();
    let questions = questions(body, &snapshot.table)?;
    let caller = caller.name();
    let (mut answers, mut events) = (Vec::new(), Vec::new());
    for question in questions {
        let (answer, evaluation) = answer(&question, &snapshot, &caller);
        answers.push(answer);
        events.push(ApiEvent::Evaluated(evaluation));
    }
    match tokio::time::timeout(MAX_WAIT, state.intake.record_api(events)).await {
        Ok(Ok(())) => {}
        Ok(Err(closed)) => return Err(ApiProblem::unavailable("stopping", closed.to_string())),
        Err(_) => {
            let detail =
                "the decision cannot be recorded now, so it is not given: is the audit store failing?";
            return Err(ApiProblem::unavailable("audit_unavailable", detail));
        }
    }
    if is_batch {
        return Ok(axum::Json(Answers { responses: answers }).into_response());
    }
    // A body that is no batch makes one question.
    Ok(answers.pop().map_or_else(
        || StatusCode::NO_CONTENT.into_response(),
        |answer| axum::Json(answer).into_response(),
    ))
}

/// The questions of a body; all that is wrong with it otherwise.
fn questions(body: EvaluateBody, table: &AllowTable) -> Result<Vec<Question>, ApiProblem> {
    let single = Request {
        source: body.source,
        destination: body.destination,
        operator: body.operator,
        target: body.target,
    };
    let Some(requests) = body.requests else {
        refuse_operator(&single)?;
        let mut errors = Vec::new();
        let question = question(&single, "", table, &mut errors);
        return question
            .map(|question| vec![question])
            .ok_or_else(|| ApiProblem::fields("invalid_body", errors));
    };
    if single.source.is_some()
        || single.destination.is_some()
        || single.operator.is_some()
        || single.target.is_some()
    {
        let error = field("requests", "a batch has nothing beside its `requests`");
        return Err(ApiProblem::fields("invalid_body", vec![error]));
    }
    if requests.is_empty() || requests.len() > MAX_BATCH {
        let error = field(
            "requests",
            format!(
                "a batch has 1 to {MAX_BATCH} requests, this one {}",
                requests.len()
            ),
        );
        return Err(ApiProblem::fields("invalid_body", vec![error]));
    }
    let mut errors = Vec::new();
    let mut questions = Vec::with_capacity(requests.len());
    for (index, request) in requests.iter().enumerate() {
        refuse_operator(request)?;
        questions.extend(question(
            request,
            &format!("requests[{index}]."),
            table,
            &mut errors,
        ));
    }
    if errors.is_empty() {
        Ok(questions)
    } else {
        Err(ApiProblem::fields("invalid_body", errors))
    }
}

fn refuse_operator(request: &Request) -> Result<(), ApiProblem> {
    if request.operator.is_none() && request.target.is_none() {
        return Ok(());
    }
    let detail =
        "this agent decides between workloads (source, destination); it knows no policies for operators";
    Err(ApiProblem::bad_request("operators_not_supported", detail))
}

/// One question; `None` where errors were added.
fn question(request: &Request, at: &str, table: &AllowTable, errors: &mut Vec<Problem>) -> Option<Question> {
    let before = errors.len();
    let mut keep = |result: Result<Named, Problem>| result.map_err(|error| errors.push(error)).ok();
    let source = request
        .source
        .as_ref()
        .map_or_else(PartyFields::default, |source| source.clone().into());
    let source = keep(named(&source, &format!("{at}source"), table));
    let empty = DestinationFields {
        spiffe_id: None,
        entity: None,
        address: None,
        port: None,
        protocol: None,
    };
    let fields = request.destination.as_ref().unwrap_or(&empty);
    let destination = PartyFields {
        spiffe_id: fields.spiffe_id.clone(),
        entity: fields.entity.clone(),
        address: fields.address.clone(),
    };
    let destination = keep(named(&destination, &format!("{at}destination"), table));
    let port = fields.port.as_ref().and_then(serde_json::Value::as_u64);
    let port = port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0);
    if port.is_none() {
        let found = fields
            .port
            .as_ref()
            .map_or("nothing".to_owned(), ToString::to_string);
        errors.push(field(
            format!("{at}destination.port"),
            format!("must be a number from 1 to 65535, not {found}"),
        ));
    }
    let protocol = fields
        .protocol
        .as_deref()
        .map_or(Some(Protocol::default()), Protocol::from_name);
    if protocol.is_none() {
        let found = fields.protocol.as_deref().unwrap_or_default();
        errors.push(field(
            format!("{at}destination.protocol"),
            format!("must be TCP or UDP, not `{found}`"),
        ));
    }
    if errors.len() > before {
        return None;
    }
    Some(Question {
        source: source?,
        destination: destination?,
        port: port?,
        protocol: protocol?,
    })
}

fn answer(question: &Question, snapshot: &Snapshot, caller: &Arc<str>) -> (Answer, Evaluation) {
    let start = Instant::now();
    let (source, destination) = (question.source.party(), question.destination.party());
    let decision = snapshot
        .table
        .evaluate(source, destination, question.port, question.protocol);
    let latency = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mode = match snapshot.mode_between(question.source.spiffe(), question.destination.spiffe()) {
        identity::Mode::Observe => Mode::Observe,
        identity::Mode::Enforce => Mode::Enforce,
    };
    let answer = Answer {
        decision: if decision.allowed { "ALLOW" } else { "DENY" },
        policy_matched: decision.rule.clone(),
        mode,
        enforced: mode == Mode::Enforce,
        revision: decision.revision,
        reason: decision.reason.name(),
        latency_us: Latency(latency),
    };
    let evaluation = Evaluation {
        source: question.source.name(),
        destination: question.destination.name(),
        port: question.port,
        protocol: question.protocol.number(),
        allowed: decision.allowed,
        policy_matched: decision.rule,
        mode,
        revision: decision.revision,
        reason: decision.reason,
        latency,
        caller: Arc::clone(caller),
    };
    (answer, evaluation)
}
