// SPDX-License-Identifier: Apache-2.0
//! The nodes that follow an agent, as they say themselves.

use std::time::Duration;

use crate::policy::Stop;

/// How often a node tells the engine that it follows what is in force there, at the least.
pub const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Of a node that has not done so for this long, engines ask each other in the cluster whether it tells another one by now.
pub const MISSED_AFTER: Duration = Duration::from_secs(30);
/// A node that was not heard for this long is silent: what it said last is not known to hold.
pub const SILENT_AFTER: Duration = Duration::from_secs(120);
/// A node that was not heard for this long is no follower any more.
pub const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// As many stages to come a node names of those that select workloads there.
pub const MOST_SELECTING: usize = 32;

/// How many nodes follow, and how far they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followers {
    /// All that were heard of lately.
    pub all: usize,
    /// Those of them that have exactly the documents in force that are in force here, and are not silent.
    pub in_sync: usize,
    /// Those of these at which the stage is in force, too, that the rollout says. A node that does not say, as its agent is older, is
    /// taken to be.
    pub at_stage: usize,
    /// Those that stopped in that rollout of their own accord, by name.
    pub stopped: Vec<StoppedNode>,
    /// Those that were not heard for [`SILENT_AFTER`].
    pub silent: usize,
    /// Those that were not heard for [`MISSED_AFTER`], by name: these are among them.
    pub missed: Vec<MissedNode>,
}

/// A node that stopped of its own accord.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoppedNode {
    /// The node.
    pub node: String,
    /// Where and why, without the connections that were refused.
    pub stop: Stop,
}

/// A node that was not heard lately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissedNode {
    /// The node.
    pub node: String,
    /// When it was heard last, in Unix nanoseconds.
    pub heard: i64,
}

impl MissedNode {
    /// Whether it was not heard for [`SILENT_AFTER`].
    pub const fn is_silent(&self, now: i64) -> bool {
        now.saturating_sub(self.heard) >= SILENT_AFTER.as_nanos() as i64
    }

    /// Whether this is the same node, heard no earlier.
    pub fn is_since(&self, missed: &Self) -> bool {
        self.node == missed.node && self.heard >= missed.heard
    }
}

/// What policy engines say of their nodes in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// Those that stopped, each with the engine's name.
    pub stopped: Vec<(String, StoppedNode)>,
    /// Those that are silent, and that no other engine hears, each with the engine's name.
    pub silent: Vec<(String, MissedNode)>,
    /// Those that somebody misses, and another engine has heard since then.
    pub heard: Vec<MissedNode>,
}
