// SPDX-License-Identifier: Apache-2.0
//! How far the nodes that follow are in the rollout that is in force here.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::{Heard, Nodes};
use crate::api::rollout::StopReason;
use crate::audit::clock;
use crate::audit::record::Timestamp;
use crate::policy::{EnforcementRollout, Stop};
use crate::state::{
    Elsewhere, Followers, MISSED_AFTER, MOST_SELECTING, MissedNode, SILENT_AFTER, Snapshot, StoppedNode,
};

/// How far a node is in the rollout, as it said last.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RolloutNode)]
pub(in crate::api) struct NodeStanding {
    /// The node.
    node: String,
    /// How far it is.
    state: Reach,
    /// The stage in force there; null where none is, or the node does not say or is silent.
    #[schema(required = true)]
    in_force: Option<String>,
    /// Where and why it stopped of its own accord; null where it did not.
    #[schema(required = true)]
    stopped: Option<StopReason>,
    /// Break-glass is on: nothing is refused there. Null where the node does not say.
    #[schema(required = true)]
    observe_all: Option<bool>,
    /// When it was last heard; null where an engine says in the cluster that it stopped.
    #[schema(value_type = Option<String>, required = true)]
    heard: Option<Timestamp>,
    /// The policy engine that says so in the cluster; null where the node told this agent itself.
    #[schema(required = true)]
    engine: Option<String>,
}

/// How far a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = RolloutNodeState)]
#[serde(rename_all = "snake_case")]
enum Reach {
    /// The stage that the document says is in force there.
    InForce,
    /// It stopped of its own accord, at that stage or short of it.
    Stopped,
    /// Other documents are in force there.
    Behind,
    /// It has the documents, and does not say which stage is in force there: its agent is older.
    Unknown,
    /// It was not heard for two minutes: what was in force there, or that it had stopped, may not be so any more.
    Silent,
}

/// What nodes say of the stages to come.
#[derive(Debug)]
pub(in crate::api) struct Selected {
    /// Those that select workloads of a node.
    pub(in crate::api) stages: HashSet<String>,
    /// No other one selects any there: somebody was heard of lately, and all of those have what is in force here and say which stages
    /// these are.
    pub(in crate::api) is_whole: bool,
}

impl Nodes {
    /// Those heard of lately, by name, and how far they are in `rollout`, which `snapshot` has in force; with them those of which
    /// `elsewhere` tells, who stopped or is silent, where that is later than what they told this agent themselves.
    pub(in crate::api) fn in_rollout(
        &self,
        snapshot: &Snapshot,
        rollout: &EnforcementRollout,
        elsewhere: Elsewhere,
    ) -> Vec<NodeStanding> {
        self.leave_to_others(&elsewhere.heard);
        let (digest, now) = (snapshot.policies.digest(), clock::now());
        let mut nodes = self.lately(|node, heard| heard.standing(node, digest, rollout, now));
        let heard = nodes
            .iter()
            .filter_map(|known| Some((&*known.node, known.heard?.0)));
        let heard: HashMap<&str, i64> = heard.collect();
        // A node that follows another engine by now tells that one.
        let is_news = |node: &str, at: i64| heard.get(node).is_none_or(|heard| at > *heard);
        let silent = elsewhere.silent.into_iter();
        let mut silent: HashMap<(String, String), i64> = silent
            .filter(|(_, missed)| is_news(&missed.node, missed.heard))
            .map(|(engine, missed)| ((engine, missed.node), missed.heard))
            .collect();
        let stopped = elsewhere.stopped.into_iter();
        let mut others: Vec<(i64, NodeStanding)> = stopped
            .filter_map(|(engine, StoppedNode { node, stop })| {
                let is_news = is_news(&node, stop.at_nanos());
                let reached = stop.reached_in(rollout).filter(|_| is_news)?;
                let standing = NodeStanding::told(node, engine);
                let standing = NodeStanding {
                    state: Reach::Stopped,
                    in_force: stage_at(rollout, reached),
                    stopped: Some(StopReason::from(&stop)),
                    ..standing
                };
                Some((stop.at_nanos(), standing))
            })
            .collect();
        for (at, other) in &mut others {
            let key = (other.engine.clone().unwrap_or_default(), other.node.clone());
            if let Some(heard) = silent.remove(&key) {
                *at = heard;
                other.state = Reach::Silent;
                other.in_force = None;
                other.heard = Some(Timestamp(heard));
            }
        }
        others.extend(silent.into_iter().map(|((engine, node), heard)| {
            let standing = NodeStanding {
                heard: Some(Timestamp(heard)),
                ..NodeStanding::told(node, engine)
            };
            (heard, standing)
        }));
        // Of what several engines say of one node, what is later holds.
        others.sort_by(|(a_at, a), (b_at, b)| (&a.node, b_at, &a.engine).cmp(&(&b.node, a_at, &b.engine)));
        others.dedup_by(|(_, other), (_, later)| other.node == later.node);
        let later: HashSet<&str> = others.iter().map(|(_, other)| &*other.node).collect();
        nodes.retain(|known| !later.contains(&*known.node));
        nodes.extend(others.into_iter().map(|(_, other)| other));
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        nodes
    }

    /// How many were heard of lately, and how far they are.
    pub(in crate::api) fn followers(&self, snapshot: &Snapshot) -> Followers {
        let (digest, now) = (snapshot.policies.digest(), clock::now());
        let rollout = snapshot.policies.rollout();
        let missed = self.lately(|node, heard| {
            let is_missed = heard.is_unheard(MISSED_AFTER, now);
            is_missed.then(|| MissedNode {
                node: node.to_owned(),
                heard: heard.at,
            })
        });
        let silent = self.lately(|_, heard| heard.is_unheard(SILENT_AFTER, now));
        let all = self.lately(|node, heard| {
            let in_sync = heard.is_in_sync(digest, now);
            let stop = rollout.and_then(|rollout| heard.stop_in(rollout));
            let stopped = stop.map(|stop| StoppedNode {
                node: node.to_owned(),
                stop: stop.clone(),
            });
            let at_stage = in_sync && rollout.is_none_or(|rollout| heard.is_at_stage(rollout));
            (in_sync, at_stage, stopped)
        });
        Followers {
            all: all.len(),
            in_sync: all.iter().filter(|(in_sync, ..)| *in_sync).count(),
            at_stage: all.iter().filter(|(_, at_stage, _)| *at_stage).count(),
            stopped: all.into_iter().filter_map(|(.., stopped)| stopped).collect(),
            silent: silent.into_iter().filter(|is_silent| *is_silent).count(),
            missed: missed.into_iter().flatten().collect(),
        }
    }

    /// The stages to come that select workloads of a node, by the word of those that have what is in force here.
    pub(in crate::api) fn selected(&self, snapshot: &Snapshot) -> Selected {
        let (digest, now) = (snapshot.policies.digest(), clock::now());
        let said: Vec<Option<Vec<String>>> = self.lately(|_, heard| {
            let holds = heard.is_in_sync(digest, now);
            let said = heard.said.as_ref().filter(|_| holds)?;
            said.selects.clone()
        });
        // A list that is full may have been cut off.
        let told = said.iter().flatten().filter(|all| all.len() < MOST_SELECTING);
        Selected {
            is_whole: !said.is_empty() && told.count() == said.len(),
            stages: said.into_iter().flatten().flatten().collect(),
        }
    }
}

impl NodeStanding {
    /// A node that an engine says in the cluster is silent.
    fn told(node: String, engine: String) -> Self {
        Self {
            node,
            state: Reach::Silent,
            in_force: None,
            stopped: None,
            observe_all: None,
            heard: None,
            engine: Some(engine),
        }
    }
}

impl Heard {
    /// Whether it was not heard for that long.
    fn is_unheard(&self, time: Duration, now: i64) -> bool {
        now.saturating_sub(self.at) >= time.as_nanos() as i64
    }

    /// Whether what is in force there is this, as far as is known.
    pub(super) fn is_in_sync(&self, digest: &str, now: i64) -> bool {
        self.digest == digest && !self.is_unheard(SILENT_AFTER, now)
    }

    fn standing(&self, node: &str, digest: &str, rollout: &EnforcementRollout, now: i64) -> NodeStanding {
        let in_sync = self.digest == digest;
        let is_silent = self.is_unheard(SILENT_AFTER, now);
        let said = self
            .said
            .as_ref()
            .filter(|said| said.rollout == rollout.head.name);
        let stop = self.stop_in(rollout);
        let state = match said {
            _ if is_silent => Reach::Silent,
            _ if stop.is_some() => Reach::Stopped,
            None if in_sync => Reach::Unknown,
            Some(said) if in_sync && said.stage == stage_at(rollout, rollout.reached()) => Reach::InForce,
            _ => Reach::Behind,
        };
        NodeStanding {
            node: node.to_owned(),
            state,
            in_force: said.filter(|_| !is_silent).and_then(|said| said.stage.clone()),
            stopped: stop.map(StopReason::from),
            observe_all: said.map(|said| said.observe_all),
            heard: Some(Timestamp(self.at)),
            engine: None,
        }
    }

    /// Where it stopped, if that holds in this rollout: one that has gone back behind the stage is another try.
    fn stop_in(&self, rollout: &EnforcementRollout) -> Option<&Stop> {
        let stop = self.said.as_ref()?.stopped.as_ref()?;
        stop.reached_in(rollout).map(|_| stop)
    }

    /// Whether the stage of the document is in force there, as far as it says.
    fn is_at_stage(&self, rollout: &EnforcementRollout) -> bool {
        self.said.as_ref().is_none_or(|said| {
            said.rollout == rollout.head.name
                && said.stage == stage_at(rollout, rollout.reached())
                && !said.observe_all
        })
    }
}

/// The name of the stage in force where that many are reached.
fn stage_at(rollout: &EnforcementRollout, reached: usize) -> Option<String> {
    rollout.stage_at(reached).map(|stage| stage.name.to_string())
}

#[cfg(test)]
mod tests;
