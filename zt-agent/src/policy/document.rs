// SPDX-License-Identifier: Apache-2.0
//! The model of a `ServiceAccessPolicy` and its canonical JSON form.

mod canonical;
mod read;

use serde_json::Value as Json;
use smallvec::SmallVec;

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

/// Ports of a target; few have more than these beside each other.
pub(super) type Ports = SmallVec<[PortRange; 4]>;

/// One rule of a policy. There may be a hundred thousand of them: each byte counts.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The number that stands in the kernel for its name, `<policy>/rule-<n>` ([`RuleName`](super::RuleName)).
    pub number: u64,
    /// `description`.
    pub description: Option<Box<str>>,
    /// `action`.
    pub action: Action,
    /// `from`: who opens the connection.
    pub from: Endpoint,
    /// `to`: whom it reaches; may be empty for a rule about raw sockets.
    pub to: Box<[Target]>,
    /// `rawSockets`: the rule is also about the source's right to raw sockets.
    pub raw_sockets: bool,
}

/// One item of a rule's `to`.
#[derive(Clone, Debug)]
pub struct Target {
    /// Who accepts the connection.
    pub endpoint: Endpoint,
    /// `ports`, as written; empty for all.
    pub ports: Ports,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_small() {
        // With a hundred thousand rules, eight bytes of each are a megabyte.
        assert!(size_of::<Rule>() <= 72, "{}", size_of::<Rule>());
        assert!(size_of::<Target>() <= 56, "{}", size_of::<Target>());
    }
}
