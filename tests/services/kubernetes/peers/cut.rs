// SPDX-License-Identifier: Apache-2.0
//! The network between two nodes is cut.

use super::*;

#[test]
fn what_a_node_said_and_its_keys_hold_while_it_is_cut_off_and_no_longer() -> Result<()> {
    let mesh = Mesh::new("kube-cut", 2, "60s")?;
    let mut chat = mesh.pod(0, "chat", 2)?;
    let iam = mesh.pod(1, "iam", 2)?;
    mesh.is_proven((0, &mut chat), (1, &iam))?;
    let state = |state: &'static str| move |peer: &Value| peer["state"] == state;

    let node = &mesh.overlay.nodes[1];
    node.cut()?;
    // From where it was cut on nobody hears the other agent; all else is heard again.
    for end in ["dport", "sport"] {
        node.iptables(&format!("-I INPUT -p tcp --{end} {PEERS} -j DROP"))?;
    }
    for (index, other) in [(0, 1), (1, 0)] {
        mesh.wait_peer(index, other, "stale", state("stale"))?;
    }
    node.mend()?;
    mesh.is_proven((0, &mut chat), (1, &iam))?;
    let peer = mesh.peer(0, 1)?;
    assert_eq!(peer["state"], "stale", "that was proven by what is held: {peer}");

    // And no longer than that; when it is heard again all is as before.
    for (index, other) in [(0, 1), (1, 0)] {
        mesh.wait_peer(index, other, "unknown", state("unknown"))?;
    }
    mesh.overlay.nodes[1].iptables("-F INPUT")?;
    mesh.wait_peer(0, 1, "connected", state("connected"))?;
    mesh.is_proven((0, &mut chat), (1, &iam))
}
