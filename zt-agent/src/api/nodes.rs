// SPDX-License-Identifier: Apache-2.0
//! `PUT /v1/nodes/{node}`: nodes that follow this agent say what is in force there, so that one can see whether a change
//! has arrived everywhere, and how far the rollout is.

mod said;
mod standing;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Extension, FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::said::{RolloutReport, Said};
pub(super) use self::standing::{NodeStanding, Selected};
use super::body::Object;
use super::problem::{ApiProblem, Details, field};
use super::{ApiState, Caller, body};
use crate::audit::clock;
use crate::audit::record::Timestamp;
use crate::state::{FORGET_AFTER, MissedNode};

/// Nodes that are remembered; beyond that, of the caller who told of most of them, the one not heard of for longest is
/// forgotten: who makes names up drives out their own.
const MAX_NODES: usize = 5_000;
/// The longest name of a node, in characters.
const MAX_NAME: usize = 253;
/// The highest number that is believed.
const MOST: u64 = i64::MAX.cast_unsigned();

/// What a node says of itself.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeReport {
    /// The revision in force there, as that node counts.
    #[schema(maximum = 9_223_372_036_854_775_807_i64)]
    revision: u64,
    /// The digest of what is in force there.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    digest: String,
    /// How far the rollout is there; null where there is none.
    #[schema(value_type = Option<RolloutReport>)]
    rollout: Option<Object<RolloutReport>>,
}

/// What is in force on a node, as it said last.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct NodeEntry {
    /// The node.
    node: String,
    /// The revision there, as that node counts.
    revision: u64,
    /// What nodes are compared by.
    digest: String,
    /// Whether that is what is in force here. Of one that was not heard for two minutes it is not known.
    in_sync: bool,
    /// When it was last heard.
    #[schema(value_type = String)]
    heard: Timestamp,
    /// Who said so.
    #[schema(value_type = String)]
    caller: Arc<str>,
}

#[derive(Debug)]
struct Heard {
    revision: u64,
    digest: String,
    /// What it said of the rollout; an older agent says nothing.
    said: Option<Said>,
    at: i64,
    caller: Arc<str>,
    account: Arc<str>,
}

/// The nodes that have been heard of.
#[derive(Debug, Default)]
pub(super) struct Nodes(Mutex<BTreeMap<String, Heard>>);

impl Nodes {
    fn hear(&self, node: String, heard: Heard) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = heard.at.saturating_sub(FORGET_AFTER.as_nanos() as i64);
        if nodes.len() >= MAX_NODES && !nodes.contains_key(&node) {
            nodes.retain(|_, known| known.at >= oldest);
            if let Some(name) = one_too_many(&nodes).filter(|_| nodes.len() >= MAX_NODES) {
                nodes.remove(&name);
            }
        }
        nodes.insert(node, heard);
    }

    /// When a node was heard last.
    pub(super) fn heard(&self, node: &str) -> Option<i64> {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(node).map(|known| known.at)
    }

    /// Forgets those whom another engine has heard since they were heard here, by the time at which that was.
    pub(super) fn leave_to_others(&self, heard: &[MissedNode]) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for elsewhere in heard {
            if nodes
                .get(&elsewhere.node)
                .is_some_and(|known| known.at <= elsewhere.heard)
            {
                nodes.remove(&elsewhere.node);
            }
        }
    }

    /// Something of each that was heard of lately, by name.
    fn lately<T>(&self, each: impl Fn(&str, &Heard) -> T) -> Vec<T> {
        let oldest = clock::now().saturating_sub(FORGET_AFTER.as_nanos() as i64);
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|_, known| known.at >= oldest);
        nodes.iter().map(|(node, heard)| each(node, heard)).collect()
    }

    /// Those heard of lately, by name; `digest` is what is in force here.
    pub(super) fn list(&self, digest: &str) -> Vec<NodeEntry> {
        let now = clock::now();
        self.lately(|node, heard| NodeEntry {
            node: node.to_owned(),
            revision: heard.revision,
            digest: heard.digest.clone(),
            in_sync: heard.is_in_sync(digest, now),
            heard: Timestamp(heard.at),
            caller: Arc::clone(&heard.caller),
        })
    }
}

/// Whom to forget when there are too many.
fn one_too_many(nodes: &BTreeMap<String, Heard>) -> Option<String> {
    let mut told: HashMap<&Arc<str>, usize> = HashMap::new();
    for known in nodes.values() {
        *told.entry(&known.account).or_default() += 1;
    }
    let most = told.values().max().copied()?;
    let of_those = nodes
        .iter()
        .filter(|(_, known)| told.get(&known.account) == Some(&most));
    of_those
        .min_by_key(|(_, known)| known.at)
        .map(|(name, _)| name.clone())
}

/// The name of a node in a path: any text, so far.
pub(super) struct NodeName(String);

impl<S: Send + Sync> FromRequestParts<S> for NodeName {
    type Rejection = ApiProblem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiProblem> {
        // Only a name that is no UTF-8 is refused here.
        let name = Path::from_request_parts(parts, state).await;
        name.map(|Path(name)| Self(name))
            .map_err(|_| ApiProblem::bad_request("invalid_path", "the name in the path is not UTF-8 text"))
    }
}

/// A node that follows this agent says what is in force there.
#[utoipa::path(put, path = "/v1/nodes/{node}", tag = "nodes", request_body = NodeReport,
    params(("node" = String, Path, description = "The node's name", min_length = 1, max_length = 253, pattern = r"^[^\s\x00-\x1f\x7f]+$")),
    responses(
        (status = 204, description = "Noted, and shown in /v1/status and /v1/rollout"),
        (status = "4XX", description = "The report is not valid", body = Details, content_type = "application/problem+json"),
))]
pub(super) async fn report(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    NodeName(node): NodeName,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiProblem> {
    let report: NodeReport = body::json(&headers, body).await?;
    if !caller.rights.speaks_for(&node) {
        let detail = format!(
            "{} speaks for the node {}, and not for `{node}`: see `node` in api.callers",
            caller.name,
            caller.rights.nodes()
        );
        return Err(ApiProblem::new(StatusCode::FORBIDDEN, "not_that_node", detail));
    }
    let mut errors = Vec::new();
    let odd = |character: char| character.is_control() || character.is_whitespace();
    if node.is_empty() || node.chars().count() > MAX_NAME || node.contains(odd) {
        errors.push(field(
            "node",
            format!("is a name of 1 to {MAX_NAME} characters without spaces"),
        ));
    }
    if report.revision > MOST {
        errors.push(field("revision", format!("is a number up to {MOST}")));
    }
    if !is_digest(&report.digest) {
        errors.push(field("digest", "is 64 hexadecimal digits"));
    }
    let said = report.rollout.map(|Object(rollout)| rollout.checked(&mut errors));
    if !errors.is_empty() {
        return Err(ApiProblem::fields("invalid_report", errors));
    }
    let heard = Heard {
        revision: report.revision,
        digest: report.digest,
        said,
        at: clock::now(),
        caller: caller.name,
        account: caller.account,
    };
    state.nodes().hear(node, heard);
    Ok(StatusCode::NO_CONTENT)
}

/// Whether this is SHA-256 as we write it.
fn is_digest(text: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == 64 && text.bytes().all(hex)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::SILENT_AFTER;

    fn heard(at: i64) -> Heard {
        Heard {
            revision: 1,
            digest: "a".repeat(64),
            said: None,
            at,
            caller: "test".into(),
            account: "test".into(),
        }
    }

    #[test]
    fn nodes_are_listed_and_their_number_is_bounded() {
        let nodes = Nodes::default();
        let now = clock::now();
        nodes.hear("gone".into(), heard(now - FORGET_AFTER.as_nanos() as i64 - 1));
        nodes.hear("here".into(), heard(now));
        let listed = nodes.list(&"a".repeat(64));
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert!(listed[0].node == "here" && listed[0].in_sync);
        assert!(!nodes.list("other")[0].in_sync);
        nodes.hear("here".into(), heard(now - SILENT_AFTER.as_nanos() as i64));
        assert!(
            !nodes.list(&"a".repeat(64))[0].in_sync,
            "what was in force there need not be any more"
        );
        nodes.hear("here".into(), heard(now));
        for number in 0..MAX_NODES + 10 {
            nodes.hear(format!("n{number}"), heard(now + 1 + number as i64));
        }
        let listed = nodes.list("");
        assert_eq!(listed.len(), MAX_NODES);
        assert!(
            !listed
                .iter()
                .any(|entry| entry.node == "here" || entry.node == "n0")
        );
    }

    #[test]
    fn who_makes_names_up_drives_out_their_own() {
        let nodes = Nodes::default();
        let now = clock::now();
        for number in 0..10 {
            nodes.hear(format!("real-{number}"), heard(now - 1000 + number));
        }
        for number in 0..2 * MAX_NODES {
            let liar = Heard {
                account: "liar".into(),
                ..heard(now + number as i64)
            };
            nodes.hear(format!("made-up-{number}"), liar);
        }
        let listed = nodes.list("");
        let real = listed.iter().filter(|entry| entry.node.starts_with("real"));
        assert_eq!((real.count(), listed.len()), (10, MAX_NODES));
    }
}
