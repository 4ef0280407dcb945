// SPDX-License-Identifier: Apache-2.0
//! The nodes that follow an agent, as they say themselves.

use crate::policy::Stop;

/// As many stages to come a node names of those that select workloads there.
pub const MOST_SELECTING: usize = 32;

/// How many nodes follow, and how far they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Followers {
    /// All that were heard of lately.
    pub all: usize,
    /// Those of them that have exactly the documents in force that are in force here.
    pub in_sync: usize,
    /// Those of these at which the stage is in force, too, that the rollout says. A node that does not say, as its agent is older, is
    /// taken to be.
    pub at_stage: usize,
    /// Those that stopped in that rollout of their own accord, by name.
    pub stopped: Vec<StoppedNode>,
}

/// A node that stopped of its own accord.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoppedNode {
    /// The node.
    pub node: String,
    /// Where and why, without the connections that were refused.
    pub stop: Stop,
}
