// SPDX-License-Identifier: Apache-2.0
//! How it stands with the agents of other nodes, in `/v1/status`. Keys are not among it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::audit::record::Timestamp;
use crate::identity::peers::Dispute;
use crate::peers::{Health, NodeStatus};

#[derive(Serialize, ToSchema)]
pub(super) struct PeersStatus {
    nodes: Vec<PeerEntry>,
    /// What was refused, by cause.
    refused: BTreeMap<&'static str, u64>,
    /// Connections over which all was said.
    connections: u64,
    /// Changes of keys of handshakes.
    keys: u64,
    /// Addresses that more than one node claims.
    disputes: Vec<DisputeEntry>,
}

/// Addresses that more than one node claims.
#[derive(Serialize, ToSchema)]
struct DisputeEntry {
    /// Which.
    net: String,
    /// Whose they are; null: nobody's.
    #[schema(value_type = Option<String>, required = true)]
    owner: Option<Arc<str>>,
    /// Who claims them, and is not believed about them.
    #[schema(value_type = Vec<String>)]
    claimants: Vec<Arc<str>>,
}

impl From<Dispute> for DisputeEntry {
    fn from(dispute: Dispute) -> Self {
        Self {
            net: dispute.net.to_string(),
            owner: dispute.owner,
            claimants: dispute.claimants.into_iter().collect(),
        }
    }
}

/// Another node.
#[derive(Serialize, ToSchema)]
struct PeerEntry {
    #[schema(value_type = String)]
    node: Arc<str>,
    /// `connected`; `stale`: it is not heard, and what it said last is still believed; `unknown`.
    state: &'static str,
    #[schema(value_type = String)]
    since: Timestamp,
    /// Where its agent is looked for.
    #[schema(value_type = String)]
    address: Arc<str>,
    addresses: usize,
    identities: usize,
    /// Its workloads prove who they are in handshakes with workloads of this node, and these to them.
    proves: bool,
    /// Which keys are in use towards it; 0: none.
    epoch: u64,
    /// How often something that it said was not believed.
    refused: u64,
    /// The last of these.
    #[schema(value_type = Option<String>, required = true)]
    refusal: Option<Arc<str>>,
    /// Why there is no connection.
    #[schema(value_type = Option<String>, required = true)]
    error: Option<Arc<str>>,
}

fn entry((node, status): (Arc<str>, NodeStatus)) -> PeerEntry {
    PeerEntry {
        node,
        state: status.state.name(),
        since: Timestamp(status.since),
        address: status.address,
        addresses: status.addresses,
        identities: status.identities,
        proves: status.proves,
        epoch: status.epoch,
        refused: status.refused,
        refusal: status.refusal,
        error: status.error,
    }
}

impl From<&Health> for PeersStatus {
    fn from(health: &Health) -> Self {
        let status = health.status();
        Self {
            nodes: status.nodes.into_iter().map(entry).collect(),
            refused: status.refused,
            connections: status.connections,
            keys: status.rotations,
            disputes: status.disputes.into_iter().map(DisputeEntry::from).collect(),
        }
    }
}
