// SPDX-License-Identifier: Apache-2.0
//! Kubernetes Services and their endpoints, as the API says them.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::scene::Party;

/// Where Services are.
pub const SERVICES: &str = "/api/v1/services";
/// Where their endpoints are.
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// A Service of the namespace `hanzo` with these ports, each with its target port.
pub fn service(name: &str, uid: &str, address: Ipv4Addr, ports: &[(u16, u16)]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(port, target)| json!({"name": format!("p{target}"), "port": port, "targetPort": target}))
        .collect();
    json!({
        "metadata": {"namespace": "hanzo", "name": name, "uid": uid},
        "spec": {"clusterIP": address.to_string(), "clusterIPs": [address.to_string()], "ports": ports, "selector": {"app": name}},
    })
}

/// Its endpoints.
pub fn slice(service: &str, owner: &str, ports: &[u16], behind: &[&Party]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|port| json!({"name": format!("p{port}"), "port": port, "protocol": "TCP"}))
        .collect();
    let endpoints: Vec<Value> = behind
        .iter()
        .map(|party| json!({"addresses": [party.host.ipv4.to_string()], "conditions": {"ready": true}}))
        .collect();
    json!({
        "metadata": {
            "namespace": "hanzo", "name": format!("{service}-x"), "uid": format!("slice-of-{owner}"),
            "labels": {"kubernetes.io/service-name": service},
            "ownerReferences": [{"kind": "Service", "name": service, "uid": owner}],
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    })
}
