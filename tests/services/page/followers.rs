// SPDX-License-Identifier: Apache-2.0
//! The rollout at a policy engine: how far the nodes are that follow it.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_agent::policy::{Document, Settings, parse};
use zt_tests::{Engine, Policy, Sandbox, TCP, http};

use super::browser::Browser;
use super::node::{rollout, text_has};

/// What the first stage says to nodes.
fn definition() -> Result<String> {
    let document = Document {
        file: "rollout.yaml".to_owned(),
        text: rollout(),
    };
    let set = parse(&[document], &Settings::default()).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    Ok(set.rollout().context("a rollout")?.stages[0].digest())
}

fn report(engine: &Engine, node: &str, rollout: &Value) -> Result<()> {
    let body = json!({ "revision": 1, "digest": engine.digest()?, "rollout": rollout }).to_string();
    let told = http::request(engine.api(), "PUT", &format!("/v1/nodes/{node}"), Some(&body))?;
    ensure!(told.status == 204, "{}", told.body);
    Ok(())
}

#[test]
fn the_rollout_of_an_engine_shows_which_nodes_stopped_and_why() -> Result<()> {
    let sandbox = Sandbox::new("page-followers")?;
    let policies = sandbox.directory().join("policies");
    std::fs::create_dir_all(&policies)?;
    let policy = Policy::new("core").allow("client", "server", TCP, "80");
    std::fs::write(policies.join("core.yaml"), policy.text())?;
    std::fs::write(policies.join("rollout.yaml"), rollout())?;
    let mut engine = Engine::new(&sandbox, "engine", &policies)?;
    engine.start()?;
    let name = "to-enforcing";
    report(
        &engine,
        "worker-1",
        &json!({ "name": name, "stage": "first", "stopped": null }),
    )?;
    let browser = Browser::start(&sandbox, &[])?;
    browser.open(&format!("{}/#rollout", engine.url()))?;
    text_has(
        &browser,
        "the node",
        &[
            "Nodes that follow, 1: 1 in force.",
            "does not see the workloads of nodes",
        ],
    )?;
    let stopped = json!({
        "stage": "first", "definition": definition()?, "action": "rollback", "cause": "denials", "denials": 3,
        "per_minute": 2, "attempts": 3, "attempts_per_minute": null, "at": "2026-03-02T09:10:45Z",
    });
    report(
        &engine,
        "worker-2",
        &json!({ "name": name, "stage": null, "stopped": stopped }),
    )?;
    text_has(
        &browser,
        "the node that stopped",
        &[
            "1 in force, 1 stopped (rollback).",
            "worker-2",
            "for 3 different connections of those newly enforced",
        ],
    )?;
    let text = browser.run("return document.querySelector('main').textContent")?;
    let text = text.as_str().context("a text")?;
    for unwanted in ["worker-1", "null", "undefined", "TypeError"] {
        ensure!(!text.contains(unwanted), "`{unwanted}` in {text}");
    }
    browser.shot("rollout-followers")?;
    let log = browser.log()?;
    ensure!(log.is_empty(), "the browser's log: {log:#?}");
    Ok(())
}
