// SPDX-License-Identifier: Apache-2.0
//! The API server is stopped and comes back, and a Node goes.

use super::*;

fn is_heard(peer: &Value) -> bool {
    peer["state"] == "connected" && peer["epoch"].as_u64() > Some(0)
}

#[test]
fn everybody_has_his_true_name_while_the_api_is_away_and_afterwards() -> Result<()> {
    let mut mesh = Mesh::new("kube-peers-away", 2, "5m")?;
    let mut chat = mesh.pod(0, "chat", 2)?;
    let iam = mesh.pod(1, "iam", 2)?;
    mesh.is_proven((0, &mut chat), (1, &iam))?;

    mesh.api.stop();
    for member in &mesh.members {
        wait_status(&member.agent, "staleness to be told", |status| {
            status["stale"] == true
        })?;
    }
    mesh.is_proven((0, &mut chat), (1, &iam))?;
    // Started anew with nothing but what was known: the other agent is found again, and shows everything.
    mesh.members[0].agent.kill()?;
    mesh.members[0].agent.restart()?;
    mesh.wait_peer(0, 1, "connected", is_heard)?;
    mesh.is_proven((0, &mut chat), (1, &iam))?;

    mesh.api.listen()?;
    for member in &mesh.members {
        wait_status(&member.agent, "everything to be told again", |status| {
            status["stale"] == false
        })?;
    }
    // What goes from now on is heard of again.
    mesh.delete("iam", &iam)?;
    mesh.is_unknown((0, &mut chat), iam.at(OPEN), &[])?;
    mesh.is_unknown((0, &mut chat), iam.at(OPEN), &[&iam])?;
    let next = mesh.pod(1, "next", 3)?;
    mesh.is_proven((0, &mut chat), (1, &next))
}

#[test]
fn a_node_that_is_deleted_proves_nothing_any_more() -> Result<()> {
    let mesh = Mesh::new("kube-deleted", 2, "5m")?;
    let mut chat = mesh.pod(0, "chat", 2)?;
    let iam = mesh.pod(1, "iam", 2)?;
    mesh.is_proven((0, &mut chat), (1, &iam))?;

    assert!(mesh.api.delete(NODES, "", NAMES[1]));
    mesh.wait_peer(0, 1, "dropped", Value::is_null)?;
    // Its pods are there as long as Kubernetes says so, and by that alone.
    wait_for("nothing to be proven", LATER, || {
        let (_, record) = mesh.talk(0, &mut chat, iam.at(OPEN))?;
        let destination = party(&record["destination"]);
        anyhow::ensure!(
            [iam.party.id.as_str(), "unknown"].contains(&destination),
            "{record}"
        );
        let proof = record["proof"].as_str().context("what was proven")?;
        Ok(proof.starts_with("none").then_some(()))
    })?;
    mesh.delete("iam", &iam)?;
    mesh.is_unknown((0, &mut chat), iam.at(OPEN), &[])?;
    mesh.is_unknown((0, &mut chat), iam.at(OPEN), &[&iam])?;

    // It comes back as another one.
    mesh.put_node(1, &[1], "2026-02-01T00:00:00Z");
    mesh.wait_peer(0, 1, "connected", is_heard)?;
    let next = mesh.pod(1, "next", 3)?;
    mesh.is_proven((0, &mut chat), (1, &next))
}
