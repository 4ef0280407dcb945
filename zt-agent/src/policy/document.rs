// SPDX-License-Identifier: Apache-2.0
//! The model of a `ServiceAccessPolicy` and its canonical JSON form.

mod read;

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};

use super::action::{Action, Protocol};
use super::endpoint::Endpoint;
use super::ports::PortRange;

pub(super) use read::read;

/// The one `apiVersion` that this version reads.
pub const API_VERSION: &str = "zt.hanzo.ai/v1";
/// The one `kind` that this version reads.
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
        let mut metadata = Map::new();
        metadata.insert("name".to_owned(), json!(self.name));
        describe(&mut metadata, self.description.as_deref());
        let mut spec = Map::new();
        describe(&mut spec, self.spec_description.as_deref());
        spec.insert("defaultAction".to_owned(), json!(self.default_action.name()));
        spec.insert(
            "rules".to_owned(),
            self.rules.iter().map(Rule::document).collect(),
        );
        json!({ "apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec })
    }

    /// SHA-256 of the canonical form, in hexadecimal: the same for the same policy, however it is written.
    pub fn digest(&self) -> String {
        hex_digest(&self.canonical_text())
    }

    pub(super) fn canonical_text(&self) -> String {
        let mut text = String::new();
        write_canonical(&self.document(), &mut text);
        text
    }
}

impl Rule {
    fn document(&self) -> Json {
        let mut rule = Map::new();
        describe(&mut rule, self.description.as_deref());
        let (field, value) = self.from.to_json();
        rule.insert("from".to_owned(), json!({ field: value }));
        if !self.to.is_empty() {
            rule.insert("to".to_owned(), self.to.iter().map(Target::document).collect());
        }
        if self.action != Action::default() {
            rule.insert("action".to_owned(), json!(self.action.name()));
        }
        if self.raw_sockets {
            rule.insert("rawSockets".to_owned(), json!(true));
        }
        Json::Object(rule)
    }
}

impl Target {
    fn document(&self) -> Json {
        let mut target = Map::new();
        let (field, value) = self.endpoint.to_json();
        target.insert(field.to_owned(), value);
        if !self.ports.is_empty() {
            let port = |range: &PortRange| {
                if range.first == range.last {
                    json!(range.first)
                } else {
                    json!(range.to_string())
                }
            };
            target.insert("ports".to_owned(), self.ports.iter().map(port).collect());
        }
        if self.protocol != Protocol::default() {
            target.insert("protocol".to_owned(), json!(self.protocol.name()));
        }
        Json::Object(target)
    }
}

fn describe(map: &mut Map<String, Json>, description: Option<&str>) {
    if let Some(description) = description {
        map.insert("description".to_owned(), json!(description));
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

/// JSON without spaces and with sorted keys, whatever order the map type keeps.
fn write_canonical(value: &Json, text: &mut String) {
    match value {
        Json::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            text.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                text.push_str(&Json::from(key.as_str()).to_string());
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Json::Array(list) => {
            text.push('[');
            for (index, value) in list.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                write_canonical(value, text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}
