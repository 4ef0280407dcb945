// SPDX-License-Identifier: Apache-2.0
//! What is recorded beside the decisions of the kernel.

use std::sync::Arc;

use crate::audit::convert::{Evaluation, IdentityChange, PolicyChange};

/// What an operator, a client or an identity source did.
#[derive(Clone, Debug)]
pub enum ApiEvent {
    /// Asked for a decision.
    Evaluated(Evaluation),
    /// Changed the mode of the node.
    ModeChanged {
        /// `true`: nothing is refused from now on; `false`: the workloads' own modes hold again.
        observe_all: bool,
        /// Who.
        caller: Arc<str>,
        /// Revision in force.
        revision: u64,
    },
    /// A rollout changed modes on this node, or stopped; or a file or a source of identities changed those of workloads.
    ModesChanged {
        /// Whose doing it was.
        caller: Arc<str>,
        /// What happened.
        what: serde_json::Value,
        /// Revision in force.
        revision: u64,
    },
    /// Put another policy in force.
    PolicyChanged(PolicyChange),
    /// An identity source took an identity back.
    IdentityChanged(IdentityChange),
}
