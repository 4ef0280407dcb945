// SPDX-License-Identifier: Apache-2.0
//! `GET /v1/recommend/diff`: what the policies in force are missing of what was recorded, and what of them nothing used.
//!
//! It is what `zt-agent policy recommend --diff` says of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::Json;
use axum::extract::{Extension, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::RecordedBy;
use super::wishes::{DeniedQuery, include_denied};
use super::{MAX_ROWS, RangeQuery, judged, of_range, uncompiled};
use crate::api::problem::{ApiProblem, Details};
use crate::api::query::{Given, Parameters};
use crate::api::{ApiState, Caller};
use crate::audit::record::Timestamp;
use crate::policy::{self, PolicySet};
use crate::state::Snapshot;
use crate::traffic::{self, Compared, Range, Recorded};

/// How often targets of rules are asked about connections at most. That is a second or two: whoever may read shall not take a
/// processor that others need.
const MAX_ASKED: usize = 20_000_000;
/// What it takes to get a target ready to be asked, in connections that it is asked about.
const GETTING_READY: usize = 1000;

/// What the policies in force are missing, and what of them is not used.
#[derive(Serialize, ToSchema)]
#[schema(as = RecommendDiff)]
pub(in crate::api) struct Difference {
    /// Revision in force: by it was judged.
    revision: u64,
    /// Whose records these are: `this_node`, or `all_nodes` that record on the same server.
    #[schema(value_type = String)]
    recorded_by: RecordedBy,
    /// Connections that went through, or shall, and that the policies deny, at most 1000.
    missing: Vec<Between>,
    /// How many there are.
    missing_count: usize,
    /// Those of which it cannot be said, at most 1000.
    undecided: Vec<Between>,
    /// How many there are.
    undecided_count: usize,
    /// Rules, or parts of them, that nothing was about, at most 1000.
    unused: Vec<Idle>,
    /// How many there are.
    unused_count: usize,
    /// Connections that were decided for another reason than policy, by that reason.
    left_out: BTreeMap<String, u64>,
}

/// Connections of one kind.
#[derive(Serialize, ToSchema)]
#[schema(as = RecommendDiffConnection)]
struct Between {
    /// SPIFFE ID or entity.
    source: String,
    /// SPIFFE ID or entity.
    destination: String,
    /// Of ends without a name of their own: the first of them, at most 16.
    #[schema(value_type = Vec<String>)]
    addresses: Vec<IpAddr>,
    /// How many addresses these ends had.
    address_count: u64,
    /// Target port.
    port: u16,
    /// IP protocol.
    protocol: String,
    /// How many went through, or shall.
    connections: u64,
    /// The last.
    #[schema(value_type = String)]
    last_seen: Timestamp,
    /// Why it cannot be said; null where it can.
    #[schema(required = true)]
    reason: Option<String>,
}

/// A rule, or a part of one, that no connection was about.
#[derive(Serialize, ToSchema)]
#[schema(as = RecommendDiffUnused)]
struct Idle {
    /// The rule.
    rule: String,
    /// The target, or some of its ports, or the right to raw sockets, where other parts of the rule are used; null for all of it.
    #[schema(required = true)]
    target: Option<String>,
}

impl Between {
    fn of(recorded: &Recorded, included: bool, reason: Option<String>) -> Self {
        Self {
            source: recorded.source.to_string(),
            destination: recorded.destination.to_string(),
            addresses: recorded.addresses.told().to_vec(),
            address_count: recorded.addresses.count(),
            port: recorded.port,
            protocol: recorded.protocol.to_string(),
            connections: recorded.passed(included),
            last_seen: recorded.last_passed(included),
            reason,
        }
    }
}

/// Compares the policies in force with recorded connections.
#[utoipa::path(get, path = "/v1/recommend/diff", tag = "policies", params(RangeQuery, DeniedQuery), responses(
    (status = 200, description = "What `zt-agent policy recommend --diff` says of the policies in force: what of the recorded connections they deny, and what of them nothing used. A rule that was not used in that time may be for what is rare", body = Difference),
    (status = 404, description = "No connections of that range are recorded (`nothing_recorded`): there is nothing to judge by", body = Details, content_type = "application/problem+json"),
    (status = "4XX", description = "The request is not valid, or there are more than 20,000 different connections, or more than 1,000,000 counts of their single addresses, or those of ends without a name take more than 64 MiB of memory, or they take more room than the server gives to a question, or there are too many rules for them (`too_much`): narrow it by time or namespace", body = Details, content_type = "application/problem+json"),
    (status = 503, description = "The store does not answer, or too many wait for such an answer (`busy`, with `Retry-After`)", body = Details, content_type = "application/problem+json"),
))]
pub(in crate::api) async fn difference(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    given: Given,
) -> Result<Json<Difference>, ApiProblem> {
    let mut given = Parameters::new(given.0, &["since", "until", "namespace", "include_denied"]);
    let (filter, included) = (of_range(&mut given), include_denied(&mut given));
    given.finish()?;
    let recorded_by = RecordedBy::of(&state.store);
    let fold = |snapshot: &Snapshot| traffic::to_judge(&snapshot.policies, &snapshot.settings);
    let answer = judged(state, &caller, (filter, fold), move |range, snapshot| {
        let flows = range.recorded.iter().map(|recorded| recorded.flows().len());
        check_effort(&snapshot.policies, flows.sum(), MAX_ASKED)?;
        let (workloads, revision) = (range.workloads(), snapshot.revision);
        let table = policy::compile(&snapshot.policies, &workloads, &snapshot.settings, revision);
        let table = table.map_err(|error| uncompiled(&error))?;
        let compared = Compared::of(range, &snapshot.policies, &table, included);
        Ok(difference_of(range, compared, included, (revision, recorded_by)))
    });
    answer.await.map(Json)
}

fn difference_of(
    range: &Range,
    compared: Compared<'_>,
    included: bool,
    (revision, recorded_by): (u64, RecordedBy),
) -> Difference {
    let (missing, undecided) = (compared.missing.iter(), compared.undecided.iter());
    Difference {
        revision,
        recorded_by,
        missing: missing
            .take(MAX_ROWS)
            .map(|recorded| Between::of(recorded, included, None))
            .collect(),
        missing_count: compared.missing.len(),
        undecided: undecided
            .take(MAX_ROWS)
            .map(|(recorded, why)| Between::of(recorded, included, Some(why.to_string())))
            .collect(),
        undecided_count: compared.undecided.len(),
        unused_count: compared.unused.len(),
        unused: compared
            .unused
            .into_iter()
            .take(MAX_ROWS)
            .map(|unused| Idle {
                rule: unused.rule.to_string(),
                target: unused.target,
            })
            .collect(),
        left_out: range.left_out.clone(),
    }
}

/// Refuses to find out what is not used where so many targets of rules, each of which is got ready and asked by itself, and so many
/// connections would take too long.
fn check_effort(set: &PolicySet, flows: usize, most: usize) -> Result<(), ApiProblem> {
    let rules = set.policies().iter().flat_map(|policy| &policy.rules);
    let targets: usize = rules.map(|rule| rule.to.len()).sum();
    if targets.saturating_mul(flows.saturating_add(GETTING_READY)) <= most {
        return Ok(());
    }
    let detail = format!(
        "{targets} targets of rules and {flows} connections are more than an answer may take: narrow it by time or namespace, or use `zt-agent policy recommend --diff`"
    );
    Err(ApiProblem::bad_request("too_much", detail))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;
    use crate::policy::sample::of_ports;

    #[test]
    fn too_many_rules_for_what_is_recorded_are_refused() {
        let set = of_ports(&[("a", 1), ("b", 2), ("c", 3)]);
        // Three targets, and five connections. Each target takes its time whatever it is asked about.
        let most = 3 * (GETTING_READY + 5);
        assert!(check_effort(&set, 5, most).is_ok());
        let refused = check_effort(&set, 5, most - 1).expect_err("too many");
        assert_eq!(refused.into_response().status().as_u16(), 400);
    }
}
