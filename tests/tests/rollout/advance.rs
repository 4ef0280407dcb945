// SPDX-License-Identifier: Apache-2.0
//! What `rollout advance` looks at before it goes on.

use anyhow::Result;
use serde_json::{Value, json};
use zt_tests::{Agent, Policy, Scene, spiffe};

use super::{any, cli, error_of, json_of, rollout, stage};

fn stages() -> Value {
    json!([
        stage("iam", "iam"),
        {
            "name": "chat",
            "identities": [spiffe("chat")],
            "onDenials": { "perMinute": 4, "action": "hold" },
        },
        // Nobody is called that.
        stage("typo", "cath"),
        stage("server", "server"),
    ])
}

fn in_force(agent: &Agent) -> Result<Value> {
    Ok(agent.get("/v1/rollout")?["rollout"]["in_force"].clone())
}

#[test]
fn a_limit_is_passed_over_by_force_alone_and_so_is_a_stage_without_anybody() -> Result<()> {
    let mut scene = Scene::new("advance")?;
    for name in ["iam", "chat", "server"] {
        scene.workload(name)?;
    }
    let agent = scene
        .agent(&Policy::new("policy"))?
        .mode("observe")
        .policy("rollout.yaml", &rollout(None, &stages()))?
        .start()?;
    for over in ["chat", "typo", "server"] {
        let error = error_of(&agent, &["advance", "--to", over], 2)?;
        assert!(
            error.contains("`chat` has a limit") && error.contains("--force"),
            "{error}"
        );
    }
    assert_eq!(in_force(&agent)?, Value::Null);
    // One stage on, it is no matter which has a limit.
    assert_eq!(json_of(&agent, &["advance"])?["selects_nobody_here"], json!([]));
    let change = json_of(&agent, &["advance", "--to", "chat"])?;
    assert_eq!(
        (&change["to"], &change["in_force"]),
        (&json!("chat"), &json!(true))
    );
    // Behind them there is a stage that is about nobody: neither it nor one after it is reached, and nothing is written for later.
    let file = agent.files.policies().join("rollout.yaml");
    let written = std::fs::read_to_string(&file)?;
    for arguments in [
        &["advance"][..],
        &["advance", "--dry-run"],
        &["advance", "--to", "server"],
        &["advance", "--to", "server", "--dry-run"],
    ] {
        let error = error_of(&agent, arguments, 1)?;
        assert!(
            error.contains("stage `typo` selects nobody, and nothing was changed")
                && error.contains(&spiffe("cath"))
                && error.contains("--force"),
            "{error}"
        );
    }
    assert_eq!(
        (std::fs::read_to_string(&file)?, in_force(&agent)?),
        (written, json!("chat"))
    );
    // Whoever wants it is told all the same.
    let change = json_of(&agent, &["advance", "--to", "server", "--dry-run", "--force"])?;
    assert_eq!(change["selects_nobody_here"], json!(["typo"]));
    let shown = String::from_utf8(cli(&agent, &["advance", "--force"])?.stdout)?;
    assert!(
        shown.contains("stage typo selects no workload of this node"),
        "{shown}"
    );
    assert_eq!(in_force(&agent)?, "typo");
    assert_eq!(json_of(&agent, &["advance"])?["to"], "server");
    json_of(&agent, &["rollback", "--all"])?;
    let change = json_of(&agent, &["advance", "--to", "server", "--force"])?;
    assert_eq!((&change["from"], &change["to"]), (&Value::Null, &json!("server")));
    assert_eq!(in_force(&agent)?, "server");
    Ok(())
}

#[test]
fn what_a_stage_refuses_of_the_traffic_so_far_is_said_before() -> Result<()> {
    let mut scene = Scene::new("would-refuse")?;
    let (mut server, mut chat) = (scene.workload("server")?, scene.workload("chat")?);
    let mut iam = scene.workload("iam")?;
    for port in 80..=84 {
        server.serve(any(port))?.local()?;
    }
    let policy = Policy::new("policy").allow("chat", "server", zt_tests::TCP, "80");
    let agent = scene
        .agent(&policy)?
        .mode("observe")
        .policy("rollout.yaml", &rollout(None, &stages()))?
        .start()?;
    let told = |arguments: &[&str]| -> Result<Value> {
        Ok(json_of(&agent, &[&["advance"], arguments].concat())?["would_refuse"].clone())
    };
    // Nothing is recorded: that it would refuse nothing is not said.
    assert_eq!(told(&["--dry-run"])?, Value::Null);
    for (port, times) in [(80, 5), (81, 1), (82, 3), (83, 4), (84, 2)] {
        for _ in 0..times {
            assert_eq!(chat.tcp(server.v4(port))?, "ok");
        }
    }
    assert_eq!(iam.tcp(server.v4(82))?, "ok");
    // Of whom the stage is about, not of others.
    let of_iam = told(&["--dry-run"])?;
    assert_eq!((&of_iam["flows"], &of_iam["connections"]), (&json!(1), &json!(1)));
    assert_eq!(of_iam["looked_at"], 16);
    assert_eq!(of_iam["edges"][0]["source"], spiffe("iam"));
    json_of(&agent, &["advance"])?;
    let of_chat = told(&["--dry-run"])?;
    assert_eq!(
        (&of_chat["flows"], &of_chat["connections"]),
        (&json!(4), &json!(10))
    );
    assert_eq!(of_chat["complete"], true);
    let edges = of_chat["edges"].as_array().into_iter().flatten();
    let edges: Vec<(u64, u64)> = edges
        .filter_map(|edge| Some((edge["port"].as_u64()?, edge["connections"].as_u64()?)))
        .collect();
    assert_eq!(edges, [(83, 4), (82, 3), (84, 2)]);
    let shown = String::from_utf8(cli(&agent, &["advance"])?.stdout)?;
    assert!(shown.contains("10 connections, 4 different"), "{shown}");
    // And that is what it does.
    for (port, outcome) in [
        (80, "ok"),
        (81, "EPERM"),
        (82, "EPERM"),
        (83, "EPERM"),
        (84, "EPERM"),
    ] {
        assert_eq!(chat.tcp(server.v4(port))?, outcome);
    }
    // Their other end newly enforces, which refuses nothing that is not refused already.
    let of_server = told(&["--dry-run", "--to", "server", "--force"])?;
    assert_eq!(of_server["flows"], 0, "{of_server}");
    Ok(())
}

#[test]
fn what_the_last_stage_alone_refuses_of_the_traffic_so_far_is_said_before() -> Result<()> {
    let mut scene = Scene::new("would-require")?;
    let (mut server, mut chat) = (scene.workload("server")?, scene.workload("chat")?);
    server.serve(any(80))?.local()?;
    // Everybody reaches the server, which enforces already, and no rule names who does.
    let policy = Policy::new("policy").allow("*", "server", zt_tests::TCP, "80");
    let stages = json!([stage("server", "server"), { "name": "all", "requirePolicy": true }]);
    let agent = scene
        .agent(&policy)?
        .mode("observe")
        .policy("rollout.yaml", &rollout(Some("server"), &stages))?
        .start()?;
    for _ in 0..3 {
        assert_eq!(chat.tcp(server.v4(80))?, "ok");
    }
    let refused = json_of(&agent, &["advance", "--dry-run"])?["would_refuse"].clone();
    assert_eq!(
        (
            &refused["flows"],
            &refused["connections"],
            &refused["recorded_by"]
        ),
        (&json!(1), &json!(3), &json!("this_node")),
        "{refused}"
    );
    assert_eq!(refused["edges"][0]["source"], spiffe("chat"));
    let replay = agent.get("/v1/replay")?;
    assert_eq!(
        (&replay["stage"], &replay["denied"][0]["rule"]),
        (&json!("all"), &json!("builtin/require-policy")),
        "{replay}"
    );
    let shown = String::from_utf8(cli(&agent, &["advance"])?.stdout)?;
    assert!(
        shown.contains("recorded by this node, and no other: 3 connections, 1 different"),
        "{shown}"
    );
    assert_eq!(chat.tcp(server.v4(80))?, "EPERM");
    Ok(())
}
