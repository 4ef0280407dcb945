// SPDX-License-Identifier: Apache-2.0
//! A kubelet that has been taken over, and says of its pods what is not so.

use super::*;

const NODES: &str = "/api/v1/nodes";
/// A node that somebody has taken over.
const LIAR: &str = "third-node";

/// A node, and the one address that it has for pods.
fn node(name: &str, address: &str, pods: IpAddr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "podCIDR": format!("{pods}/32"), "podCIDRs": [format!("{pods}/32")] },
        "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
    })
}

#[test]
fn a_lying_kubelet_takes_no_address() -> Result<()> {
    let world = World::new("kube-lies")?;
    let (far, own) = (world.far(), world.client.addresses()[0]);
    world.api.put(NODES, node(NODE, "192.0.2.1", own));
    // The addresses of the others are none that this machine may have.
    world.api.put(NODES, node(OTHER, "198.51.100.2", far));
    world
        .api
        .put(NODES, node(LIAR, "198.51.100.3", "10.250.3.1".parse()?));
    let mut server = pod("server", "server", OTHER, &far.to_string());
    server["status"]["hostIP"] = json!("198.51.100.2");
    world.api.put(PODS, server);
    let agent = world.agent()?.start()?;
    let client = world.put_client("client")?;
    wait_pod(&agent, "client", Some(CLIENT))?;
    let mut client = world.start(&client, "app")?;
    world.connects(&mut client, "ok")?;

    let refused = |status: &Value| status["refused"]["address_elsewhere"].as_u64();
    let lies = |name: &str, address: &str, host: &str| {
        let mut lie = pod(name, "thief", LIAR, address);
        lie["status"]["hostIP"] = json!(host);
        world.api.put(PODS, lie);
    };
    // It says that the server is one of its pods, and that the server's address is its own; and the same of the client here.
    let (far, own) = (far.to_string(), own.to_string());
    lies("pod-there", &far, "198.51.100.3");
    lies("node-there", "10.250.3.1", &far);
    wait_status(&agent, "the one lie to be counted", |status| {
        refused(status) == Some(1)
    })?;
    lies("pod-here", &own, "198.51.100.3");
    lies("node-here", "10.250.3.2", &own);
    wait_status(&agent, "both lies to be counted", |status| {
        refused(status) == Some(2)
    })?;
    for _ in 0..10 {
        assert_eq!(world.connect(&mut client)?, "ok");
    }
    let known = wait_pod(&agent, "client", Some(CLIENT))?;
    assert_eq!(known["addresses"], json!([own]));
    let records = agent.wait_audit("decision=ALLOW&port=8000", LATER, |records| records.len() >= 10)?;
    for record in records {
        assert_eq!(record["source"]["spiffe_id"], CLIENT);
        assert_eq!(record["destination"]["spiffe_id"], SERVER);
    }

    // Who knows no networks believes neither of two.
    world.api.delete(NODES, "", NODE);
    world.connects(&mut client, "EPERM")?;
    world.api.put(NODES, node(NODE, "192.0.2.1", own.parse()?));
    world.connects(&mut client, "ok")
}
