// SPDX-License-Identifier: Apache-2.0
//! The objects themselves.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::place::{Layout, Place};
use super::{Peer, Ports};
use crate::policy::action::Protocol;
use crate::policy::envelope::text_digest;
use crate::policy::ports::PortRange;

/// The label by which our objects are known.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "zt");
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
        let mut into = self.rules(ingress, "from");
        if self.is_dns(place) {
            // Every object lets its pods go there.
            into.push(json!({ "from": [{ "namespaceSelector": {} }], "ports": dns_ports() }));
        }
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
                "ingress": into,
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
        Some(json!({
            "to": [{
                "namespaceSelector": selector(&json!({ NAMESPACE: namespace })),
                "podSelector": selector(&json!({ key: value })),
            }],
            "ports": dns_ports(),
        }))
    }

    /// Whether a service's pods are those of the cluster's DNS, by the labels that are known of them.
    pub(super) fn is_dns(&self, place: &Place) -> bool {
        let dns = self.mapping.dns.as_ref();
        dns.is_some_and(|(namespace, (key, value))| {
            place.namespace.as_ref() == Some(namespace) && self.labels(place)[key] == json!(value)
        })
    }
}

fn dns_ports() -> [Value; 2] {
    [Protocol::Udp, Protocol::Tcp].map(|protocol| json!({ "protocol": protocol.name(), "port": DNS_PORT }))
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
