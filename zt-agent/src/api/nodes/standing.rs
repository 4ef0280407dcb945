// SPDX-License-Identifier: Apache-2.0
//! How far the nodes that follow are in the rollout that is in force here.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use utoipa::ToSchema;

use super::{Heard, Nodes};
use crate::api::rollout::StopReason;
use crate::audit::record::Timestamp;
use crate::policy::{EnforcementRollout, Stop};
use crate::state::{Followers, MOST_SELECTING, Snapshot, StoppedNode};

/// How far a node is in the rollout, as it said last.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RolloutNode)]
pub(in crate::api) struct NodeStanding {
    /// The node.
    node: String,
    /// How far it is.
    state: Reach,
    /// The stage in force there; null where none is, or the node does not say.
    #[schema(required = true)]
    in_force: Option<String>,
    /// Where and why it stopped of its own accord; null where it did not.
    #[schema(required = true)]
    stopped: Option<StopReason>,
    /// Break-glass is on: nothing is refused there. Null where the node does not say.
    #[schema(required = true)]
    observe_all: Option<bool>,
    /// When it was last heard; null where an engine says so in the cluster.
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
    /// `elsewhere` tells, engines and nodes that stopped, where that is later than what they told this agent themselves.
    pub(in crate::api) fn in_rollout(
        &self,
        snapshot: &Snapshot,
        rollout: &EnforcementRollout,
        elsewhere: Vec<(String, StoppedNode)>,
    ) -> Vec<NodeStanding> {
        let digest = snapshot.policies.digest();
        let mut nodes = self.lately(|node, heard| heard.standing(node, digest, rollout));
        let heard = nodes
            .iter()
            .filter_map(|known| Some((&*known.node, known.heard?.0)));
        let heard: HashMap<&str, i64> = heard.collect();
        let others: Vec<NodeStanding> = elsewhere
            .into_iter()
            .filter_map(|(engine, StoppedNode { node, stop })| {
                // A node that follows another engine by now tells that one.
                let is_news = heard.get(&*node).is_none_or(|heard| stop.at_nanos() > *heard);
                let reached = stop.reached_in(rollout).filter(|_| is_news)?;
                Some(NodeStanding {
                    node,
                    state: Reach::Stopped,
                    in_force: stage_at(rollout, reached),
                    stopped: Some(StopReason::from(&stop)),
                    observe_all: None,
                    heard: None,
                    engine: Some(engine),
                })
            })
            .collect();
        let later: HashSet<&str> = others.iter().map(|other| &*other.node).collect();
        nodes.retain(|known| !later.contains(&*known.node));
        nodes.extend(others);
        nodes.sort_by(|a, b| (&a.node, &a.engine).cmp(&(&b.node, &b.engine)));
        nodes
    }

    /// How many were heard of lately, and how far they are.
    pub(in crate::api) fn followers(&self, snapshot: &Snapshot) -> Followers {
        let digest = snapshot.policies.digest();
        let rollout = snapshot.policies.rollout();
        let all = self.lately(|node, heard| {
            let in_sync = heard.digest == digest;
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
        }
    }

    /// The stages to come that select workloads of a node, by the word of those that have what is in force here.
    pub(in crate::api) fn selected(&self, snapshot: &Snapshot) -> Selected {
        let digest = snapshot.policies.digest();
        let said: Vec<Option<Vec<String>>> = self.lately(|_, heard| {
            let said = heard.said.as_ref().filter(|_| heard.digest == digest)?;
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

impl Heard {
    fn standing(&self, node: &str, digest: &str, rollout: &EnforcementRollout) -> NodeStanding {
        let in_sync = self.digest == digest;
        let said = self
            .said
            .as_ref()
            .filter(|said| said.rollout == rollout.head.name);
        let stop = self.stop_in(rollout);
        let state = match said {
            _ if stop.is_some() => Reach::Stopped,
            None if in_sync => Reach::Unknown,
            Some(said) if in_sync && said.stage == stage_at(rollout, rollout.reached()) => Reach::InForce,
            _ => Reach::Behind,
        };
        NodeStanding {
            node: node.to_owned(),
            state,
            in_force: said.and_then(|said| said.stage.clone()),
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
