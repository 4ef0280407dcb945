// SPDX-License-Identifier: Apache-2.0
//! What a replay answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;
use utoipa::ToSchema;

use super::MAX_ROWS;
use crate::audit::archive::Archive;
use crate::audit::record::Timestamp;
use crate::policy::AllowTable;
use crate::spiffe_id::SpiffeId;
use crate::traffic::{self, About, Change, Range, Recorded, Replayed, WouldDeny};

/// What policies make of recorded connections.
#[derive(Serialize, ToSchema)]
pub(in crate::api) struct Replay {
    /// Revision in force: by it was judged, or by a candidate in its place.
    revision: u64,
    /// Whose records these are: `this_node`, or `all_nodes` that record on the same server.
    #[schema(value_type = String)]
    recorded_by: RecordedBy,
    /// The stage of the rollout in force as at which `would_deny` is judged: the one asked for, or the next one; null where none is to
    /// come, and of a candidate.
    #[schema(required = true)]
    pub(super) stage: Option<String>,
    /// Different connections that were looked at: addresses that the policies know by one name are one.
    flows: u64,
    /// All of them.
    connections: u64,
    /// Those that went through and that the policies deny: what enforcing them would refuse.
    pub(super) would_deny: Sum,
    /// What was allowed is denied.
    newly_denied: Sum,
    /// What was allowed must prove who it is.
    needs_proof: Sum,
    /// What was denied is allowed.
    newly_allowed: Sum,
    /// What cannot be said from what is recorded.
    undecided: Sum,
    /// Connections that were decided for another reason than policy, by that reason.
    left_out: BTreeMap<String, u64>,
    /// The connections of `would_deny`, the most frequent first, at most 1000.
    pub(super) denied: Vec<Denied>,
    /// The connections of the others, at most 1000.
    changes: Vec<Changed>,
}

/// Who recorded what is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RecordedBy {
    /// The node that is asked.
    ThisNode,
    /// All nodes that record on its server.
    AllNodes,
}

impl RecordedBy {
    /// Who records in such a store.
    pub(super) fn of(store: &Archive) -> Self {
        if store.is_shared() {
            Self::AllNodes
        } else {
            Self::ThisNode
        }
    }
}

/// How many.
#[derive(Serialize, ToSchema)]
#[schema(as = ReplaySum)]
pub(super) struct Sum {
    /// Different ones.
    flows: usize,
    /// All.
    connections: u64,
}

/// Connections of one kind, and what the policies say of them.
#[derive(Serialize, ToSchema)]
#[schema(as = ReplayJudged)]
pub(super) struct Judged {
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
            source: recorded.source.to_string(),
            destination: recorded.destination.to_string(),
            port: recorded.port,
            protocol: recorded.protocol.to_string(),
            rule: one.rule,
            reason: one.reason.to_owned(),
            connections: recorded.passed(false),
            first_seen: span.first,
            last_seen: span.last,
        }
    }
}

/// Connections of which the policies say something else than was said.
#[derive(Serialize, ToSchema)]
#[schema(as = ReplayChange)]
pub(super) struct Changed {
    /// `newly_denied`, `needs_proof`, `newly_allowed` or `undecided`.
    #[schema(value_type = String)]
    change: Change,
    /// Which they are, and what is said of them.
    #[serde(flatten)]
    judged: Judged,
    /// Of ends without a name of their own: the first of them, at most 16.
    #[schema(value_type = Vec<String>)]
    addresses: Vec<IpAddr>,
    /// How many addresses these ends had.
    address_count: u64,
}

/// Connections that went through and are denied.
#[derive(Serialize, ToSchema)]
#[schema(as = ReplayDenied)]
pub(super) struct Denied {
    /// Which they are, and what is said of them.
    #[serde(flatten)]
    judged: Judged,
    /// Whether the policy in force allows them, and it is the rollout's `stage` that denies them.
    by_stage: bool,
    /// Where the destination is a Service: the SPIFFE IDs of those behind it. Else empty.
    behind: Vec<String>,
}

/// The identities behind the Service that a connection went to.
fn behind(recorded: &Recorded) -> Vec<String> {
    if !matches!(recorded.about, Ok(About::Service(_))) {
        return Vec::new();
    }
    let flows = recorded.flows().iter();
    let ids: BTreeSet<&SpiffeId> = flows.filter_map(|flow| flow.destination.workload()).collect();
    ids.into_iter().map(ToString::to_string).collect()
}

/// What a table denies of what went through; of each whether the one in force, `now`, does not.
pub(super) fn would_deny(range: &Range, table: &AllowTable, now: Option<&AllowTable>) -> (Sum, Vec<Denied>) {
    let denied = traffic::would_deny(range, table);
    let connections = denied.iter().map(|one| one.recorded.passed(false));
    let sum = Sum {
        flows: denied.len(),
        connections: connections.fold(0, u64::saturating_add),
    };
    let shown = denied.into_iter().take(MAX_ROWS).map(|one| Denied {
        by_stage: now.is_some_and(|now| !one.is_denied_by(now)),
        behind: behind(one.recorded),
        judged: Judged::from(one),
    });
    (sum, shown.collect())
}

impl Replay {
    /// What a table makes of a range while `revision` is in force.
    pub(super) fn of(range: &Range, table: &AllowTable, revision: u64, recorded_by: RecordedBy) -> Self {
        let replayed = Replayed::of(range, table);
        let (would_deny, denied) = would_deny(range, table, None);
        let sum = |change| {
            let (flows, connections) = replayed.sum(change);
            Sum { flows, connections }
        };
        Self {
            revision,
            recorded_by,
            stage: None,
            flows: replayed.flows,
            connections: replayed.connections,
            would_deny,
            newly_denied: sum(Change::NewlyDenied),
            needs_proof: sum(Change::NeedsProof),
            newly_allowed: sum(Change::NewlyAllowed),
            undecided: sum(Change::Undecided),
            left_out: range.left_out.clone(),
            denied,
            changes: changes(replayed),
        }
    }
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
        addresses: times.addresses.told().to_vec(),
        address_count: times.addresses.count(),
    })
    .collect()
}
