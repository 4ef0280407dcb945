// SPDX-License-Identifier: Apache-2.0
//! The doctor of a node that follows a policy engine: it asks the engine, also where no agent runs and none could start.

use std::fs;

use anyhow::Result;
use serde_json::json;
use zt_tests::agent::DEADLINE;
use zt_tests::pair::{pair, policy};
use zt_tests::{Engine, wait_for};

use super::Report;

#[test]
fn an_engine_that_does_not_answer_is_found_where_no_agent_can_start_for_that() -> Result<()> {
    let (scene, _server, _client) = pair("doctor-engine")?;
    let policies = scene.sandbox().directory().join("policies");
    let mut engine = Engine::new(scene.sandbox(), "engine", &policies)?;
    let agent = scene
        .agent(&policy())?
        .config("policySource", json!("engine"))
        .config("policyPath", json!("/nonexistent"))
        .config("engineUrl", json!(engine.url()));
    engine.start()?;
    let mut agent = agent.start()?;
    let report = Report::of(&agent, &[])?;
    report.says("policy.engine", "ok", "in force");
    report.says("policy.files", "not_applicable", "`policy.engine`");
    let copy = agent.files.audit().with_file_name("policy.json");
    wait_for("the policy to be kept", DEADLINE, || {
        Ok(copy.is_file().then_some(()))
    })?;

    agent.kill()?;
    Report::of(&agent, &[])?.says("policy.engine", "ok", "answers: revision");
    engine.kill()?;
    let report = Report::of(&agent, &[])?;
    report.says("policy.engine", "warning", "takes the last good policy");
    fs::remove_file(&copy)?;
    let report = Report::of(&agent, &[])?;
    report.says("policy.engine", "failed", "no agent can start");
    report.says("policy.engine", "failed", &engine.url());
    assert_eq!(report.code, Some(1));
    Ok(())
}
