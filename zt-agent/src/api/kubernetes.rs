// SPDX-License-Identifier: Apache-2.0
//! What `GET /v1/status` says of Kubernetes.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::audit::record::Timestamp;
use crate::kubernetes::Health;

#[derive(Serialize, ToSchema)]
pub(super) struct KubernetesStatus {
    /// Some of what is known may be old.
    stale: bool,
    /// How following each collection stands.
    collections: BTreeMap<&'static str, CollectionStatus>,
    /// Pods of this node that have an identity.
    pods_here: usize,
    pods_elsewhere: usize,
    /// Addresses of other nodes.
    node_addresses: usize,
    /// Addresses that more than one claim.
    disputed_addresses: usize,
    /// What was said of pods and not believed, by cause.
    refused: BTreeMap<&'static str, u64>,
}

#[derive(Serialize, ToSchema)]
struct CollectionStatus {
    stale: bool,
    /// Since when it is so, or not so.
    #[schema(value_type = String)]
    since: Timestamp,
    /// Why, or what went wrong last.
    #[schema(value_type = Option<String>, required = true)]
    error: Option<Arc<str>>,
    lists: u64,
    watches: u64,
    events: u64,
    failures: u64,
    /// Objects and events that are not understood.
    unreadable: u64,
}

impl From<&Health> for KubernetesStatus {
    fn from(health: &Health) -> Self {
        let pods = health.pods();
        let collections: BTreeMap<_, _> = health
            .freshness
            .all()
            .into_iter()
            .map(|(name, status)| {
                let status = CollectionStatus {
                    stale: status.stale,
                    since: Timestamp(status.since),
                    error: status.error,
                    lists: status.lists,
                    watches: status.watches,
                    events: status.events,
                    failures: status.failures,
                    unreadable: status.unreadable,
                };
                (name, status)
            })
            .collect();
        Self {
            stale: collections.values().any(|status| status.stale),
            collections,
            pods_here: pods.counts.here,
            pods_elsewhere: pods.counts.elsewhere,
            node_addresses: pods.counts.nodes,
            disputed_addresses: pods.counts.disputed,
            refused: pods.refused,
        }
    }
}
