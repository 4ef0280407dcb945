// SPDX-License-Identifier: Apache-2.0
//! A node that has been taken over: its kubelet says what it likes of the Node and of pods, and may make the Node anew.

use super::*;

impl Mesh {
    /// Waits until it is told whose addresses are that another node claims; `None` is nobody.
    fn wait_dispute(&self, net: &str, owner: Option<&str>, claimants: &[&str]) -> Result<()> {
        let mut last = Value::Null;
        let expected = json!({ "net": net, "owner": owner, "claimants": claimants });
        let done = wait_for(&format!("{expected}"), LATER, || {
            last = self.members[0].agent.get("/v1/status")?["peers"]["disputes"].clone();
            let disputes = last.as_array().context("disputes")?;
            Ok(disputes.contains(&expected).then_some(()))
        });
        done.with_context(|| format!("last: {last}"))
    }

    /// Whoever talks is proven, every time.
    fn is_steady(&self, client: &mut Pod, server: &Pod) -> Result<()> {
        for _ in 0..5 {
            let (outcome, record) = self.talk(0, client, server.at(OPEN))?;
            assert_eq!(outcome, "ok", "{record}");
            assert_eq!(record["proof"], "mutual", "{record}");
            assert_eq!(party(&record["source"]), client.party.id, "{record}");
            assert_eq!(party(&record["destination"]), server.party.id, "{record}");
        }
        Ok(())
    }
}

#[test]
fn a_node_that_lies_takes_no_address_from_another() -> Result<()> {
    let mesh = Mesh::new("kube-liar", 3, "5m")?;
    let mut chat = mesh.pod(0, "chat", 2)?;
    let iam = mesh.pod(1, "iam", 2)?;
    let thief = mesh.pod(2, "thief", 2)?;
    mesh.is_proven((0, &mut chat), (1, &iam))?;
    mesh.wait_peer(0, 2, "connected", |peer| {
        peer["state"] == "connected" && peer["addresses"].as_u64() > Some(0)
    })?;

    // Where another node is, and where a pod is: both are its own, and one of its pods is there too.
    let (two, at) = (mesh.overlay.nodes[1].ipv4, iam.party.host.ipv4);
    let there = mesh.api.edit(NODES, "", NAMES[2], |node| {
        let said = [two, at].map(|address| json!({ "type": "InternalIP", "address": address }));
        let addresses = node["status"]["addresses"].as_array_mut();
        addresses.expect("a list").extend(said);
    });
    assert!(there);
    let there = mesh.api.edit(PODS, "shop", "thief", |pod| {
        pod["status"]["podIPs"] = json!([{ "ip": at }, { "ip": thief.party.host.ipv4 }]);
        pod["status"]["podIP"] = json!(at);
    });
    assert!(there);
    mesh.wait_dispute(&format!("{two}/32"), None, &[NAMES[2], NAMES[1]])?;
    mesh.wait_dispute(&format!("{at}/32"), Some(NAMES[1]), &[NAMES[2]])?;
    mesh.is_steady(&mut chat, &iam)?;

    // Its Node is made anew, with the network of another one, and then with this one's.
    for index in [1, 0] {
        assert!(mesh.api.delete(NODES, "", NAMES[2]));
        mesh.put_node(2, &[index], "2026-03-01T00:00:00Z");
        let net = format!("10.244.{}.0/24", index + 1);
        mesh.wait_dispute(&net, Some(NAMES[index]), &[NAMES[2]])?;
        mesh.is_steady(&mut chat, &iam)?;
    }
    Ok(())
}
