// SPDX-License-Identifier: Apache-2.0
//! What an engine tells the cluster of the policies that this keeps.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::feed::PolicyFeed;
use crate::api::ApiState;
use crate::config::Config;
use crate::kubernetes::Client;
use crate::policy_cluster::Reporter;
use crate::state::Snapshot;

/// Where policy is of a cluster, its resources are told what became of them.
pub(super) fn report(
    feed: &PolicyFeed,
    kubernetes: Option<Client>,
    config: &Config,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    state: ApiState,
) -> Option<JoinHandle<()>> {
    let (PolicyFeed::Cluster(policies), Some(client)) = (feed, kubernetes) else {
        return None;
    };
    let hearing = state.clone();
    let reporter = Reporter {
        client,
        engine: config.node.clone(),
        policy: config.policy_settings(),
        known: policies.known(),
        snapshots,
        nodes: Box::new(move || state.followers()),
        hears: Box::new(move |node: &str| hearing.node_heard(node)),
    };
    Some(tokio::spawn(reporter.run()))
}
