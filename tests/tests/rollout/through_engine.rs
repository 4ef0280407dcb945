// SPDX-License-Identifier: Apache-2.0
//! A rollout by way of a policy engine, and what it sees of a node that follows.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use zt_tests::agent::DEADLINE;
use zt_tests::{Engine, Policy, Scene, TCP, spiffe, wait_for};

use super::stops::denied;
use super::{any, cli_at, rollout, stage};

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
        .policy("rollout.yaml", &rollout(None, &stages))?
        .config("policySource", json!("engine"))
        .config("policyPath", json!("/nonexistent"))
        .config("engineUrl", json!(engine.url()));
    engine.start()?;
    let agent = agent.start()?;
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
