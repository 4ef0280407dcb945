// SPDX-License-Identifier: Apache-2.0
//! A node that follows a policy engine: it enforces what the engine says, and goes on when the engine is gone.

use std::net::{Ipv6Addr, SocketAddr};
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::json;
use zt_tests::agent::{Agent, DEADLINE, binary};
use zt_tests::wait::wait_for;
use zt_tests::{Engine, Party, Policy, Scene, TCP, http};

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

fn only(port: &str) -> Policy {
    Policy::new("only").allow("client", "server", TCP, port)
}

fn reaches(client: &mut Party, server: &Party) -> Result<[String; 2]> {
    Ok([client.tcp(server.v4(80))?, client.tcp(server.v6(81))?])
}

/// Waits until the node has what the engine has, and knows that.
fn converged(agent: &Agent, engine: &Engine) -> Result<()> {
    wait_for("the node to converge", DEADLINE, || {
        let wanted = engine.get("/v1/policies")?;
        let policy = &agent.get("/v1/status")?["policy"];
        let same = policy["digest"] == wanted["digest"] && policy["source"]["stale"] == false;
        Ok(same.then_some(()))
    })
}

fn is_stale(agent: &Agent) -> Result<()> {
    wait_for("the node to be stale", DEADLINE, || {
        let status = agent.get("/v1/status")?;
        Ok((status["policy"]["source"]["stale"] == true).then_some(()))
    })?;
    ensure!(agent.metrics()?.sum("zt_policy_source_stale", &[]) == 1);
    let ready = http::get(agent.health(), "/readyz")?;
    ensure!(
        ready.status == 200 && ready.body.contains("may be old"),
        "{}",
        ready.body
    );
    Ok(())
}

#[test]
fn a_node_enforces_what_its_engine_says_and_goes_on_without_it() -> Result<()> {
    let mut scene = Scene::new("follow")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    let (first, second) = (["ok", "EPERM"], ["EPERM", "ok"]);
    let policies = scene.sandbox().directory().join("policies");
    let mut engine = Engine::new(scene.sandbox(), "engine", &policies)?;
    // It writes the policy into the directory of the engine; the node itself looks at another.
    let agent = scene
        .agent(&only("80"))?
        .config("policySource", json!("engine"))
        .config("policyPath", json!("/nonexistent"))
        .config("engineUrl", json!(engine.url()));
    engine.start()?;
    let mut agent = agent.start()?;
    converged(&agent, &engine)?;
    assert_eq!(reaches(&mut client, &server)?, first);

    // What the engine commits, the node enforces; and the engine hears of it.
    agent.files.write_policy("policy.yaml", &only("81").text())?;
    let digest = wait_for("the engine to see the file", DEADLINE, || {
        let now = engine.get("/v1/policies")?;
        Ok((now["revision"] == 2).then(|| now["digest"].clone()))
    })?;
    converged(&agent, &engine)?;
    assert_eq!(reaches(&mut client, &server)?, second);
    wait_for("the report of the node", DEADLINE, || {
        let nodes = &engine.get("/v1/status")?["nodes"];
        let node = &nodes[0];
        Ok(
            (node["node"] == "test-node" && node["digest"] == digest && node["in_sync"] == true)
                .then_some(()),
        )
    })?;
    let printed = Command::new(binary()?)
        .env_clear()
        .args(["status", "--api", &engine.url()])
        .output()?;
    let printed = String::from_utf8(printed.stdout)?;
    ensure!(
        printed.contains("test-node") && printed.contains("IN SYNC"),
        "{printed}"
    );

    // A node that follows is no place to change policy.
    let refused = http::request(agent.api(), "PUT", "/v1/policies/only", Some(&only("80").text()))?;
    ensure!(
        refused.status == 409 && refused.body.contains("policy_from_engine"),
        "{}",
        refused.body
    );

    // The engine dies; then the agent dies, too, and comes back alone.
    engine.kill()?;
    is_stale(&agent)?;
    assert_eq!(reaches(&mut client, &server)?, second);
    agent.kill()?;
    assert_eq!(reaches(&mut client, &server)?, second);
    agent.restart()?;
    is_stale(&agent)?;
    assert_eq!(agent.get("/v1/policies")?["digest"], digest);
    assert_eq!(reaches(&mut client, &server)?, second);

    // What changed meanwhile comes with the engine.
    agent.files.write_policy("policy.yaml", &only("80").text())?;
    engine.start()?;
    converged(&agent, &engine)?;
    assert_eq!(reaches(&mut client, &server)?, first);
    Ok(())
}
