// SPDX-License-Identifier: Apache-2.0
//! The audit record: the JSON object of the specification ("Audit Trail") with the fields that this
//! implementation adds. Its serialization is a contract with users.

mod change;
mod entry;
mod terms;
mod time;

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use zt_common::{event, verdict};

pub use self::change::Change;
pub(in crate::audit) use self::change::NoDecision;
pub use self::entry::{Entry, Kept};
pub use self::terms::{Hook, Kind, Mode, Observer, Outcome, Proof, Protocol, Reason, UnknownTerm};
pub use self::time::{Latency, Timestamp, TimestampError};

/// One decision, as it is stored, queried and streamed. Names are shared: cloning copies pointers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// `UUIDv7`.
    #[schema(value_type = String)]
    pub id: Uuid,
    /// When it was decided.
    #[schema(value_type = String)]
    pub timestamp: Timestamp,
    /// Policy's verdict.
    #[schema(value_type = String, pattern = "^(ALLOW|DENY)$")]
    pub decision: Outcome,
    /// Who connects or sends.
    pub source: Source,
    /// To whom.
    pub destination: Destination,
    /// `<policy>/rule-<n>`; `None` where no rule decided.
    #[schema(value_type = Option<String>, required = true)]
    pub policy_matched: Option<Arc<str>>,
    /// How long deciding took; microseconds in JSON.
    #[serde(rename = "latency_us")]
    #[schema(value_type = f64)]
    pub latency: Latency,
    /// The cluster whose agent recorded this.
    #[schema(value_type = String)]
    pub cluster: Arc<str>,
    /// IP protocol.
    #[schema(value_type = String)]
    pub protocol: Protocol,
    /// Where it was decided.
    #[schema(value_type = String)]
    pub hook: Hook,
    /// Which end decided.
    #[schema(value_type = String)]
    pub observer: Observer,
    /// That end's mode.
    #[schema(value_type = String)]
    pub mode: Mode,
    /// Whether that end enforces: `DENY` with `false` went through, and would not under enforcement.
    pub enforced: bool,
    /// Revision of the policy that decided.
    pub revision: u64,
    /// Why.
    #[schema(value_type = String)]
    pub reason: Reason,
    /// How the other end's identity was proven.
    #[schema(value_type = String)]
    pub proof: Proof,
    /// How many equal decisions this record stands for.
    pub count: u64,
    /// Who asked, for records of the API only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub caller: Option<Arc<str>>,
    /// Whether the operator gave a second factor, as the caller says; for evaluations of operators only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfa: Option<bool>,
    /// The incident that the operator named, as the caller says; for evaluations of operators only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub incident: Option<Arc<str>>,
}

/// What the two fields of an operator's evaluation are kept as, where a store has one column for them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OperatorDetail {
    mfa: Option<bool>,
    incident: Option<Arc<str>>,
}

/// The source of an [`AuditRecord`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = RecordSource)]
pub struct Source {
    /// Its SPIFFE ID; `None` for an entity.
    #[schema(value_type = Option<String>, required = true)]
    pub spiffe_id: Option<Arc<str>>,
    /// `host`, `world`, `unknown`, `cidr:10.0.0.0/8` …; `None` where there is a SPIFFE ID.
    #[schema(value_type = Option<String>, required = true)]
    pub entity: Option<Arc<str>>,
    /// `namespace/name` of its pod, where known.
    #[schema(value_type = Option<String>, required = true)]
    pub pod: Option<Arc<str>>,
    /// Its node, where known.
    #[schema(value_type = Option<String>, required = true)]
    pub node: Option<Arc<str>>,
    /// Its address; `None` where it was not chosen yet.
    #[schema(value_type = Option<String>, required = true)]
    pub address: Option<IpAddr>,
    /// Its port; `None` where it was not chosen yet.
    #[schema(required = true)]
    pub port: Option<u16>,
    /// Thread group of the task, where the hook knows it.
    #[schema(required = true)]
    pub pid: Option<u32>,
    /// Name of the task, where the hook knows it. The task chooses it: not to be trusted.
    #[schema(value_type = Option<String>, required = true)]
    pub comm: Option<Arc<str>>,
}

/// The destination of an [`AuditRecord`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = RecordDestination)]
pub struct Destination {
    /// Its SPIFFE ID; `None` for an entity.
    #[schema(value_type = Option<String>, required = true)]
    pub spiffe_id: Option<Arc<str>>,
    /// As in [`Source::entity`].
    #[schema(value_type = Option<String>, required = true)]
    pub entity: Option<Arc<str>>,
    /// The port that policy speaks about: the target port.
    pub port: u16,
    /// Its address, as the deciding end saw it.
    #[schema(value_type = Option<String>, required = true)]
    pub address: Option<IpAddr>,
    /// `namespace/name` of its pod, where known.
    #[schema(value_type = Option<String>, required = true)]
    pub pod: Option<Arc<str>>,
    /// Its node, where known.
    #[schema(value_type = Option<String>, required = true)]
    pub node: Option<Arc<str>>,
}

impl Source {
    /// The SPIFFE ID, or else the entity.
    pub fn name(&self) -> &str {
        self.spiffe_id
            .as_deref()
            .or(self.entity.as_deref())
            .unwrap_or("unknown")
    }
}

impl Destination {
    /// The SPIFFE ID, or else the entity.
    pub fn name(&self) -> &str {
        self.spiffe_id
            .as_deref()
            .or(self.entity.as_deref())
            .unwrap_or("unknown")
    }
}

/// Splits a party's name into its SPIFFE ID and its entity, of which it has one.
pub fn party(name: Arc<str>) -> (Option<Arc<str>>, Option<Arc<str>>) {
    if name.starts_with("spiffe://") {
        (Some(name), None)
    } else {
        (None, Some(name))
    }
}

/// What a record means for those who count connections: graph, recommend, replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Stands for connections that no other record of this node stands for.
    Counts,
    /// The destination refused what the source recorded as well: the connection is the source's record's, and it
    /// was refused after all.
    Corrects,
    /// Not a connection, or one recorded before (a revocation).
    Aside,
}

impl Part {
    /// How the stores keep it.
    pub const fn number(self) -> i64 {
        match self {
            Self::Counts => 0,
            Self::Corrects => 1,
            Self::Aside => 2,
        }
    }
}

impl AuditRecord {
    /// How this record takes part in counting each connection once.
    ///
    /// The source's end always records. The destination's end records when the source is not managed on its node,
    /// and also, a second time, when it refuses; then `source.node` says whether the source is managed here.
    pub fn part(&self) -> Part {
        let connects = match self.hook {
            Hook::Api | Hook::Kernel(event::Hook::Socket) => false,
            Hook::Kernel(_) => self.reason != Reason::Verdict(verdict::Reason::Revoked),
        };
        // What the source's end says when the handshake is complete comes after what `connect` said.
        let again = self.hook == Hook::Kernel(event::Hook::Established) && self.observer == Observer::Source;
        if !connects || again {
            return Part::Aside;
        }
        let source_records = self.source.spiffe_id.is_some()
            && self.source.node.is_some()
            && self.source.node == self.destination.node;
        match self.observer {
            Observer::Destination if source_records => Part::Corrects,
            Observer::Source | Observer::Destination => Part::Counts,
        }
    }

    /// What an operator brought forward, as one JSON value; `None` where this is no evaluation of an operator.
    pub fn operator_detail(&self) -> Option<serde_json::Value> {
        if self.mfa.is_none() && self.incident.is_none() {
            return None;
        }
        let detail = OperatorDetail {
            mfa: self.mfa,
            incident: self.incident.clone(),
        };
        serde_json::to_value(detail).ok()
    }

    /// The same, given that value's text. False where it is none, or written in another way: what a record does not say, its
    /// digest does not cover.
    #[must_use]
    pub fn set_operator_detail(&mut self, text: &str) -> bool {
        let Ok(detail) = serde_json::from_str::<OperatorDetail>(text) else {
            return false;
        };
        self.mfa = detail.mfa;
        self.incident = detail.incident;
        self.operator_detail()
            .is_some_and(|detail| is_written_so(&detail, text))
    }

    /// Whether this decision refused something.
    pub fn is_enforced_denial(&self) -> bool {
        self.decision == Outcome::Deny && self.enforced && self.hook != Hook::Api
    }
}

/// Whether a text is this value as it is written here: in any other spelling it says what nothing covers.
pub(crate) fn is_written_so(value: &serde_json::Value, text: &str) -> bool {
    serde_json::to_string(value).is_ok_and(|written| written == text)
}

#[cfg(test)]
mod tests;
