// SPDX-License-Identifier: Apache-2.0
//! The model of a `ServiceAccessPolicy` and its canonical JSON form.

mod canonical;
mod read;

use std::sync::Arc;

use serde_json::Value as Json;

use super::action::{Action, Protocol};
use super::endpoint::Endpoint;
use super::envelope::Head;
use super::ports::PortRange;

pub(super) use read::read;

/// The `kind` of policies between workloads.
pub const KIND: &str = "ServiceAccessPolicy";

/// The fields of a `spec`.
pub(super) const SPEC_FIELDS: [&str; 3] = ["rules", "defaultAction", "description"];
/// The fields of a rule.
pub(super) const RULE_FIELDS: [&str; 5] = ["from", "to", "action", "rawSockets", "description"];
/// The fields of an item of a rule's `to`.
pub(super) const TARGET_FIELDS: [&str; 6] = ["spiffe", "entity", "cidr", "ports", "protocol", "requireProof"];

/// Which workload may reach which.
#[derive(Clone, Debug)]
pub struct ServiceAccessPolicy {
    /// Its name, and where it stands.
    pub head: Head,
    /// `spec.description`.
    pub spec_description: Option<String>,
    /// `spec.rules`, in document order.
    pub rules: Vec<Rule>,
    /// `spec.defaultAction`.
    pub default_action: Action,
    digest: String,
}

/// One rule of a policy.
#[derive(Clone, Debug)]
pub struct Rule {
    /// `<policy>/rule-<n>`, n from 1 in document order.
    pub name: Arc<str>,
    /// The number that stands for the name in the kernel.
    pub number: u64,
    /// `description`.
    pub description: Option<String>,
    /// `action`.
    pub action: Action,
    /// `from`: who opens the connection.
    pub from: Endpoint,
    /// `to`: whom it reaches; may be empty for a rule about raw sockets.
    pub to: Vec<Target>,
    /// `rawSockets`: the rule is also about the source's right to raw sockets.
    pub raw_sockets: bool,
}

/// One item of a rule's `to`.
#[derive(Clone, Debug)]
pub struct Target {
    /// Who accepts the connection.
    pub endpoint: Endpoint,
    /// `ports`, as written; empty for all.
    pub ports: Vec<PortRange>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `requireProof`: only for who proves in the handshake who it is, at both ends.
    pub require_proof: bool,
}

impl ServiceAccessPolicy {
    /// The document in its canonical form: without comments, defaults left out, except `defaultAction`.
    pub fn document(&self) -> Json {
        self.canonical().document()
    }

    /// SHA-256 of the canonical form, in hexadecimal: the same for the same policy, however it is written.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The policy with its digest computed.
    fn sealed(mut self) -> Self {
        self.digest = self.canonical().digest();
        self
    }
}
