// SPDX-License-Identifier: Apache-2.0
//! Nodes that stopped in a rollout of their own accord, and nodes that are not heard any more, in its status: written by the engine that
//! they follow, and read by all that are asked how far the rollout is.
//!
//! A node may go over to another engine. So one that was not heard for half a minute is named, and an engine that has heard it since
//! says so: the first one forgets it then, before it would call it silent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::known::Known;
use super::report::{RENEW_ROLLOUT, age, is_believed};
use crate::audit::clock;
use crate::audit::record::Timestamp;
use crate::policy::{DenialAction, ROLLOUT_KIND, Stop, StopCause, StopCounts, collection_of};
use crate::state::{Elsewhere, FORGET_AFTER, MissedNode, StoppedNode};

/// As many of an engine's nodes are named of those that stopped.
const MOST: usize = 20;
/// As many of those that are not heard, and as many of others' that are.
const MOST_MISSED: usize = 100;

/// A node that is not heard, or that another engine has heard since then, as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Missed {
    node: String,
    /// When it was heard last by the engine that misses it.
    heard: Timestamp,
}

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
        let counts = StopCounts {
            denials: self.denials,
            per_minute: self.per_minute,
            attempts: self.attempts,
            attempts_per_minute: self.attempts_per_minute,
        };
        let place = (self.stage, self.definition);
        StoppedNode {
            node: self.node,
            stop: Stop::told(name, place, (self.action, self.cause), counts, self.at.0),
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

/// The first of these that are not heard, as an engine writes them.
pub(super) fn missed_written(missed: &[MissedNode]) -> Value {
    let first = missed.iter().take(MOST_MISSED).map(|missed| Missed {
        node: missed.node.clone(),
        heard: Timestamp(missed.heard),
    });
    first
        .filter_map(|missed| serde_json::to_value(missed).ok())
        .collect()
}

/// Those that the engine called `own` missed when it wrote last, and that it would forget as it has begun anew since; and those that
/// engines missed that are gone, whose words nobody believes soon: for as long as they would be remembered, unless another one has heard
/// them, or says the same. `known`: those that it misses now.
pub(super) fn still_missed(
    engines: &Value,
    own: &str,
    hears: impl Fn(&str) -> Option<i64>,
    known: &[MissedNode],
    now: i64,
) -> Vec<MissedNode> {
    let engines = || engines.as_array().into_iter().flatten();
    let heard = engines()
        .filter(|engine| engine["name"] != own)
        .flat_map(|engine| missed_in(&engine["heard"]));
    let heard: Vec<MissedNode> = heard.map(MissedNode::from).collect();
    let missed_by = |whose: &dyn Fn(&Value) -> bool| -> BTreeMap<String, i64> {
        let engines = engines().filter(|engine| whose(engine));
        let missed = engines.flat_map(|engine| missed_in(&engine["silent"]));
        let mut latest = BTreeMap::new();
        for Missed { node, heard } in missed {
            let time = latest.entry(node).or_insert(i64::MIN);
            *time = heard.0.max(*time);
        }
        latest
    };
    let is_gone = |engine: &Value| age(engine, now) >= 2 * RENEW_ROLLOUT;
    let said = missed_by(&|engine| engine["name"] != own && !is_gone(engine));
    let missed = missed_by(&|engine| engine["name"] == own || is_gone(engine));
    let oldest = now.saturating_sub(FORGET_AFTER.as_nanos() as i64);
    missed
        .into_iter()
        .filter(|(node, heard)| said.get(node).is_none_or(|said| said < heard))
        .map(|(node, heard)| MissedNode { node, heard })
        .filter(|missed| missed.heard >= oldest && hears(&missed.node).is_none())
        .filter(|missed| !known.iter().any(|known| known.node == missed.node))
        .filter(|missed| !heard.iter().any(|heard| heard.is_since(missed)))
        .collect()
}

/// Those that engines other than the one called `own` miss, and that `hears` has heard since, as that engine writes them.
pub(super) fn heard_written(engines: &Value, own: &str, hears: impl Fn(&str) -> Option<i64>) -> Vec<Value> {
    let engines = engines.as_array().into_iter().flatten();
    let mut others: Vec<&Value> = engines.filter(|engine| engine["name"] != own).collect();
    // Where there is no room for all, whoever spoke last is answered: nobody may read what the others said any more.
    let now = clock::now();
    others.sort_by_key(|engine| age(engine, now));
    let missed = others.into_iter().flat_map(|engine| missed_in(&engine["silent"]));
    let heard = missed.filter(|missed| hears(&missed.node).is_some_and(|heard| heard > missed.heard.0));
    // Of what several miss, the latest time is what counts, for each name once.
    let mut latest: BTreeMap<String, i64> = BTreeMap::new();
    for missed in heard {
        if latest.len() < MOST_MISSED || latest.contains_key(&missed.node) {
            let time = latest.entry(missed.node).or_insert(i64::MIN);
            *time = missed.heard.0.max(*time);
        }
    }
    let told = latest.into_iter().map(|(node, heard)| Missed {
        node,
        heard: Timestamp(heard),
    });
    told.filter_map(|missed| serde_json::to_value(missed).ok())
        .collect()
}

/// What is none of ours says nothing.
fn missed_in(list: &Value) -> impl Iterator<Item = Missed> {
    let entries = list.as_array().into_iter().flatten();
    entries.filter_map(|entry| Missed::deserialize(entry).ok())
}

/// What engines say of their nodes in the rollout; not what the one called `own` says, but for those whom it missed: it may have begun
/// anew since.
pub fn told_by_engines(known: &Known, own: Option<&str>) -> Elsewhere {
    let now = clock::now();
    let mut told = Elsewhere::default();
    for (collection, _, policy) in known.iter() {
        if collection_of(ROLLOUT_KIND) != Some(collection) {
            continue;
        }
        let engines = policy.resource["status"]["engines"].as_array();
        for engine in engines.into_iter().flatten() {
            let name = engine["name"].as_str().unwrap_or_default();
            if !is_believed(engine, true, now) {
                continue;
            }
            let silent = missed_in(&engine["silent"]).map(|missed| (name.to_owned(), missed.into()));
            told.silent.extend(silent);
            if own == Some(name) {
                continue;
            }
            let entries = engine["stopped"].as_array().into_iter().flatten();
            // What is none of ours says nothing.
            let entries = entries.filter_map(|entry| Entry::deserialize(entry).ok());
            let nodes = entries.map(|entry| (name.to_owned(), entry.of_rollout(&policy.name)));
            told.stopped.extend(nodes);
            told.heard
                .extend(missed_in(&engine["heard"]).map(MissedNode::from));
        }
    }
    let heard = &told.heard;
    told.silent.retain(|(_, missed): &(String, MissedNode)| {
        missed.is_silent(now) && !heard.iter().any(|heard| heard.is_since(missed))
    });
    told
}

impl From<Missed> for MissedNode {
    fn from(Missed { node, heard }: Missed) -> Self {
        Self { node, heard: heard.0 }
    }
}
