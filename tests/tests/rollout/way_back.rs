// SPDX-License-Identifier: Apache-2.0
//! The way back stays open: for those who have lost their names, and for the agent to whom it comes over the network.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use zt_tests::agent::DEADLINE;
use zt_tests::agent_files::Workload;
use zt_tests::{Agent, Engine, Policy, Scene, spiffe, wait_for};

use super::{any, cli, json_of, rollout, stage};

fn nameless(agent: &Agent, wanted: u64) -> Result<()> {
    wait_for("as many as enforce without a name", DEADLINE, || {
        let workloads = agent.get("/v1/rollout")?["rollout"]["workloads"].clone();
        Ok((workloads["enforced_without_name"] == wanted).then_some(()))
    })
}

/// Also where the agent that knew them is not there any more.
#[test]
fn who_has_lost_his_name_goes_back_with_the_stage_that_had_him_enforce() -> Result<()> {
    let mut scene = Scene::new("lost-names")?;
    let (mut server, mut chat) = (scene.workload("server")?, scene.workload("chat")?);
    let mut iam = scene.workload("iam")?;
    scene.declare("iam", |workload| workload.mode("enforce"))?;
    server.serve(any(80))?.local()?;
    let mut agent = scene
        .agent(&Policy::new("policy"))?
        .mode("observe")
        .policy(
            "rollout.yaml",
            &rollout(Some("chat"), &json!([stage("chat", "chat")])),
        )?
        .start()?;
    assert_eq!(chat.tcp(server.v4(80))?, "EPERM");
    let all = scene.workloads();
    agent.files.write_workloads(&all[..1])?;
    nameless(&agent, 2)?;
    // Who loses his name is no freer for it.
    assert_eq!(
        [chat.tcp(server.v4(80))?, iam.tcp(server.v4(80))?],
        ["EPERM", "EPERM"]
    );
    wait_for("the names to be kept", DEADLINE, || {
        let kept = agent.files.workloads().with_file_name("enforced.json");
        Ok(std::fs::read_to_string(kept)
            .ok()
            .filter(|text| text.contains("chat")))
    })?;
    agent.kill()?;
    agent.restart()?;
    assert_eq!(
        [chat.tcp(server.v4(80))?, iam.tcp(server.v4(80))?],
        ["EPERM", "EPERM"]
    );
    json_of(&agent, &["rollback"])?;
    assert_eq!(
        [chat.tcp(server.v4(80))?, iam.tcp(server.v4(80))?],
        ["ok", "EPERM"],
        "the one enforced for the stage, the other by its own declaration"
    );
    nameless(&agent, 1)?;
    Ok(())
}

/// The agent is a workload that no policy names, and follows an engine that it must reach anew.
#[test]
fn an_agent_that_a_rollout_would_refuse_takes_the_way_back() -> Result<()> {
    let mut scene = Scene::new("own-way")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    server.serve(any(80))?.local()?;
    let own = scene.sandbox().cgroup("own")?;
    scene.add("own", Workload::new(&spiffe("own"), &own));
    let policies = scene.sandbox().directory().join("policies");
    let mut engine = Engine::new(scene.sandbox(), "engine", &policies)?;
    // It goes there from where it is put when it was started.
    let enter = format!(
        "until grep -q '/agent$' /proc/$$/cgroup; do sleep 0.01; done; echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"",
        own.path().display()
    );
    let all = json!([{ "name": "all", "requirePolicy": true }]);
    let agent = scene
        .agent(&Policy::new("policy"))?
        .mode("observe")
        .policy("rollout.yaml", &rollout(None, &all))?
        .config("policySource", json!("engine"))
        .config("policyPath", json!("/nonexistent"))
        .config("engineUrl", json!(engine.url()))
        .through(["/bin/sh", "-c", &enter].map(str::to_owned).to_vec());
    engine.start()?;
    let agent = agent.start()?;
    let reached = |wanted: Value| {
        wait_for("the node to be at that stage", DEADLINE, || {
            let rollout = agent.get("/v1/rollout")?["rollout"].clone();
            Ok((rollout["in_force"] == wanted).then_some(()))
        })
    };
    reached(Value::Null)?;
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    agent
        .files
        .write_policy("rollout.yaml", &rollout(Some("all"), &all))?;
    reached(json!("all"))?;
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");
    let (inside, pid) = (own.processes()?, agent.pid());
    ensure!(
        pid.is_some_and(|pid| inside.contains(&pid)),
        "the agent, {pid:?}, is not among {inside:?}"
    );
    // Whatever it has open is gone.
    engine.kill()?;
    engine.start()?;
    agent.files.write_policy("rollout.yaml", &rollout(None, &all))?;
    reached(Value::Null)?;
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    Ok(())
}

/// No agent begins with documents that are not valid; what went back beside them stays in the kernel.
#[test]
fn what_went_back_beside_a_bad_document_stays_back_without_an_agent() -> Result<()> {
    let (scene, server, mut client) = Scene::served("back-beside", &[80])?;
    let mut agent = scene
        .agent(&Policy::new("policy"))?
        .mode("observe")
        .policy(
            "rollout.yaml",
            &rollout(Some("client"), &json!([stage("client", "client")])),
        )?
        .start()?;
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");
    agent.files.write_policy("bad.yaml", "a: [")?;
    agent.wait_policies("the bad one to be told of", |policies| {
        policies["errors"] != json!([])
    })?;
    json_of(&agent, &["rollback"])?;
    let status = String::from_utf8(cli(&agent, &["status"])?.stdout)?;
    ensure!(
        status.contains("what is in force is not all that they say") && status.contains("bad.yaml:"),
        "{status}"
    );
    let open = client.connect(server.v4(80))?.handle()?;
    agent.kill()?;
    let failed = format!("{:#}", agent.restart().expect_err("a bad document"));
    ensure!(
        failed.contains("exit status: 64") && failed.contains("bad.yaml"),
        "{failed}"
    );
    assert_eq!(client.end(open, Duration::from_millis(100))?, "alive");
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    assert_eq!(agent.wait_exit()?.code(), Some(64));
    // Mended, it goes on from there.
    agent.files.remove_policy("bad.yaml")?;
    agent.restart()?;
    assert_eq!(client.end(open, Duration::from_millis(100))?, "alive");
    Ok(())
}
