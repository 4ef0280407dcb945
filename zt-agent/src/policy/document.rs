// SPDX-License-Identifier: Apache-2.0
//! The model of a `ServiceAccessPolicy` and its canonical JSON form.

mod canonical;
mod read;

use std::fmt::Write;
use std::sync::Arc;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::action::{Action, Protocol};
use super::endpoint::Endpoint;
use super::ports::PortRange;

use canonical::Canonical;
pub use read::is_policy_name;
pub(super) use read::{Metadata, read, read_description, read_metadata};

/// The one `apiVersion` that this version reads.
pub const API_VERSION: &str = "zt.hanzo.ai/v1";
/// The `kind` of policies between workloads.
pub const KIND: &str = "ServiceAccessPolicy";

/// Which workload may reach which.
#[derive(Clone, Debug)]
pub struct ServiceAccessPolicy {
    /// `metadata.name`, unique among all documents.
    pub name: String,
    /// `metadata.description`.
    pub description: Option<String>,
    /// `spec.description`.
    pub spec_description: Option<String>,
    /// `spec.rules`, in document order.
    pub rules: Vec<Rule>,
    /// `spec.defaultAction`.
    pub default_action: Action,
    /// The file it came from.
    pub file: String,
    /// The line in that file where its name stands.
    pub line: u64,
    /// The column where its name stands.
    pub column: u64,
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
}

impl ServiceAccessPolicy {
    /// The document in its canonical form: without comments, defaults left out, except `defaultAction`.
    pub fn document(&self) -> Json {
        // Nothing in it can fail to be JSON: texts, small numbers, and keys that are field names.
        serde_json::to_value(Canonical::from(self)).unwrap_or_default()
    }

    /// SHA-256 of the canonical form, in hexadecimal: the same for the same policy, however it is written.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The policy with its digest computed.
    fn sealed(mut self) -> Self {
        self.digest = hex_digest(&serde_json::to_string(&Canonical::from(&self)).unwrap_or_default());
        self
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn hex_digest(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}
