// SPDX-License-Identifier: Apache-2.0
//! Records of what decides: a policy or a mode that people changed, an identity that was withdrawn.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Timestamp;

/// What is decided, or whether it happens, is another from now on. The fields of a decision are there and null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = RecordedChange)]
pub struct Change {
    /// `UUIDv7`.
    #[schema(value_type = String)]
    pub id: Uuid,
    /// When it was in force.
    #[schema(value_type = String)]
    pub timestamp: Timestamp,
    #[serde(flatten)]
    nothing: NoDecision,
    /// The cluster of the node.
    #[schema(value_type = String)]
    pub cluster: Arc<str>,
    /// The node that this was done on.
    #[schema(value_type = String)]
    pub node: Arc<str>,
    /// Who: the caller of the API, or where it came from (`directory …`, `file …`, `engine …`, `rollout`), or whose
    /// word on identities it was (`spire`, `sources`); `restart`: it was changed while no agent ran.
    #[schema(value_type = String)]
    pub caller: Arc<str>,
    /// Revision in force afterwards.
    pub revision: u64,
    /// What: an object, of which the kind of the record says the fields.
    #[schema(value_type = Object)]
    pub change: serde_json::Value,
}

/// What the specification's record has, and what is no decision has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(in crate::audit) struct NoDecision {
    #[schema(value_type = Option<Object>, required = true)]
    decision: (),
    #[schema(value_type = Option<Object>, required = true)]
    source: (),
    #[schema(value_type = Option<Object>, required = true)]
    destination: (),
    #[schema(value_type = Option<Object>, required = true)]
    policy_matched: (),
    #[schema(value_type = Option<Object>, required = true)]
    latency_us: (),
}

impl Change {
    /// A change of `node`.
    pub fn new(
        (id, timestamp): (Uuid, Timestamp),
        (cluster, node): (Arc<str>, Arc<str>),
        caller: Arc<str>,
        revision: u64,
        change: serde_json::Value,
    ) -> Self {
        Self {
            id,
            timestamp,
            nothing: NoDecision::default(),
            cluster,
            node,
            caller,
            revision,
            change,
        }
    }
}
