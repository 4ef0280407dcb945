// SPDX-License-Identifier: Apache-2.0
//! Addresses that go from pod to pod.

use std::net::Ipv4Addr;

use super::*;

impl Mesh {
    /// Leads an address to a node, whatever network it is in; with `None` to where it belongs again.
    fn lead(&self, address: Ipv4Addr, to: Option<usize>) -> Result<()> {
        for (index, node) in self.overlay.nodes.iter().enumerate() {
            node.ip(&match to {
                Some(to) if to == index => format!("route replace {address}/32 dev cni0\n"),
                Some(to) => format!("route replace {address}/32 via 10.245.0.{}\n", to + 1),
                None => format!("route del {address}/32\n"),
            })?;
        }
        Ok(())
    }

    /// Kubernetes says that a pod is at an address.
    fn tell(&self, account: &str, address: Ipv4Addr) {
        let there = self.api.edit(PODS, "shop", account, |pod| {
            pod["status"]["podIP"] = json!(address);
            pod["status"]["podIPs"] = json!([{ "ip": address }]);
        });
        assert!(there, "{account}");
    }
}

#[test]
fn an_address_that_goes_to_a_pod_of_another_node_never_has_its_old_name() -> Result<()> {
    let mesh = Mesh::new("kube-moved", 3, "5m")?;
    let mut chat = mesh.pod(0, "chat", 2)?;
    let iam = mesh.pod(1, "iam", 2)?;
    let thief = mesh.pod(2, "thief", 9)?;
    mesh.is_proven((0, &mut chat), (1, &iam))?;

    // The network has moved it, and nobody was told: all agents and Kubernetes say that it is the old one's.
    let (at, to) = (iam.party.host.ipv4, iam.at(OPEN));
    iam.party.host.ip(&format!("addr del {at}/24 dev pod0\n"))?;
    thief.party.host.ip(&format!("addr add {at}/32 dev pod0\n"))?;
    mesh.lead(at, Some(2))?;
    for _ in 0..3 {
        let (outcome, record) = mesh.talk(0, &mut chat, to)?;
        // The caller goes by what it was told, and who answers proves nothing: nothing is said to anybody.
        assert_ne!(outcome, "ok", "{record}");
        assert_ne!(record["proof"], "mutual", "{record}");
    }
    // It was there that the calls arrived, and as nobody's.
    let arrived = wait_for("a record of the other end", LATER, || {
        Ok(mesh.recorded(2, "destination", to)?.last().cloned())
    })?;
    assert_eq!(arrived["decision"], "DENY", "{arrived}");
    assert_eq!(party(&arrived["source"]), "unknown", "{arrived}");

    // Everybody is told. The address is in the network of a node whose agent says nothing of it.
    mesh.delete("iam", &iam)?;
    mesh.tell("thief", at);
    mesh.is_unknown((0, &mut chat), to, &[])?;
    mesh.is_unknown((0, &mut chat), to, &[&iam])?;

    // It comes back, to another pod of the first node.
    mesh.tell("thief", thief.party.host.ipv4);
    thief.party.host.ip(&format!("addr del {at}/32 dev pod0\n"))?;
    mesh.lead(at, None)?;
    mesh.overlay.nodes[1].ip("link del v2\nneigh flush dev cni0\n")?;
    let next = mesh.pod(1, "next", 2)?;
    assert_eq!(next.at(OPEN), to);
    mesh.is_proven((0, &mut chat), (1, &next))?;
    // Nobody but these two was ever named there, and neither was called by the other's name.
    for record in mesh.recorded(0, "source", to)? {
        let named = party(&record["destination"]);
        let expected = [iam.party.id.as_str(), &next.party.id, "unknown"];
        assert!(expected.contains(&named), "{record}");
    }
    Ok(())
}
