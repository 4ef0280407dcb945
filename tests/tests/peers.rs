// SPDX-License-Identifier: Apache-2.0
//! Two agents as two nodes: each has a tree of its own, workloads in namespaces on one network, and the certificate of its node.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use serde_json::{Value, json};
use zt_common::abi::ResidentKey;
use zt_common::{ABI_VERSION, names};
use zt_tests::agent::{DEADLINE, binary};
use zt_tests::agent_files::Workload;
use zt_tests::nodes::{NODES, Nodes};
use zt_tests::{Agent, Cgroup, Host, KubeApi, Party, Policy, Scene, TCP, spiffe, wait_for};

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
        self.agent_with(index, policy, identities, "auto")
    }

    /// The agent of a node to which Kubernetes says who lives on the other one, too.
    fn agent_beside(&self, index: usize, policy: &Policy, api: &KubeApi) -> Result<Agent> {
        let kubeconfig = api.kubeconfig(self.scene.sandbox().directory())?;
        let party = &self.parties[index];
        let workload = Workload::new(&party.id, &party.cgroup).at(party.host.addresses());
        let agent = self
            .nodes
            .agent(self.scene.sandbox(), index, "*", &["kubernetes"])?;
        agent
            .workload(workload)
            .policy("policy.yaml", &policy.text())?
            .env("ZT_KUBECONFIG", &kubeconfig.display().to_string())
            .start()
    }

    /// The same with another `handshake`.
    fn agent_with(&self, index: usize, policy: &Policy, identities: &str, handshake: &str) -> Result<Agent> {
        let party = &self.parties[index];
        let workload = Workload::new(&party.id, &party.cgroup).at(party.host.addresses());
        let agent = self.nodes.agent(self.scene.sandbox(), index, identities, &[])?;
        agent
            .config("handshake", json!(handshake))
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

/// A workload whose name nobody had before comes up on the other node: it is known by that name, with the rules that patterns come to.
#[test]
fn a_name_that_is_new_on_another_node_has_its_rules() -> Result<()> {
    let scene = Scene::new("peers-new")?;
    let sandbox = scene.sandbox();
    let tree = sandbox.cgroup("two")?;
    let mut chat = scene.start("chat", &sandbox.cgroup("one/chat")?, &scene.host("chat")?)?;
    let host = scene.host("late")?;
    let of = |host: &Host| host.addresses().map(|address| address.to_string()).into();
    let nodes = Nodes::new(sandbox, [of(&chat.host), of(&host)])?;
    let policy = Policy::new("peers").allow("chat", &spiffe("*"), TCP, "8080");
    let agent = |index: usize, workload: Workload| -> Result<Agent> {
        let agent = nodes.agent(sandbox, index, "*", &[])?;
        agent
            .workload(workload)
            .policy("policy.yaml", &policy.text())?
            .start()
    };
    let one = agent(0, Workload::new(&chat.id, &chat.cgroup).at(chat.host.addresses()))?;
    let absent = Cgroup::absent(&tree, "late");
    let _two = agent(1, Workload::new(&spiffe("late"), &absent).at(host.addresses()))?;
    until(&one, "two has said all", |peer| peer["state"] == "connected")?;
    let [to, shut] = [8080, 8081].map(|port| SocketAddr::from((host.ipv4, port)));
    assert_eq!(chat.talk(to)?, "EPERM", "nobody has that name yet");

    let mut late = scene.start("late", &sandbox.cgroup("two/late")?, &host)?;
    for at in [to, shut] {
        late.serve(at)?.local()?;
    }
    wait_for("what has just come up to be reached", DEADLINE, || {
        Ok((chat.talk(to)? == "ok").then_some(()))
    })?;
    assert_eq!(chat.talk(shut)?, "EPERM", "of another port no rule speaks");
    Ok(())
}

/// How many are known to live on other nodes, by the kernel's map of the first one.
fn residents(scene: &Scene) -> Result<usize> {
    let maps = scene
        .sandbox()
        .pins()?
        .join(NODES[0])
        .join(format!("v{ABI_VERSION}/maps"));
    let map = MapData::from_pin(maps.join(names::RESIDENTS)).context("no zt_residents")?;
    let map: HashMap<_, ResidentKey, u64> = HashMap::try_from(Map::HashMap(map))?;
    Ok(map.keys().count())
}

/// Starts an agent again with something else about its `identity.peers`.
fn restart_with(agent: &mut Agent, change: impl FnOnce(&mut Value)) -> Result<()> {
    let config = fs::read_to_string(agent.files.config())?;
    let mut config: Value = serde_json::from_str(&config)?;
    change(&mut config["identity"]["peers"]);
    agent.restart_with("identity", config["identity"].take())
}

/// Whom a node may not name any more proves nothing from there as soon as the next agent has begun, although the node cannot be heard
/// and is believed about all else.
#[test]
fn who_may_not_be_named_any_more_is_nobody_from_the_start() -> Result<()> {
    let world = World::new("peers-right")?;
    let policy = Policy::new("peers").allow("chat", "iam", TCP, "8080");
    let (mut one, mut two) = (world.agent(0, &policy, "*")?, world.agent(1, &policy, "*")?);
    restart_with(&mut one, |peers| peers["hold"] = json!("60m"))?;
    until(&one, "two is known", is_known)?;
    wait_for("who lives there to be in the map", DEADLINE, || {
        Ok((residents(&world.scene)? > 0).then_some(()))
    })?;
    let kept = one.files.config().with_file_name("peers.json");
    wait_for("it to be kept for the next agent", DEADLINE, || {
        let text = fs::read_to_string(&kept).unwrap_or_default();
        Ok(text.contains("/test/iam").then_some(()))
    })?;
    two.kill()?;
    restart_with(&mut one, |peers| {
        for node in peers["nodes"].as_array_mut().into_iter().flatten() {
            node["identities"] = json!("spiffe://hanzo.ai/hanzo-k8s/test/nobody");
        }
    })?;
    until(&one, "two is held", |peer| peer["state"] == "stale")?;
    assert_eq!(residents(&world.scene)?, 0);
    Ok(())
}

/// A pod of the namespace and the service account that the party's name says.
fn pod(party: &Party, node: &str) -> Result<Value> {
    let mut path = party.id.rsplit('/');
    let (account, namespace) = path.next().zip(path.next()).context("a name of a pod")?;
    let addresses: Vec<Value> = party.host.addresses().map(|ip| json!({ "ip": ip })).into();
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": namespace, "name": account },
        "spec": { "nodeName": node, "serviceAccountName": account },
        "status": {
            "phase": "Running", "podIP": addresses[0]["ip"], "podIPs": addresses, "hostIP": "192.0.2.1",
        },
    }))
}

/// An agent dies, and is not there for longer than it is believed. Its kernel goes on with proofs that the other node cannot believe
/// any more, and goes on asking for those of the other node.
#[test]
fn who_lives_on_a_node_whose_agent_is_dead_is_who_kubernetes_says() -> Result<()> {
    let mut world = World::new("peers-dead")?;
    let policy = Policy::new("peers")
        .allow("chat", "iam", TCP, "8080")
        .allow("iam", "chat", TCP, "8081");
    let api = KubeApi::start()?;
    for (party, node) in world.parties.iter().zip(NODES) {
        api.put("/api/v1/pods", pod(party, node)?);
    }
    let one = world.agent_beside(0, &policy, &api)?;
    let mut two = world.agent_beside(1, &policy, &api)?;
    for agent in [&one, &two] {
        until(agent, "the other is known, with a key", is_known)?;
    }
    let [chat, iam] = &mut world.parties;
    let (to_iam, to_chat) = (iam.v4(8080), chat.v4(8081));
    iam.serve(to_iam)?.local()?;
    chat.serve(to_chat)?.local()?;
    let mut both = |what: &str| -> Result<()> {
        wait_for(what, DEADLINE, || {
            let talks = [chat.talk(to_iam)?, iam.talk(to_chat)?];
            Ok((talks == ["ok", "ok"]).then_some(()))
        })
    };
    both("the two to reach each other")?;
    let newest = || -> Result<Option<String>> { Ok(proofs(&one)?.into_iter().next()) };
    wait_for("a record with its proof", DEADLINE, || {
        Ok(newest()?.filter(|proof| !proof.starts_with("none")).map(drop))
    })?;

    two.kill()?;
    until(&one, "two is unknown", |peer| peer["state"] == "unknown")?;
    // Now by what Kubernetes says; and whoever is not allowed is refused as ever.
    wait_for("what names it now", DEADLINE, || {
        both("the two to reach each other beside a dead agent")?;
        Ok(newest()?.filter(|proof| proof.starts_with("none")).map(drop))
    })?;
    both("the two to go on reaching each other")?;

    two.restart()?;
    until(&one, "two is known again", is_known)?;
    wait_for("a record with its proof again", DEADLINE, || {
        both("the two to reach each other again")?;
        Ok(newest()?.filter(|proof| !proof.starts_with("none")).map(drop))
    })?;
    let [chat, iam] = &mut world.parties;
    assert_eq!([chat.talk(iam.v4(8083))?, iam.talk(chat.v4(8083))?], ["EPERM"; 2]);
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
    let status = until(&one, "two names whom it may not", |peer| {
        peer["state"] == "connected" && peer["silent"].as_u64() > Some(0)
    })?;
    assert_eq!(status["addresses"], 0, "{status}");
    let named = status["some_silent"][0]["spiffe"].as_str();
    assert!(named.is_some_and(|named| named.contains("/test/iam")), "{status}");
    let [chat, iam] = &mut world.parties;
    let to = iam.v4(8080);
    iam.serve(to)?.local()?;
    assert_eq!(chat.talk(to)?, "EPERM");
    Ok(())
}

/// One node has handshakes bear identities and the other does not yet, as while a cluster is upgraded: workloads reach each other in both
/// directions, by name, and prove who they are as soon as both nodes do.
#[test]
fn nodes_that_prove_and_nodes_that_do_not_reach_each_other() -> Result<()> {
    const ALL: &str = "spiffe://hanzo.ai/hanzo-k8s/test/*";
    let mut world = World::new("peers-mixed")?;
    let policy = Policy::new("peers")
        .allow("chat", "iam", TCP, "8080")
        .allow("iam", "chat", TCP, "8081");
    let one = world.agent(0, &policy, ALL)?;
    let mut two = world.agent_with(1, &policy, ALL, "off")?;
    for agent in [&one, &two] {
        until(agent, "the other is known", |peer| {
            peer["state"] == "connected" && peer["addresses"].as_u64() > Some(0)
        })?;
    }
    let [chat, iam] = &mut world.parties;
    let (to_iam, to_chat) = (iam.v4(8080), chat.v4(8081));
    for to in [to_iam, iam.v4(8082)] {
        iam.serve(to)?.local()?;
    }
    chat.serve(to_chat)?.local()?;
    // What the status says of the other node is in the kernel's map a moment later.
    let mut both = |what: &str| -> Result<()> {
        wait_for(what, DEADLINE, || {
            let talks = [chat.talk(to_iam)?, iam.talk(to_chat)?];
            Ok((talks == ["ok", "ok"]).then_some(()))
        })
    };
    both("the two to reach each other")?;
    for agent in [&one, &two] {
        let proofs = wait_for("records of both ends", DEADLINE, || {
            Ok(Some(proofs(agent)?).filter(|proofs| proofs.len() >= 2))
        })?;
        assert!(proofs.iter().all(|proof| proof.starts_with("none")), "{proofs:?}");
    }
    two.restart_with("handshake", json!("auto"))?;
    for agent in [&one, &two] {
        until(agent, "the other is known, with a key", is_known)?;
    }
    for agent in [&one, &two] {
        wait_for("a record with its proof", DEADLINE, || {
            both("the two to reach each other again")?;
            Ok(proofs(agent)?.iter().any(|proof| proof == "mutual").then_some(()))
        })?;
    }
    Ok(())
}
