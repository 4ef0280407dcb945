// SPDX-License-Identifier: Apache-2.0
//! Where a node stopped of its own accord, and why.

use serde::Serialize;
use utoipa::ToSchema;

use crate::audit::record::Timestamp;
use crate::policy::{DeniedEdge, Stop, StopCause};

/// Where a node stopped.
#[derive(Serialize, ToSchema)]
#[schema(as = RolloutStop)]
pub(super) struct Stopped {
    #[serde(flatten)]
    reason: StopReason,
    /// Those of the connections that were refused most often.
    edges: Vec<RefusedEdge>,
}

/// Where a node stopped, without what it refused.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RolloutStopReason)]
pub(in crate::api) struct StopReason {
    /// The stage.
    stage: String,
    /// `hold`: what comes after it does not hold here; `rollback`: nor does it itself.
    action: &'static str,
    /// Why: `denials`, or `unreadable` where it cannot be read where the node stopped before.
    #[schema(value_type = String)]
    cause: StopCause,
    /// Different connections of those newly enforced that were refused in the minute before.
    denials: u64,
    /// As many would have been borne.
    per_minute: u64,
    /// How often any connection of theirs was refused in the minute before.
    attempts: u64,
    /// As often would have been borne; null where that does not count.
    #[schema(required = true)]
    attempts_per_minute: Option<u64>,
    /// When.
    #[schema(value_type = String)]
    at: Timestamp,
}

/// A connection that was refused before a node stopped.
#[derive(Serialize, ToSchema)]
#[schema(as = RolloutRefusal)]
struct RefusedEdge {
    /// Who wanted to.
    source: String,
    /// To whom.
    destination: String,
    /// At which port.
    port: u16,
    /// `TCP` or `UDP`.
    protocol: String,
    /// How often, in the minute before.
    times: u64,
}

impl From<&Stop> for Stopped {
    fn from(stop: &Stop) -> Self {
        Self {
            reason: StopReason::from(stop),
            edges: stop.edges.iter().map(RefusedEdge::from).collect(),
        }
    }
}

impl From<&Stop> for StopReason {
    fn from(stop: &Stop) -> Self {
        Self {
            stage: stop.stage.clone(),
            action: stop.action.name(),
            cause: stop.cause,
            denials: stop.denials,
            per_minute: stop.per_minute,
            attempts: stop.attempts,
            attempts_per_minute: stop.attempts_per_minute,
            at: Timestamp(stop.at_nanos()),
        }
    }
}

impl From<&DeniedEdge> for RefusedEdge {
    fn from(edge: &DeniedEdge) -> Self {
        Self {
            source: edge.source.clone(),
            destination: edge.destination.clone(),
            port: edge.port,
            protocol: edge.protocol.clone(),
            times: edge.times,
        }
    }
}
