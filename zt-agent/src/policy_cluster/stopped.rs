// SPDX-License-Identifier: Apache-2.0
//! Nodes that stopped in a rollout of their own accord, in its status: written by the engine that they follow, and read by all that are
//! asked how far the rollout is.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::known::Known;
use super::report::is_believed;
use crate::audit::clock;
use crate::audit::record::Timestamp;
use crate::policy::{DenialAction, ROLLOUT_KIND, Stop, StopCause, collection_of};
use crate::state::StoppedNode;

/// As many of an engine's nodes are named.
const MOST: usize = 20;

/// A node that stopped, as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    node: String,
    stage: String,
    definition: String,
    action: DenialAction,
    cause: StopCause,
    denials: u64,
    per_minute: u64,
    attempts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempts_per_minute: Option<u64>,
    at: Timestamp,
}

impl From<&StoppedNode> for Entry {
    fn from(StoppedNode { node, stop }: &StoppedNode) -> Self {
        Self {
            node: node.clone(),
            stage: stop.stage.clone(),
            definition: stop.definition.clone(),
            action: stop.action,
            cause: stop.cause,
            denials: stop.denials,
            per_minute: stop.per_minute,
            attempts: stop.attempts,
            attempts_per_minute: stop.attempts_per_minute,
            at: Timestamp(stop.at_nanos()),
        }
    }
}

impl Entry {
    fn of_rollout(self, name: &str) -> StoppedNode {
        StoppedNode {
            node: self.node,
            stop: Stop {
                rollout: name.to_owned(),
                stage: self.stage,
                definition: self.definition,
                action: self.action,
                denials: self.denials,
                per_minute: self.per_minute,
                attempts: self.attempts,
                attempts_per_minute: self.attempts_per_minute,
                at: (self.at.0.max(0) / 1_000_000).unsigned_abs(),
                edges: Vec::new(),
                cause: self.cause,
            },
        }
    }
}

/// The first of these, as an engine writes them.
pub(super) fn written(stopped: &[StoppedNode]) -> Value {
    let first = stopped.iter().take(MOST).map(Entry::from);
    // Texts and numbers: that cannot fail to be JSON.
    first
        .filter_map(|entry| serde_json::to_value(entry).ok())
        .collect()
}

/// What engines say of nodes that stopped, each with the engine's name; not what the one called `own` says.
pub fn stopped_nodes(known: &Known, own: Option<&str>) -> Vec<(String, StoppedNode)> {
    let now = clock::now();
    let mut found = Vec::new();
    for (collection, _, policy) in known.iter() {
        if collection_of(ROLLOUT_KIND) != Some(collection) {
            continue;
        }
        let engines = policy.resource["status"]["engines"].as_array();
        for engine in engines.into_iter().flatten() {
            let name = engine["name"].as_str().unwrap_or_default();
            if own == Some(name) || !is_believed(engine, now) {
                continue;
            }
            let entries = engine["stopped"].as_array().into_iter().flatten();
            // What is none of ours says nothing.
            let entries = entries.filter_map(|entry| Entry::deserialize(entry).ok());
            let nodes = entries.map(|entry| (name.to_owned(), entry.of_rollout(&policy.name)));
            found.extend(nodes);
        }
    }
    found
}
