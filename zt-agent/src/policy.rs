// SPDX-License-Identifier: Apache-2.0
//! Policy: documents → [`parse`] → [`PolicySet`] → [`compile`] → [`AllowTable`] → a decision.
//!
//! Pure: text in, values out. Reading files and filling kernel maps is done by others, so everything here runs
//! without root, and `zt-agent policy check` says exactly what the daemon would.
//!
//! What a flow is allowed is decided by [`zt_common::verdict::verdict`], the function that the kernel programs
//! call, over the table that they are given.

mod action;
mod alike;
mod any;
mod compile;
mod cut;
mod diff;
mod document;
mod effect;
mod endpoint;
mod entity;
mod envelope;
mod exemplar;
mod expect;
mod explain;
mod group;
mod hash;
mod listing;
mod mirror;
mod named_party;
mod network;
mod operator;
mod outside;
mod ports;
mod problem;
mod recommend;
mod rollout;
mod rule_names;
#[cfg(test)]
pub(crate) mod sample;
mod schema;
mod seen;
mod set;
mod table;
mod walk;

use ipnet::IpNet;

pub use action::{Action, Protocol};
pub use alike::Alike;
pub use any::AnyPolicy;
pub use compile::{CompileError, compile, compile_with};
pub use cut::Outcome;
pub use diff::{DefaultActionChange, PolicyChange, PolicyDiff, RolloutChange, Statement};
pub use document::{KIND, Rule, ServiceAccessPolicy, Target};
pub use effect::{ANY_OTHER, Effect, Effects, RawEffect, effects};
pub use endpoint::Endpoint;
pub use entity::{ENTITIES, entity_name, entity_number};
pub use envelope::{API_VERSION, Head, is_label, is_policy_name, text_digest};
pub use exemplar::{Exemplars, exemplars};
pub use expect::{Asked, Case, Expectation, TEST_KIND, parse_tests, try_tests};
pub use explain::{Explanation, Miss, Silent, Speaking, Step, explain, places};
pub use group::{Group, Groups, Member};
pub use mirror::{Difference, LabelError, Mapping, Mirror, MirrorError, WIDENS, differences, mirror};
pub use named_party::NamedParty;
pub use network::Networks;
pub use operator::{
    OPERATOR_KIND, OperatorAccessPolicy, OperatorDecision, OperatorReason, OperatorRequest, OperatorRule,
};
pub use ports::PortRange;
pub use problem::Problem;
pub use recommend::{
    Counted, MAX_ADDRESSES, Moment, RawCounted, RecommendError, Recommended, Unused, Wishes, recommend,
    unused,
};
pub use rollout::{
    Armed, Canary, CanaryBy, DenialAction, DeniedEdge, Edge, EnforcementRollout, Guard, Instance, OnDenials,
    Outcome as GuardOutcome, ROLLOUT_KIND, Refusals, Replica, Stage, StageMode, Stop, StopCause, StopCounts,
    WINDOW,
};
pub use rule_names::{RuleName, RuleNames};
pub use schema::{
    GROUP, RESOURCES, collection_of, definitions, document_of, mark_of, mark_resource, resource_of,
};
pub use seen::{SeenFlow, SeenParty, Undecided};
pub use set::{PolicySet, Standing, parse, reparse, standing};
pub use table::{AllowTable, Decision, Party};

/// A policy file that someone else has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its name, as problems shall show it.
    pub file: String,
    /// Its content: YAML or JSON, one or more documents.
    pub text: String,
}

/// What the policy of a node depends on besides its documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The trust domain that identities must have.
    pub trust_domain: String,
    /// Whether a workload may always reach itself (`builtin/self`).
    pub allow_self: bool,
    /// Whether this node may always reach its workloads (`builtin/host`).
    pub allow_host: bool,
    /// Where the cluster's own addresses are: who is not known there is `unknown`, never `world`.
    pub cluster_cidrs: Vec<IpNet>,
    /// How many stages of the rollout are in force here at most; `None`: as many as it says itself.
    pub most_stages: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: "hanzo.ai".to_owned(),
            allow_self: true,
            allow_host: true,
            cluster_cidrs: Vec::new(),
            most_stages: None,
        }
    }
}

#[cfg(test)]
mod tests;
