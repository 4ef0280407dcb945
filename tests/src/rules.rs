// SPDX-License-Identifier: Apache-2.0
//! Policy documents in few words.

use serde_json::{Value, json};

/// TCP, as policies and records name it.
pub const TCP: &str = "TCP";
/// UDP, as policies and records name it.
pub const UDP: &str = "UDP";

/// Entities, by the names that a policy uses.
const ENTITIES: [&str; 5] = ["host", "world", "unknown", "remote-node", "kube-apiserver"];

/// The identity of the workload that tests call `name`.
pub fn spiffe(name: &str) -> String {
    format!("spiffe://hanzo.ai/hanzo-k8s/test/{name}")
}

/// A `ServiceAccessPolicy` in the making.
///
/// Parties are written as a workload's short name, an entity, a CIDR (it has a `/` and a digit first), a SPIFFE ID or
/// pattern, or `*`. Ports are written `"80"`, `"8000-8100"`, `"80 443"`, or empty for all.
#[derive(Clone, Debug)]
pub struct Policy {
    name: String,
    rules: Vec<Value>,
    default_action: &'static str,
}

impl Policy {
    /// One without rules, which denies.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            rules: Vec::new(),
            default_action: "DENY",
        }
    }

    /// What no rule names is allowed.
    #[must_use]
    pub fn default_allow(mut self) -> Self {
        self.default_action = "ALLOW";
        self
    }

    /// One more rule that allows.
    #[must_use]
    pub fn allow(self, from: &str, to: &str, protocol: &str, ports: &str) -> Self {
        self.rule("ALLOW", from, to, protocol, ports)
    }

    /// One more rule that allows who proves in the handshake who he is.
    #[must_use]
    pub fn allow_proven(self, from: &str, to: &str, protocol: &str, ports: &str) -> Self {
        let mut policy = self.allow(from, to, protocol, ports);
        if let Some(rule) = policy.rules.last_mut() {
            rule["to"][0]["requireProof"] = json!(true);
        }
        policy
    }

    /// One more rule that denies.
    #[must_use]
    pub fn deny(self, from: &str, to: &str, protocol: &str, ports: &str) -> Self {
        self.rule("DENY", from, to, protocol, ports)
    }

    /// One more rule, with its action.
    #[must_use]
    pub fn rule(mut self, action: &str, from: &str, to: &str, protocol: &str, ports: &str) -> Self {
        let mut target = party(to);
        target["protocol"] = json!(protocol);
        let ports: Vec<Value> = ports.split_whitespace().map(port).collect();
        if !ports.is_empty() {
            target["ports"] = json!(ports);
        }
        self.rules
            .push(json!({ "action": action, "from": party(from), "to": [target] }));
        self
    }

    /// One more rule: the workload may open raw sockets.
    #[must_use]
    pub fn raw_sockets(mut self, from: &str) -> Self {
        self.rules
            .push(json!({ "from": party(from), "rawSockets": true }));
        self
    }

    /// The document. (JSON is YAML.)
    pub fn text(&self) -> String {
        let document = json!({
            "apiVersion": "zt.hanzo.ai/v1",
            "kind": "ServiceAccessPolicy",
            "metadata": { "name": self.name },
            "spec": { "rules": self.rules, "defaultAction": self.default_action },
        });
        format!("{document:#}\n")
    }
}

fn party(name: &str) -> Value {
    let first_is_hex = name
        .chars()
        .next()
        .is_some_and(|first| first.is_ascii_hexdigit() || first == ':');
    if ENTITIES.contains(&name) {
        json!({ "entity": name })
    } else if name == "*" || name.starts_with("spiffe://") {
        json!({ "spiffe": name })
    } else if name.contains('/') && first_is_hex {
        json!({ "cidr": name })
    } else {
        json!({ "spiffe": spiffe(name) })
    }
}

fn port(text: &str) -> Value {
    text.parse::<u16>()
        .map_or_else(|_| json!(text), |port| json!(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parties_are_told_apart() {
        assert_eq!(party("iam"), json!({ "spiffe": spiffe("iam") }));
        assert_eq!(party("host"), json!({ "entity": "host" }));
        assert_eq!(party("10.0.0.0/8"), json!({ "cidr": "10.0.0.0/8" }));
        assert_eq!(party("fd00::/8"), json!({ "cidr": "fd00::/8" }));
        assert_eq!(party("*"), json!({ "spiffe": "*" }));
    }
}
