// SPDX-License-Identifier: Apache-2.0
//! The body of an evaluation: one request, or a batch; between workloads, or an operator's.

use serde::Deserialize;
use utoipa::ToSchema;

use crate::api::body::Object;
use crate::api::party::{Named, PartyFields, SourceFields, named};
use crate::api::problem::{ApiProblem, field};
use crate::identity::services::Backend;
use crate::policy::{AllowTable, Protocol, entity_name};
use crate::problem::Problem;
use crate::state::{Front, Snapshot};

/// Most requests of one batch.
pub(super) const MAX_BATCH: usize = 1000;
/// The longest text of an operator's request.
const MAX_WORD_CHARS: usize = 128;

/// One request (`source` and `destination`, or `operator` and `target`), or `requests`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct EvaluateBody {
    #[schema(value_type = Option<SourceFields>)]
    source: Option<Object<SourceFields>>,
    #[schema(value_type = Option<DestinationFields>)]
    destination: Option<Object<DestinationFields>>,
    #[schema(value_type = Option<OperatorFields>)]
    operator: Option<Object<OperatorFields>>,
    #[schema(value_type = Option<TargetFields>)]
    target: Option<Object<TargetFields>>,
    /// 1 to 1000 requests, answered in order.
    #[schema(value_type = Option<Vec<Request>>, min_items = 1, max_items = 1000)]
    requests: Option<Vec<Object<Request>>>,
}

/// One request of a batch.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Request {
    #[schema(value_type = Option<SourceFields>)]
    source: Option<Object<SourceFields>>,
    #[schema(value_type = Option<DestinationFields>)]
    destination: Option<Object<DestinationFields>>,
    #[schema(value_type = Option<OperatorFields>)]
    operator: Option<Object<OperatorFields>>,
    #[schema(value_type = Option<TargetFields>)]
    target: Option<Object<TargetFields>>,
}

/// Whom a connection is to; one of `spiffe_id`, `entity` and `address`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DestinationFields {
    spiffe_id: Option<String>,
    entity: Option<String>,
    address: Option<String>,
    /// The port that the destination listens on; with the `address` of a Kubernetes Service, the Service's port.
    #[schema(value_type = u16, minimum = 1, maximum = 65535)]
    port: Option<serde_json::Value>,
    /// `TCP` (the default) or `UDP`.
    #[schema(pattern = "^(TCP|UDP)$")]
    protocol: Option<String>,
}

/// Who wants to do something.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct OperatorFields {
    /// The role that they act in.
    #[schema(min_length = 1, max_length = 128)]
    role: String,
    /// Whether they gave a second factor.
    #[serde(default)]
    mfa: bool,
    /// The incident that is their reason. Whether it is open is for the caller to know.
    #[schema(max_length = 128)]
    incident: Option<String>,
}

/// What they want to do, to what.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TargetFields {
    /// The service.
    #[schema(min_length = 1, max_length = 128)]
    service: String,
    /// What they want to do to it.
    #[schema(min_length = 1, max_length = 128)]
    action: String,
}

/// A request that makes sense.
pub(super) enum Question {
    Connect(Connect),
    Operate(Operate),
}

/// May one workload reach another?
pub(super) struct Connect {
    pub(super) source: Named,
    pub(super) destination: Named,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
}

/// May an operator do something?
pub(super) struct Operate {
    pub(super) role: String,
    pub(super) mfa: bool,
    pub(super) incident: Option<String>,
    pub(super) service: String,
    pub(super) action: String,
}

impl EvaluateBody {
    pub(super) fn is_batch(&self) -> bool {
        self.requests.is_some()
    }

    /// How many questions it asks.
    pub(super) fn len(&self) -> usize {
        self.requests.as_ref().map_or(1, Vec::len)
    }

    /// The questions of a body; all that is wrong with it otherwise.
    pub(super) fn questions(self, snapshot: &Snapshot) -> Result<Vec<Question>, ApiProblem> {
        let single = Request {
            source: self.source,
            destination: self.destination,
            operator: self.operator,
            target: self.target,
        };
        let mut errors = Vec::new();
        let Some(requests) = self.requests else {
            let question = question(single, "", snapshot, &mut errors);
            return question
                .map(|question| vec![question])
                .ok_or_else(|| ApiProblem::fields("invalid_body", errors));
        };
        if !single.is_empty() {
            let error = field("requests", "a batch has nothing beside its `requests`");
            return Err(ApiProblem::fields("invalid_body", vec![error]));
        }
        let count = requests.len();
        if !(1..=MAX_BATCH).contains(&count) {
            let message = format!("a batch has 1 to {MAX_BATCH} requests, this one {count}");
            let error = field("requests", message);
            return Err(ApiProblem::fields("invalid_body", vec![error]));
        }
        let mut questions = Vec::with_capacity(count);
        for (index, Object(request)) in requests.into_iter().enumerate() {
            let at = format!("requests[{index}].");
            questions.extend(question(request, &at, snapshot, &mut errors));
        }
        if errors.is_empty() {
            Ok(questions)
        } else {
            Err(ApiProblem::fields("invalid_body", errors))
        }
    }
}

impl Request {
    fn is_empty(&self) -> bool {
        self.source.is_none()
            && self.destination.is_none()
            && self.operator.is_none()
            && self.target.is_none()
    }
}

/// One question; `None` where errors were added.
fn question(request: Request, at: &str, snapshot: &Snapshot, errors: &mut Vec<Problem>) -> Option<Question> {
    let between_workloads = request.source.is_some() || request.destination.is_some();
    if request.operator.is_none() && request.target.is_none() {
        return connect(request, at, snapshot, errors).map(Question::Connect);
    }
    if between_workloads {
        let message = "`operator` and `target` are one kind of request, `source` and `destination` another";
        errors.push(field(format!("{at}operator"), message));
        return None;
    }
    operate(request, at, errors).map(Question::Operate)
}

fn operate(request: Request, at: &str, errors: &mut Vec<Problem>) -> Option<Operate> {
    let before = errors.len();
    for (name, missing) in [
        ("operator", request.operator.is_none()),
        ("target", request.target.is_none()),
    ] {
        if missing {
            errors.push(field(format!("{at}{name}"), "is missing"));
        }
    }
    let (Object(operator), Object(target)) = (request.operator?, request.target?);
    let mut word = |name: &str, text: &str| {
        let fit = !text.is_empty() && text.chars().count() <= MAX_WORD_CHARS;
        if !fit || text.chars().any(char::is_control) {
            let message =
                format!("must have 1 to {MAX_WORD_CHARS} characters, none of them a control character");
            errors.push(field(format!("{at}{name}"), message));
        }
    };
    word("operator.role", &operator.role);
    if let Some(incident) = &operator.incident {
        word("operator.incident", incident);
    }
    word("target.service", &target.service);
    word("target.action", &target.action);
    (errors.len() == before).then_some(Operate {
        role: operator.role,
        mfa: operator.mfa,
        incident: operator.incident,
        service: target.service,
        action: target.action,
    })
}

fn connect(request: Request, at: &str, snapshot: &Snapshot, errors: &mut Vec<Problem>) -> Option<Connect> {
    let table = &snapshot.table;
    let mut keep = |result: Result<Named, Problem>| result.map_err(|error| errors.push(error)).ok();
    let source = request
        .source
        .map_or_else(PartyFields::default, |Object(fields)| PartyFields::from(fields));
    let source = keep(named(source, &format!("{at}source"), table));
    let Object(fields) = request.destination.unwrap_or_default();
    let virtual_address = fields.address.as_deref().and_then(|text| text.parse().ok());
    let destination = PartyFields {
        spiffe_id: fields.spiffe_id,
        entity: fields.entity,
        address: fields.address,
    };
    let destination = keep(named(destination, &format!("{at}destination"), table));
    let port = fields.port.as_ref().and_then(serde_json::Value::as_u64);
    let port = port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0);
    if port.is_none() {
        let found = fields.port.map_or("nothing".to_owned(), |port| port.to_string());
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
        let found = fields.protocol.unwrap_or_default();
        errors.push(field(
            format!("{at}destination.protocol"),
            format!("must be TCP or UDP, not `{found}`"),
        ));
    }
    let (destination, port, protocol) = (destination?, port?, protocol?);
    // As the kernel finds it: what a virtual address leads to comes first.
    let front = virtual_address.and_then(|address| snapshot.fronts.at(address, port, protocol.number()));
    let (destination, port) = match front {
        Some(front) => (behind(front, table), front.target_port),
        None => (destination, port),
    };
    Some(Connect {
        source: source?,
        destination,
        port,
        protocol,
    })
}

/// Whoever stands behind a virtual address.
fn behind(front: &Front, table: &AllowTable) -> Named {
    if let (1, Some((Backend::Workload(id), _))) = (front.backends.len(), front.backends.first()) {
        return Named::identity(id, table);
    }
    // Where the table does not answer about it, the kernel leads nobody there either.
    let number = front.number_in(table);
    let name = match table.groups().get(number) {
        Some(group) => group.name.as_ref(),
        None => entity_name(number).unwrap_or("unknown"),
    };
    Named::Number(number, name.into())
}
