// SPDX-License-Identifier: Apache-2.0
//! The objects themselves, and what lies between them and those that a cluster has.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};

use super::place::{Layout, Place};
use super::{Peer, Ports};
use crate::policy::action::Protocol;
use crate::policy::envelope::text_digest;
use crate::policy::ports::PortRange;

/// The label by which our objects are known.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "zt");
/// The label that every namespace has.
const NAMESPACE: &str = "kubernetes.io/metadata.name";
const DNS_PORT: u16 = 53;
/// The longest name of an object.
const MAX_NAME: usize = 253;

impl Layout<'_> {
    /// The object of a service; `None` for a pattern, which is no service.
    pub(super) fn object(
        &self,
        place: &Place,
        ingress: &BTreeMap<Peer, Ports>,
        egress: &BTreeMap<Peer, Ports>,
    ) -> Option<Value> {
        let (namespace, account) = (place.namespace.as_ref()?, place.account.as_ref()?);
        let mut out = self.rules(egress, "to");
        out.extend(self.dns());
        Some(json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {
                "name": name(account),
                "namespace": namespace,
                "labels": { MANAGED_BY.0: MANAGED_BY.1 },
            },
            "spec": {
                "podSelector": selector(&self.labels(place)),
                "policyTypes": ["Ingress", "Egress"],
                "ingress": self.rules(ingress, "from"),
                "egress": out,
            },
        }))
    }

    /// One rule for all peers with the same ports.
    fn rules(&self, peers: &BTreeMap<Peer, Ports>, side: &str) -> Vec<Value> {
        let mut by_ports: BTreeMap<&Ports, Vec<Value>> = BTreeMap::new();
        for (peer, ports) in peers {
            by_ports.entry(ports).or_default().push(self.peer(peer));
        }
        by_ports
            .into_iter()
            .map(|(ports, peers)| json!({ side: peers, "ports": written(ports) }))
            .collect()
    }

    fn peer(&self, peer: &Peer) -> Value {
        match peer {
            Peer::AnyPod => json!({ "namespaceSelector": {} }),
            Peer::Pods(place) => {
                let namespace = place.namespace.as_ref();
                let namespace = namespace.map_or_else(|| json!({}), |name| json!({ NAMESPACE: name }));
                json!({
                    "namespaceSelector": selector(&namespace),
                    "podSelector": selector(&self.labels(place)),
                })
            }
            Peer::Block(network, except) => {
                let except: Vec<String> = except.iter().map(ToString::to_string).collect();
                let mut block = json!({ "cidr": network.to_string() });
                if !except.is_empty() {
                    block["except"] = json!(except);
                }
                json!({ "ipBlock": block })
            }
        }
    }

    fn dns(&self) -> Option<Value> {
        let (namespace, (key, value)) = self.mapping.dns.as_ref()?;
        let ports = [Protocol::Udp, Protocol::Tcp]
            .map(|protocol| json!({ "protocol": protocol.name(), "port": DNS_PORT }));
        Some(json!({
            "to": [{
                "namespaceSelector": selector(&json!({ NAMESPACE: namespace })),
                "podSelector": selector(&json!({ key: value })),
            }],
            "ports": ports,
        }))
    }
}

fn selector(labels: &Value) -> Value {
    if labels.as_object().is_none_or(serde_json::Map::is_empty) {
        json!({})
    } else {
        json!({ "matchLabels": labels })
    }
}

fn written(ports: &Ports) -> Vec<Value> {
    let both = [Protocol::Tcp, Protocol::Udp].into_iter().zip(ports);
    both.flat_map(|(protocol, ranges)| {
        ranges.iter().map(move |range| match *range {
            // Without a port, all of the protocol.
            PortRange {
                first: 1,
                last: u16::MAX,
            } => json!({ "protocol": protocol.name() }),
            PortRange { first, last } if first == last => {
                json!({ "protocol": protocol.name(), "port": first })
            }
            PortRange { first, last } => {
                json!({ "protocol": protocol.name(), "port": first, "endPort": last })
            }
        })
    })
    .collect()
}

/// A name that Kubernetes takes: that of the service account, or what its digest gives.
fn name(account: &str) -> String {
    let name = format!("zt-{account}");
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.len() <= MAX_NAME && name.bytes().all(legal) && !name.ends_with('-') {
        name
    } else {
        format!("zt-{}", text_digest(account).chars().take(16).collect::<String>())
    }
}

/// Namespace and name.
pub(super) fn key(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// How an object of a cluster differs from what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// `missing`, `different`, or `extra`: one of ours that no service has any more.
    pub difference: &'static str,
}

/// What lies between `wanted` and the objects that a cluster has. Objects that others made are none of our business.
pub fn differences(wanted: &[Value], cluster: &[Value]) -> Vec<Difference> {
    let cluster: BTreeMap<_, &Value> = cluster.iter().map(|object| (key(object), object)).collect();
    let difference = |(namespace, name): (String, String), difference| Difference {
        namespace,
        name,
        difference,
    };
    let mut found: Vec<Difference> = wanted
        .iter()
        .filter_map(|object| match cluster.get(&key(object)) {
            None => Some(difference(key(object), "missing")),
            Some(there) if plain(&there["spec"]) != plain(&object["spec"]) => {
                Some(difference(key(object), "different"))
            }
            Some(_) => None,
        })
        .collect();
    let known: BTreeSet<_> = wanted.iter().map(key).collect();
    let ours = |object: &&Value| object["metadata"]["labels"][MANAGED_BY.0] == json!(MANAGED_BY.1);
    let extra = cluster
        .iter()
        .filter(|(key, object)| ours(object) && !known.contains(key));
    found.extend(extra.map(|(key, _)| difference(key.clone(), "extra")));
    found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    found
}

/// Without what is null or an empty list, which an API server leaves out.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()))
            .map(|(key, value)| (key.clone(), plain(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().into(),
        other => other.clone(),
    }
}
