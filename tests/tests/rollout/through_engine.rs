// SPDX-License-Identifier: Apache-2.0
//! A rollout by way of a policy engine, and what it sees of a node that follows.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use zt_tests::agent::DEADLINE;
use zt_tests::{Agent, AgentBuilder, Engine, Party, Policy, Scene, TCP, http, spiffe, wait_for};

use super::stops::denied;
use super::{any, cli_at, moves, rollout, stage};

/// What `zt-agent rollout …` of the engine prints, where it does what it is to do.
fn told(engine: &Engine, arguments: &[&str]) -> Result<Value> {
    let output = cli_at(&engine.url(), &[arguments, &["-o", "json"]].concat())?;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Why it does not.
fn refusal(engine: &Engine, arguments: &[&str]) -> Result<String> {
    let output = cli_at(&engine.url(), arguments)?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

/// Waits until the engine says of the node that it is so far, with this stage in force.
fn wait_node(engine: &Engine, state: &str, in_force: Option<&str>) -> Result<Value> {
    wait_for(&format!("the node to be {state}"), DEADLINE, || {
        let node = engine.get("/v1/rollout")?["nodes"][0].clone();
        let is_there = node["state"] == state && node["in_force"].as_str() == in_force;
        Ok(Some(node).filter(|_| is_there))
    })
}

/// An agent that has its policies from the engine.
fn following(agent: AgentBuilder, engine: &Engine) -> AgentBuilder {
    agent
        .config("policySource", json!("engine"))
        .config("policyPath", json!("/nonexistent"))
        .config("engineUrl", json!(engine.url()))
}

#[test]
fn a_rollout_goes_on_and_back_through_an_engine_that_hears_where_a_node_stopped() -> Result<()> {
    let mut scene = Scene::new("through-engine")?;
    let (mut server, mut chat) = (scene.workload("server")?, scene.workload("chat")?);
    let mut iam = scene.workload("iam")?;
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    let policies = scene.sandbox().directory().join("policies");
    let mut engine = Engine::new(scene.sandbox(), "engine", &policies)?;
    let limit = json!({ "perMinute": 4, "action": "rollback" });
    let stages = json!([
        { "name": "chat", "identities": [spiffe("chat")], "onDenials": limit },
        // No policy names it: the engine has it from the node.
        stage("iam", "iam"),
        stage("typo", "cath"),
    ]);
    let agent = scene
        .agent(&Policy::new("policy").allow("chat", "server", TCP, "80"))?
        .mode("observe")
        .policy("rollout.yaml", &rollout(None, &stages))?;
    engine.start()?;
    let agent = following(agent, &engine).start()?;
    let node = wait_node(&engine, "in_force", None)?;
    assert_eq!(node["node"], "test-node");
    assert_eq!(chat.tcp(server.v4(81))?, "ok", "nobody enforces yet");

    assert_eq!(told(&engine, &["advance"])?["to"], "chat");
    wait_node(&engine, "in_force", Some("chat"))?;
    told(&engine, &["status", "--fail"])?;
    assert_eq!(iam.tcp(server.v4(81))?, "ok", "it observes");

    // The node goes back by itself, and who asks the engine sees where and why.
    denied(&mut chat, &server, 81..=84)?;
    assert_eq!(chat.tcp(server.v4(85))?, "EPERM");
    let node = wait_node(&engine, "stopped", None)?;
    let stopped = &node["stopped"];
    assert_eq!(
        (&stopped["stage"], &stopped["action"], &stopped["denials"]),
        (&json!("chat"), &json!("rollback"), &json!(5))
    );
    assert_eq!(chat.tcp(server.v4(81))?, "ok", "it observes again");
    let status = cli_at(&engine.url(), &["status", "--fail"])?;
    let shown = String::from_utf8(status.stdout)?;
    ensure!(
        status.status.code() == Some(1)
            && shown.contains("1: 1 stopped (rollback)")
            && shown.contains("test-node")
            && shown.contains("5 different connections"),
        "{shown}"
    );
    let (before, written) = (engine.digest()?, policies.join("rollout.yaml"));
    let text = std::fs::read_to_string(&written)?;
    for arguments in [&["advance"][..], &["advance", "--dry-run"]] {
        let error = refusal(&engine, arguments)?;
        ensure!(
            error.contains("test-node: at `chat` (rollback), for 5 different connections"),
            "{error}"
        );
    }
    assert_eq!(
        (engine.digest()?, std::fs::read_to_string(&written)?),
        (before, text)
    );

    // Behind the stage and on is another try.
    assert_eq!(told(&engine, &["rollback"])?["to"], Value::Null);
    wait_node(&engine, "in_force", None)?;
    told(&engine, &["advance"])?;
    wait_node(&engine, "in_force", Some("chat"))?;
    assert_eq!(chat.tcp(server.v4(81))?, "EPERM");
    assert_eq!(told(&engine, &["advance"])?["selects_nobody_known"], json!([]));
    wait_node(&engine, "in_force", Some("iam"))?;
    assert_eq!(iam.tcp(server.v4(81))?, "EPERM");

    // Nobody is called that, here or there.
    let error = refusal(&engine, &["advance"])?;
    ensure!(error.contains("stage `typo` selects nobody"), "{error}");
    assert_eq!(agent.get("/v1/rollout")?["rollout"]["stage"], "iam");
    told(&engine, &["rollback", "--all"])?;
    wait_node(&engine, "in_force", None)?;
    assert_eq!([chat.tcp(server.v4(81))?, iam.tcp(server.v4(81))?], ["ok", "ok"]);
    Ok(())
}

/// A node with a server that nobody may reach, a client whom the rollout has enforce, and another one whom it has observe.
struct Node {
    scene: Scene,
    server: Party,
    client: Party,
    other: Party,
}

impl Node {
    fn new(label: &str) -> Result<Self> {
        let (mut scene, server, client) = Scene::served(label, &[80])?;
        let other = scene.workload("other")?;
        Ok(Self {
            scene,
            server,
            client,
            other,
        })
    }

    /// What comes of a connection of the client, and of the other one.
    fn attempts(&mut self) -> Result<[String; 2]> {
        let to = self.server.v4(80);
        Ok([self.client.tcp(to)?, self.other.tcp(to)?])
    }
}

/// Waits until a node is where the rollout has it.
fn wait_in_force(agent: &Agent, stage: &Value) -> Result<()> {
    wait_for(&format!("{stage} to be in force"), DEADLINE, || {
        let rollout = agent.get("/v1/rollout")?["rollout"].clone();
        Ok((rollout["in_force"] == *stage).then_some(()))
    })
}

/// Fails where one that nobody has any more goes on holding on a node that follows, or leaves it in another mode than is configured.
#[test]
fn every_node_goes_to_its_configuration_when_the_rollout_is_deleted_at_the_engine() -> Result<()> {
    let mut nodes = [Node::new("deleted-1")?, Node::new("deleted-2")?];
    let sandbox = nodes[0].scene.sandbox();
    let policies = sandbox.directory().join("policies");
    let mut engine = Engine::new(sandbox, "engine", &policies)?;
    let mut document: Value =
        serde_json::from_str(&rollout(Some("client"), &json!([stage("client", "client")])))?;
    document["spec"]["defaultMode"] = json!("observe");
    let mut agents = Vec::new();
    for (node, mode) in nodes.iter().zip(["observe", "enforce"]) {
        let agent = node.scene.agent(&Policy::new("policy"))?.mode(mode);
        agents.push(agent.config("node", json!(format!("{mode}-node"))));
    }
    // The first one's directory is the engine's.
    std::fs::write(policies.join("rollout.yaml"), document.to_string())?;
    engine.start()?;
    let agents: Vec<Agent> = agents
        .into_iter()
        .map(|agent| following(agent, &engine).start())
        .collect::<Result<_>>()?;
    for (node, agent) in nodes.iter_mut().zip(&agents) {
        wait_in_force(agent, &json!("client"))?;
        assert_eq!(node.attempts()?, ["EPERM", "ok"], "as the rollout has them");
    }

    http::request(engine.api(), "DELETE", "/v1/policies/to-enforcing", None)?.success()?;
    // Whom each node has change its mode: the client, or the server and the other one.
    let wanted = [(["ok", "ok"], [0, 1]), (["EPERM", "EPERM"], [2, 0])];
    for ((node, agent), (outcomes, counts)) in nodes.iter_mut().zip(&agents).zip(wanted) {
        wait_in_force(agent, &Value::Null)?;
        assert_eq!(agent.get("/v1/rollout")?["rollout"], Value::Null);
        assert_eq!(node.attempts()?, outcomes, "as it is configured");
        let moved = wait_for("the move to be recorded", DEADLINE, || {
            let last = moves(agent)?.pop();
            Ok(last.filter(|last| last["to"].is_null()))
        })?;
        assert_eq!(
            (&moved["from"], &moved["cause"]),
            (&json!("client"), &json!("document"))
        );
        assert_eq!(
            [&moved["to_enforce"], &moved["to_observe"]],
            [&json!(counts[0]), &json!(counts[1])]
        );
    }
    Ok(())
}
