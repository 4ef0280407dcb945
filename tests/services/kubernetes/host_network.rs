// SPDX-License-Identifier: Apache-2.0
//! Pods on their node's network: they share its addresses, so that they are known by their cgroups there, and not at all elsewhere.

use super::*;

/// The address that `hostIP` has on this node.
const HERE: &str = "192.0.2.1";

/// A pod on the network of its node, which has this address.
fn on_host(name: &str, account: &str, node: &str, address: &str) -> Value {
    let mut pod = pod(name, account, node, address);
    pod["spec"]["hostNetwork"] = json!(true);
    pod["status"]["hostIP"] = json!(address);
    pod
}

#[test]
fn pods_that_share_a_namespace_are_told_apart_here_and_are_their_node_elsewhere() -> Result<()> {
    let world = World::new("kube-host")?;
    let proxy = "spiffe://hanzo.ai/hanzo-k8s/shop/proxy";
    let policy = Policy::new("nodes").allow(proxy, "remote-node", TCP, &OPEN.to_string());
    let agent = world.agent()?.policy("nodes.yaml", &policy.text())?.start()?;
    let start = |account: &str| -> Result<Probe> {
        let uid = uid(&world.api.put(PODS, on_host(account, account, NODE, HERE)))?;
        wait_cgroup(&agent, &world.pod_cgroup(&uid)?)?;
        // All in one namespace.
        world.start(&uid, "app")
    };
    let (mut client, mut other) = (start("client")?, start("proxy")?);
    let known = wait_pod(&agent, "client", Some(CLIENT))?;
    assert_eq!(known["addresses"], json!([]), "they are the node's");

    // A pod with an address of its own: the one may reach it, the other may not.
    world.put_far("server", "server")?;
    world.connects(&mut client, "ok")?;
    assert_eq!(world.connect(&mut other)?, "EPERM");
    let records = agent.wait_audit("port=8000", LATER, |records| records.len() >= 2)?;
    for (identity, decision) in [(CLIENT, "ALLOW"), (proxy, "DENY")] {
        let of =
            |record: &&Value| record["source"]["spiffe_id"] == identity && record["decision"] == decision;
        let record = records
            .iter()
            .find(of)
            .with_context(|| json!(records).to_string())?;
        assert_eq!(record["destination"]["spiffe_id"], SERVER);
    }
    world.api.delete(PODS, "shop", "server");
    world.connects(&mut client, "EPERM")?;

    // The same account on that node's network, and one more there: the address is the node's, and neither's.
    let far = world.far().to_string();
    for account in ["server", "thief"] {
        world.api.put(PODS, on_host(account, account, OTHER, &far));
    }
    world.connects(&mut other, "ok")?;
    assert_eq!(world.connect(&mut client)?, "EPERM");
    let records = agent.wait_audit("decision=ALLOW&limit=1", LATER, |records| {
        records
            .iter()
            .any(|record| record["source"]["spiffe_id"] == proxy)
    })?;
    assert_eq!(records[0]["destination"]["entity"], "remote-node");
    assert_eq!(agent.get("/v1/status")?["kubernetes"]["disputed_addresses"], 0);
    Ok(())
}
