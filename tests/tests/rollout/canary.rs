// SPDX-License-Identifier: Apache-2.0
//! A canary of real workloads.

use anyhow::Result;
use serde_json::{Value, json};
use zt_tests::agent::DEADLINE;
use zt_tests::agent_files::Workload;
use zt_tests::{Agent, Party, Policy, Scene, spiffe, wait_for};

use super::{any, rollout};

#[test]
fn a_canary_takes_the_same_replicas_whoever_comes_and_goes() -> Result<()> {
    const REPLICAS: usize = 12;
    let mut scene = Scene::new("canary")?;
    let mut server = scene.workload("server")?;
    server.serve(any(80))?.local()?;
    let mut replicas = Vec::new();
    for number in 0..REPLICAS {
        let name = format!("web-{number}");
        let host = scene.host(&name)?;
        let cgroup = scene.sandbox().cgroup(&name)?;
        scene.add(&name, Workload::new(&spiffe("web"), &cgroup).at(host.addresses()));
        replicas.push(scene.start(&name, &cgroup, &host)?);
    }
    let canary = |percent| {
        let stages = json!([{
            "name": "web",
            "identities": [spiffe("web")],
            "canary": { "percent": percent },
        }]);
        rollout(Some("web"), &stages)
    };
    let agent = scene
        .agent(&Policy::new("policy"))?
        .mode("observe")
        .policy("rollout.yaml", &canary(40))?
        .start()?;
    let mut refused = |agent: &Agent, of: usize| -> Result<Vec<bool>> {
        let found: Vec<bool> = replicas[..of]
            .iter_mut()
            .map(|replica| Ok(replica.tcp(server.v4(80))? == "EPERM"))
            .collect::<Result<_>>()?;
        let status = agent.get("/v1/rollout")?;
        let taken = found.iter().filter(|refused| **refused).count();
        if of == REPLICAS {
            assert_eq!(status["rollout"]["stages"][0]["taken"], taken);
        }
        Ok(found)
    };
    let first = refused(&agent, REPLICAS)?;
    // Half of them go, and come back.
    let before = scene.workloads();
    agent.files.write_workloads(&before[..=REPLICAS / 2])?;
    wait_for("half of them to be gone", DEADLINE, || {
        let selected = agent.get("/v1/rollout")?["rollout"]["stages"][0]["selected"].clone();
        Ok((selected == REPLICAS / 2).then_some(()))
    })?;
    assert_eq!(refused(&agent, REPLICAS / 2)?, first[..REPLICAS / 2]);
    agent.files.write_workloads(&before)?;
    wait_for("all of them to be back", DEADLINE, || {
        let selected = agent.get("/v1/rollout")?["rollout"]["stages"][0]["selected"].clone();
        Ok((selected == REPLICAS).then_some(()))
    })?;
    assert_eq!(refused(&agent, REPLICAS)?, first);
    // More, and none of the first let go.
    let mut last = first;
    for percent in [70, 100] {
        let revision = agent.revision()?;
        agent.files.write_policy("rollout.yaml", &canary(percent))?;
        agent.wait_revision_after(revision)?;
        let now = refused(&agent, REPLICAS)?;
        assert!(
            last.iter().zip(&now).all(|(was, is)| !was || *is),
            "{last:?} {now:?}"
        );
        last = now;
    }
    assert_eq!(last, [true; REPLICAS]);
    Ok(())
}

/// A node with a server, a client whom a rollout has enforce on some of the nodes, and their agent.
struct Node {
    server: Party,
    client: Party,
    agent: Agent,
    _scene: Scene,
}

impl Node {
    fn new(name: &str, rollout: &str) -> Result<Self> {
        let (scene, mut server, client) = Scene::served(name, &[80])?;
        server.udp_bind(any(80))?.handle()?;
        let agent = scene
            .agent(&Policy::new("policy"))?
            .config("node", json!(name))
            .mode("observe")
            .policy("rollout.yaml", rollout)?
            .start()?;
        Ok(Self {
            server,
            client,
            agent,
            _scene: scene,
        })
    }

    /// What comes of a connection and a datagram over each IP version.
    fn attempts(&mut self) -> Result<[String; 4]> {
        let (server, client) = (&self.server, &mut self.client);
        Ok([
            client.tcp(server.v4(80))?,
            client.tcp(server.v6(80))?,
            client.udp(server.v4(80))?,
            client.udp(server.v6(80))?,
        ])
    }
}

/// Two agents with one rollout, of which the canary takes one node.
#[test]
fn a_canary_by_node_refuses_on_the_one_and_observes_on_the_other() -> Result<()> {
    let stages = json!([{
        "name": "client",
        "identities": [spiffe("client")],
        "canary": { "percent": 30, "by": "node" },
    }]);
    let rollout = rollout(Some("client"), &stages);
    // A hash of the rollout's name and the node's chooses: it has 2 for the first, of 100, and 69 for the other.
    let mut nodes = [
        (Node::new("node-2", &rollout)?, true),
        (Node::new("node-1", &rollout)?, false),
    ];
    for (node, taken) in &mut nodes {
        let outcome = if *taken { "EPERM" } else { "ok" };
        assert_eq!(node.attempts()?, [outcome; 4]);
        let stage = node.agent.get("/v1/rollout")?["rollout"]["stages"][0].clone();
        assert_eq!(
            (&stage["by"], &stage["selected"], &stage["taken"]),
            (&json!("node"), &json!(1), &json!(usize::from(*taken)))
        );
        let own = |record: &Value| record["observer"] == "source";
        let records = node.agent.records("decision=DENY", 4, own)?;
        for record in &records {
            assert_eq!(record["enforced"], *taken, "{record}");
        }
        let protocols = records.iter().map(|record| &record["protocol"]);
        assert_eq!(protocols.filter(|protocol| **protocol == "UDP").count(), 2);
    }
    Ok(())
}
