// SPDX-License-Identifier: Apache-2.0
//! How it stands with the agents of other nodes, in `/v1/status`. Keys are not among it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::audit::record::Timestamp;
use crate::identity::peers::Dispute;
use crate::peers::{Health, NodeStatus};
use crate::spiffe_id::SpiffeId;

#[derive(Serialize, ToSchema)]
pub(super) struct PeersStatus {
    nodes: Vec<PeerEntry>,
    /// What was refused, by cause.
    refused: BTreeMap<&'static str, u64>,
    /// Connections over which all was said.
    connections: u64,
    /// Changes of keys of handshakes.
    keys: u64,
    /// Addresses that more than one node claims, some of them.
    disputes: Vec<DisputeEntry>,
    /// How many there are.
    disputed: usize,
    /// Nodes of the cluster of which no agent can tell all, and why.
    left_out: Vec<LeftOutEntry>,
    /// Why the Kubernetes API is asked about pods of other nodes as well; null: it is not.
    #[schema(value_type = Option<String>, required = true)]
    pods_asked: Option<Arc<str>>,
}

/// A node of the cluster of which no agent can tell all.
#[derive(Serialize, ToSchema)]
struct LeftOutEntry {
    #[schema(value_type = String)]
    node: Arc<str>,
    /// Why.
    why: String,
}

/// Somebody who lives on another node, and whose agent shows nothing of him.
#[derive(Serialize, ToSchema)]
struct SilentEntry {
    #[schema(value_type = String)]
    address: IpAddr,
    /// What he is called there. He has that name here if Kubernetes calls him so as well, without proof.
    #[schema(value_type = String)]
    spiffe: Arc<str>,
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
    /// Addresses of workloads of which it shows no SVID.
    silent: usize,
    /// Some of these.
    some_silent: Vec<SilentEntry>,
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
        addresses: status.counts.addresses,
        identities: status.counts.identities,
        silent: status.counts.silent,
        some_silent: status.counts.some_silent.into_iter().map(silent).collect(),
        proves: status.proves,
        epoch: status.epoch,
        refused: status.refused,
        refusal: status.refusal,
        error: status.error,
    }
}

fn silent((address, spiffe): (IpAddr, SpiffeId)) -> SilentEntry {
    SilentEntry {
        address,
        spiffe: spiffe.text(),
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
            disputed: status.disputed,
            left_out: status
                .left_out
                .into_iter()
                .map(|(node, why)| LeftOutEntry { node, why })
                .collect(),
            pods_asked: status.asked,
        }
    }
}
