// SPDX-License-Identifier: Apache-2.0
//! A cluster: three engines and two nodes with one `PostgreSQL`, all of them real processes.

#[path = "cluster/alone.rs"]
mod alone;
#[path = "cluster/balancer.rs"]
mod balancer;
#[path = "cluster/storm.rs"]
mod storm;
#[path = "cluster/upkeep.rs"]
mod upkeep;

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use zt_tests::postgres::Server;
use zt_tests::{Agent, Engine, Party, Policy, Scene, TCP, eventually, http};

use balancer::Balancer;

/// Longer than anything here takes on a busy machine.
const LATER: Duration = Duration::from_secs(120);

/// A node with a client and a server, that follows the engines behind the balancer.
struct Node {
    // The agent ends before the sandbox is swept up.
    agent: Agent,
    client: Party,
    server: Party,
    name: &'static str,
    scene: Scene,
}

impl Node {
    fn start(name: &'static str, engines: &Balancer, server: &Server) -> Result<Self> {
        let mut scene = Scene::new(name)?;
        let (mut target, client) = (scene.workload("server")?, scene.workload("client")?);
        for port in [80, 81] {
            target
                .serve(std::net::SocketAddr::from(([0, 0, 0, 0], port)))?
                .local()?;
        }
        let home = scene.sandbox().directory().to_path_buf();
        let audit = json!({
            "dsn": server.dsn("node"),
            "spool": home.join("spool.db"),
            "keys": home.join("keys"),
        });
        let agent = scene
            .agent(&Policy::new("unused"))?
            .config("node", json!(name))
            .config("policySource", json!("engine"))
            .config("policyPath", json!("/nonexistent"))
            .config("engineUrl", json!(engines.url()))
            .config("audit", audit)
            .start()?;
        Ok(Self {
            agent,
            client,
            server: target,
            name,
            scene,
        })
    }

    /// What connecting to the two ports comes to.
    fn reaches(&mut self) -> Result<[String; 2]> {
        Ok([
            self.client.tcp(self.server.v4(80))?,
            self.client.tcp(self.server.v4(81))?,
        ])
    }

    /// Waits until the node enforces this digest and knows that it is its engine's.
    fn has(&self, digest: &str) -> Result<()> {
        eventually(&format!("{} to converge", self.name), LATER, || {
            let policy = &self.agent.get("/v1/status")?["policy"];
            Ok(policy["digest"] == digest && policy["source"]["stale"] == false)
        })
    }
}

/// Three engines that share a directory and a server, and what nodes reach them by.
struct Engines {
    // They end before their sandbox is swept up.
    all: Vec<Engine>,
    balancer: Balancer,
    scene: Scene,
}

impl Engines {
    fn start(server: &Server) -> Result<Self> {
        // One of them makes the tables.
        server.sql("GRANT zt_audit_maintainer TO engine")?;
        let scene = Scene::new("engines")?;
        let policies = scene.sandbox().directory().join("policies");
        std::fs::create_dir_all(&policies)?;
        std::fs::write(policies.join("base.yaml"), base("80").text())?;
        let mut all = Vec::new();
        for name in ["engine-1", "engine-2", "engine-3"] {
            let engine = Engine::new(scene.sandbox(), name, &policies)?;
            all.push(engine.on_server(&server.dsn("engine"), 365));
        }
        for engine in &mut all {
            engine.launch()?;
        }
        for engine in &mut all {
            engine.wait_ready()?;
        }
        let balancer = Balancer::start(all.iter().map(Engine::api).collect())?;
        Ok(Self { all, balancer, scene })
    }

    /// Waits until each of them has this digest in force.
    fn have(&self, digest: &str) -> Result<()> {
        eventually("the engines to converge", LATER, || {
            let digests: Result<Vec<String>> = self.all.iter().map(Engine::digest).collect();
            Ok(digests?.iter().all(|found| found == digest))
        })
    }

    /// Puts a policy in force at one of them and returns the digest of all policies then.
    fn put(&self, engine: usize, policy: &Policy, name: &str) -> Result<String> {
        let changed = self.all[engine].put(name, &policy.text())?.success()?.json()?;
        Ok(changed["digest"].as_str().context("a digest")?.to_owned())
    }
}

fn base(port: &str) -> Policy {
    Policy::new("base").allow("client", "server", TCP, port)
}

/// What `/v1/status` of an engine tells of the nodes that it has heard: name, digest, in sync.
fn heard(engine: &Engine) -> Result<Vec<(String, String, bool)>> {
    let status = engine.get("/v1/status")?;
    let nodes = status["nodes"].as_array().context("a list")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = nodes.iter().map(|node| {
        let in_sync = node["in_sync"] == true;
        (text(&node["node"]), text(&node["digest"]), in_sync)
    });
    Ok(told.collect())
}

#[test]
fn two_nodes_follow_whichever_of_three_engines_is_there() -> Result<()> {
    let server = Server::start("fsync = off")?;
    let mut engines = Engines::start(&server)?;
    let mut nodes = [
        Node::start("node-a", &engines.balancer, &server)?,
        Node::start("node-b", &engines.balancer, &server)?,
    ];
    for node in &mut nodes {
        assert_eq!(node.reaches()?, ["ok", "EPERM"]);
    }

    // A change goes to any of them, and both nodes enforce it.
    for (engine, port, expected) in [
        (0, "81", ["EPERM", "ok"]),
        (1, "80", ["ok", "EPERM"]),
        (2, "80-81", ["ok", "ok"]),
    ] {
        let digest = engines.put(engine, &base(port), "base")?;
        engines.have(&digest)?;
        for node in &mut nodes {
            node.has(&digest)?;
            assert_eq!(node.reaches()?, expected, "{} after {engine}", node.name);
        }
    }

    // Engines come and go one after the other: there is always one that takes a change.
    for gone in 0..3 {
        engines.all[gone].kill()?;
        let port = if gone % 2 == 0 { "80" } else { "81" };
        let digest = engines.put((gone + 1) % 3, &base(port), "base")?;
        for node in &nodes {
            node.has(&digest)?;
        }
        engines.all[gone].start()?;
        engines.have(&digest)?;
    }

    // Each node's report is heard by the engine that it reached, and says what is true.
    let digest = engines.put(0, &base("80"), "base")?;
    engines.have(&digest)?;
    eventually("both nodes to be known to be in sync", LATER, || {
        let mut in_sync = std::collections::BTreeSet::new();
        for engine in &engines.all {
            for (node, has, same) in heard(engine)? {
                anyhow::ensure!(
                    ["node-a", "node-b"].contains(&&*node),
                    "{node} is no node of ours"
                );
                anyhow::ensure!(same == (has == digest), "{node} has {has}, not {digest}");
                in_sync.extend(same.then_some(node));
            }
        }
        Ok(in_sync.len() == 2)
    })?;

    // Without any engine the nodes go on, and one that starts does so with its copy.
    for engine in &mut engines.all {
        engine.kill()?;
    }
    nodes[0].agent.kill()?;
    nodes[0].agent.restart()?;
    for node in &mut nodes {
        eventually("the node to say that it is stale", LATER, || {
            let policy = &node.agent.get("/v1/status")?["policy"];
            Ok(policy["digest"] == digest.as_str() && policy["source"]["stale"] == true)
        })?;
        assert_eq!(node.reaches()?, ["ok", "EPERM"]);
    }
    // What changed meanwhile is taken up when one of them is back.
    let policies = engines.scene.sandbox().directory().join("policies/base.yaml");
    std::fs::write(policies, base("81").text())?;
    engines.all[1].start()?;
    let digest = engines.all[1].digest()?;
    for node in &mut nodes {
        node.has(&digest)?;
        assert_eq!(node.reaches()?, ["EPERM", "ok"]);
    }
    Ok(())
}

/// Asks an engine for a decision about a port.
fn ask(engine: std::net::SocketAddr, port: u16) -> Result<()> {
    let question = json!({
        "source": { "spiffe_id": zt_tests::spiffe("client") },
        "destination": { "spiffe_id": zt_tests::spiffe("server"), "port": port, "protocol": "TCP" },
    });
    http::post(engine, "/v1/evaluate", &question)?.success()?;
    Ok(())
}
