// SPDX-License-Identifier: Apache-2.0
//! `POST /v1/evaluate`: what policy says, by the function that the kernel calls; to operators, what their policies say.

mod question;

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Body as HttpBody;
use serde::Serialize;
use utoipa::ToSchema;

use self::question::{Connect, EvaluateBody, Operate, Question};
use super::guard::Allowance;
use super::problem::{ApiProblem, Details};
use super::recorded::{MAX_WAIT, recorded};
use super::{ApiState, Caller, body};
use crate::audit::Evaluation;
use crate::audit::pipeline::ApiEvent;
use crate::audit::record::{Latency, Mode, Reason};
use crate::identity;
use crate::policy::{OperatorReason, OperatorRequest};
use crate::state::Snapshot;

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Answer {
    /// `ALLOW` or `DENY`.
    #[schema(pattern = "^(ALLOW|DENY)$")]
    decision: &'static str,
    /// The rule that decided; to an operator who lacks something, the rule that would allow.
    #[schema(value_type = Option<String>, required = true)]
    policy_matched: Option<Arc<str>>,
    /// The mode of the ends that are on this node. Policies for operators are never only observed.
    #[schema(value_type = String)]
    mode: Mode,
    /// Whether a refusal would happen.
    enforced: bool,
    /// Whether the rule asks for proof: without it in the handshake, the connection is refused with the reason `proof_required`.
    proof_required: bool,
    /// Revision of the policy that answered.
    revision: u64,
    /// Why. `unknown_source` and `unknown_destination` also say that nobody declared that SPIFFE ID: no workload known here
    /// has it, no policy names it, and no pattern but `*` matches it.
    #[schema(value_type = String)]
    reason: Reason,
    /// Time that deciding took, microseconds.
    #[schema(value_type = f64)]
    latency_us: Latency,
}

/// The answers to a batch, in its order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Answers {
    responses: Vec<Answer>,
}

/// An answer, or the answers of a batch.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is answered")]
pub(super) enum Evaluated {
    One(Answer),
    Batch(Answers),
}

/// Says what policy says about a connection between workloads, or about something that an operator wants to do.
#[utoipa::path(post, path = "/v1/evaluate", tag = "evaluate", request_body = EvaluateBody, responses(
    (status = 200, description = "The answer, or the answers of a batch; the record of each is stored", body = Evaluated),
    (status = "4XX", description = "The request is not valid: nothing was decided or recorded", body = Details, content_type = "application/problem+json"),
    (status = 503, description = "The record is not known to be stored, so the decision is not given; or the rules with patterns are too many to say anything of identities that nobody declared (`policy_too_large`)", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn evaluate(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    allowance: Option<Extension<Allowance>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiProblem> {
    let allowance = allowance.as_ref().map(|Extension(allowance)| allowance);
    answer(&state, &caller, allowance, &headers, body).await
}

/// Whether a request is for [`answer`].
pub(super) fn is_asked<B>(request: &Request<B>) -> bool {
    request.method() == Method::POST && request.uri().path() == "/v1/evaluate"
}

/// The answer to a body.
pub(super) async fn answer<B>(
    state: &ApiState,
    caller: &Caller,
    allowance: Option<&Allowance>,
    headers: &HeaderMap,
    body: B,
) -> Result<Response, ApiProblem>
where
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let body: EvaluateBody = body::json(headers, body).await?;
    if let Some(allowance) = allowance {
        // The request itself is counted.
        allowance.take(body.len().saturating_sub(1))?;
    }
    let is_batch = body.is_batch();
    let (mut answers, events) = decided(body, &state.snapshot(), &caller.name)?;
    // What is not recorded has not been decided.
    recorded(state, events, MAX_WAIT)
        .await
        .map_err(|unrecorded| unrecorded.problem("audit_unavailable", "the decision is not given"))?;
    if is_batch {
        return Ok(axum::Json(Answers { responses: answers }).into_response());
    }
    // A body that is no batch makes one question.
    Ok(answers.pop().map_or_else(
        || StatusCode::NO_CONTENT.into_response(),
        |answer| axum::Json(answer).into_response(),
    ))
}

/// Each answer, and the event that its record is made of.
fn decided(
    body: EvaluateBody,
    snapshot: &Snapshot,
    caller: &Arc<str>,
) -> Result<(Vec<Answer>, Vec<ApiEvent>), ApiProblem> {
    let questions = body.questions(snapshot)?;
    let mut answers = Vec::with_capacity(questions.len());
    let mut events = Vec::with_capacity(questions.len());
    for question in questions {
        let (answer, evaluation) = match &question {
            Question::Connect(question) => connect(question, snapshot, caller)?,
            Question::Operate(question) => operate(question, snapshot, caller),
        };
        answers.push(answer);
        events.push(ApiEvent::Evaluated(evaluation));
    }
    Ok((answers, events))
}

/// What would be answered to the bytes of a body, as JSON. Nothing is recorded, so nobody may be told: it is for trying bytes out.
pub fn decide_unrecorded(bytes: &[u8], snapshot: &Snapshot) -> Result<String, ApiProblem> {
    let body: EvaluateBody = body::parsed(bytes)?;
    let is_batch = body.is_batch();
    let (answers, _) = decided(body, snapshot, &Arc::from("nobody"))?;
    let text = match (is_batch, answers.as_slice()) {
        (false, [answer]) => serde_json::to_string(answer),
        _ => serde_json::to_string(&Answers { responses: answers }),
    };
    Ok(text.expect("answers are texts, numbers and booleans"))
}

const fn word(allowed: bool) -> &'static str {
    if allowed { "ALLOW" } else { "DENY" }
}

fn nanoseconds_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn connect(
    question: &Connect,
    snapshot: &Snapshot,
    caller: &Arc<str>,
) -> Result<(Answer, Evaluation), ApiProblem> {
    let start = Instant::now();
    let (source, destination) = (question.source.party(), question.destination.party());
    let (port, protocol) = (question.port, question.protocol);
    let decision = if question.source.is_outside() || question.destination.is_outside() {
        // Patterns are written out in the table for whom it was compiled for, and for nobody else.
        let ends = (source, destination);
        snapshot
            .policies
            .evaluate(&snapshot.table, &snapshot.settings, ends, port, protocol)
            .map_err(|error| ApiProblem::unavailable("policy_too_large", error.to_string()))?
    } else {
        snapshot.table.evaluate(source, destination, port, protocol)
    };
    let latency = nanoseconds_since(start);
    let mode = match snapshot.mode_between(question.source.spiffe(), question.destination.spiffe()) {
        identity::Mode::Observe => Mode::Observe,
        identity::Mode::Enforce => Mode::Enforce,
    };
    let reason = Reason::Verdict(decision.reason);
    let answer = Answer {
        decision: word(decision.allowed),
        policy_matched: decision.rule.clone(),
        mode,
        enforced: mode == Mode::Enforce,
        proof_required: decision.proof_required,
        revision: decision.revision,
        reason,
        latency_us: Latency(latency),
    };
    let evaluation = Evaluation {
        source: question.source.name(),
        destination: question.destination.name(),
        port,
        protocol: protocol.number(),
        allowed: decision.allowed,
        policy_matched: decision.rule,
        mode,
        revision: decision.revision,
        reason,
        latency,
        caller: Arc::clone(caller),
        mfa: None,
        incident: None,
    };
    Ok((answer, evaluation))
}

fn operate(question: &Operate, snapshot: &Snapshot, caller: &Arc<str>) -> (Answer, Evaluation) {
    let start = Instant::now();
    let decision = snapshot.policies.evaluate_operator(&OperatorRequest {
        role: &question.role,
        mfa: question.mfa,
        incident: question.incident.as_deref(),
        service: &question.service,
        action: &question.action,
    });
    let latency = nanoseconds_since(start);
    let reason = match decision.reason {
        OperatorReason::Rule => Reason::Verdict(zt_common::verdict::Reason::Rule),
        OperatorReason::NoRule => Reason::Verdict(zt_common::verdict::Reason::NoRule),
        OperatorReason::MfaRequired => Reason::MfaRequired,
        OperatorReason::IncidentRequired => Reason::IncidentRequired,
    };
    let mode = Mode::Enforce;
    let answer = Answer {
        decision: word(decision.allowed),
        policy_matched: decision.rule.clone(),
        mode,
        enforced: true,
        proof_required: false,
        revision: snapshot.revision,
        reason,
        latency_us: Latency(latency),
    };
    let evaluation = Evaluation {
        source: Arc::from(format!("operator:{}", question.role)),
        destination: Arc::from(format!("service:{}:{}", question.service, question.action)),
        port: 0,
        protocol: 0,
        allowed: decision.allowed,
        policy_matched: decision.rule,
        mode,
        revision: snapshot.revision,
        reason,
        latency,
        caller: Arc::clone(caller),
        // What the operator brought forward is a matter of the record too, and it is the caller who says it.
        mfa: Some(question.mfa),
        incident: question.incident.as_deref().map(Arc::from),
    };
    (answer, evaluation)
}
