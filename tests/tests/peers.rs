// SPDX-License-Identifier: Apache-2.0
//! Two agents as two nodes: each has a tree of its own, workloads in namespaces on one network, and the certificate of its node.

use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use serde_json::Value;
use zt_tests::agent::{DEADLINE, binary};
use zt_tests::agent_files::Workload;
use zt_tests::nodes::Nodes;
use zt_tests::{Agent, Party, Policy, Scene, TCP, wait_for};

struct World {
    scene: Scene,
    parties: [Party; 2],
    nodes: Nodes,
}

impl World {
    /// `chat` on node one, `iam` on node two.
    fn new(label: &str) -> Result<Self> {
        let scene = Scene::new(label)?;
        let start = |name: &str, node: &str| {
            let cgroup = scene.sandbox().cgroup(&format!("{node}/{name}"))?;
            scene.start(name, &cgroup, &scene.host(name)?)
        };
        let parties = [start("chat", "one")?, start("iam", "two")?];
        let of = |party: &Party| party.host.addresses().map(|address| address.to_string()).into();
        let nodes = Nodes::new(scene.sandbox(), [of(&parties[0]), of(&parties[1])])?;
        Ok(Self {
            scene,
            parties,
            nodes,
        })
    }

    /// The agent of a node, which may tell of identities that match.
    fn agent(&self, index: usize, policy: &Policy, identities: &str) -> Result<Agent> {
        let party = &self.parties[index];
        let workload = Workload::new(&party.id, &party.cgroup).at(party.host.addresses());
        let agent = self.nodes.agent(self.scene.sandbox(), index, identities, &[])?;
        agent
            .workload(workload)
            .policy("policy.yaml", &policy.text())?
            .start()
    }
}

/// What a command says that asks an agent.
fn ask(agent: &Agent, arguments: &[&str]) -> Result<Output> {
    let api = format!("unix://{}", agent.socket().display());
    let mut command = Command::new(binary()?);
    command.args(arguments).args(["--api", &api, "-o", "json"]);
    Ok(command.output()?)
}

/// What an agent says of the other node.
fn peer(agent: &Agent) -> Result<Value> {
    let output = ask(agent, &["status"])?;
    let status: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(status["peers"]["nodes"][0].clone())
}

/// What the records of allowed connections say of proof, the newest first.
fn proofs(agent: &Agent) -> Result<Vec<String>> {
    let output = ask(agent, &["audit", "query", "--decision", "allow"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let proofs = text.split("\"proof\":").skip(1);
    let proofs = proofs.map(|rest| rest.trim_start().trim_start_matches('"'));
    Ok(proofs
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        .collect())
}

fn until(agent: &Agent, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let found = wait_for(what, DEADLINE, || {
        Ok(Some(peer(agent)?).filter(|peer| holds(peer)))
    });
    found.with_context(|| format!("{:?}", peer(agent)))
}

fn is_known(peer: &Value) -> bool {
    peer["state"] == "connected" && peer["addresses"].as_u64() > Some(0) && peer["epoch"] != 0
}

/// A workload of one node reaches one of the other by its name, for as long as the other node is believed.
#[test]
fn a_workload_of_another_node_is_known_as_its_agent_says() -> Result<()> {
    let mut world = World::new("peers")?;
    let policy = Policy::new("peers").allow("chat", "iam", TCP, "8080");
    let start = |index| world.agent(index, &policy, "spiffe://hanzo.ai/hanzo-k8s/test/*");
    let (one, mut two) = (start(0)?, start(1)?);
    until(&one, "two is known", is_known)?;
    until(&two, "one is known", is_known)?;
    let [chat, iam] = &mut world.parties;
    let to = iam.v4(8080);
    iam.serve(to)?.local()?;
    assert_eq!(chat.talk(to)?, "ok");
    // Both ends have proven who they are.
    let is_proven = || Ok(proofs(&one)?.iter().any(|proof| proof == "mutual").then_some(()));
    wait_for("a record with its proof", DEADLINE, is_proven)
        .with_context(|| format!("{:?}", proofs(&one)))?;

    // What the agent of the other node no longer says is unknown after a while, and the kernel goes on by that.
    two.kill()?;
    until(&one, "two is unknown", |peer| peer["state"] == "unknown")?;
    assert_eq!(chat.talk(to)?, "EPERM");
    two.restart()?;
    until(&one, "two is known again", is_known)?;
    assert_eq!(chat.talk(to)?, "ok");
    Ok(())
}

/// Whoever names what it may not is not believed, and is named.
#[test]
fn a_node_that_may_not_say_so_names_nobody() -> Result<()> {
    let mut world = World::new("peers-lie")?;
    let policy = Policy::new("peers").allow("chat", "iam", TCP, "8080");
    let (one, _two) = (
        world.agent(0, &policy, "spiffe://hanzo.ai/hanzo-k8s/test/chat")?,
        world.agent(1, &policy, "spiffe://hanzo.ai/hanzo-k8s/test/*")?,
    );
    let status = until(&one, "two is refused", |peer| {
        peer["state"] == "connected" && peer["refused"].as_u64() > Some(0)
    })?;
    assert_eq!(status["addresses"], 0, "{status}");
    let refusal = status["refusal"].as_str().context("it is said")?;
    assert!(refusal.contains("/test/iam"), "{refusal}");
    let [chat, iam] = &mut world.parties;
    let to = iam.v4(8080);
    iam.serve(to)?.local()?;
    assert_eq!(chat.talk(to)?, "EPERM");
    Ok(())
}
