// SPDX-License-Identifier: Apache-2.0
//! A node stops by itself where those newly enforced are refused too much.

use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use zt_tests::agent::DEADLINE;
use zt_tests::{Agent, Party, Policy, Scene, TCP, spiffe, wait_for};

use super::{any, cli, error_of, json_of, moves, rollout, stage};

/// A rollout whose one stage has a limit.
fn limited(action: &str) -> Value {
    limited_by(&json!({ "perMinute": 4, "action": action }))
}

fn limited_by(limit: &Value) -> Value {
    json!([
        { "name": "chat", "identities": [spiffe("chat")], "onDenials": limit },
        stage("iam", "iam"),
    ])
}

pub(super) fn wait_stopped(agent: &Agent) -> Result<Value> {
    wait_for("the node to stop", DEADLINE, || {
        let rollout = agent.get("/v1/rollout")?["rollout"].clone();
        Ok(Some(rollout).filter(|rollout| !rollout["stopped"].is_null()))
    })
}

/// Each of these ports is refused, several times.
pub(super) fn denied(party: &mut Party, server: &Party, ports: RangeInclusive<u16>) -> Result<()> {
    for port in ports {
        for _ in 0..3 {
            assert_eq!(party.tcp(server.v4(port))?, "EPERM");
        }
    }
    Ok(())
}

#[test]
fn a_node_goes_back_by_itself_and_stays_there_until_somebody_tries_again() -> Result<()> {
    let mut scene = Scene::new("goes-back")?;
    let (mut server, mut chat) = (scene.workload("server")?, scene.workload("chat")?);
    let mut iam = scene.workload("iam")?;
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    let policy = Policy::new("policy").allow("chat", "server", TCP, "80");
    let mut agent = scene
        .agent(&policy)?
        .mode("observe")
        .policy("rollout.yaml", &rollout(None, &limited("rollback")))?
        .start()?;
    json_of(&agent, &["advance"])?;
    // As many are borne, however often. Nobody else's count, and no attempt of a resolver or of `ping`.
    denied(&mut chat, &server, 81..=84)?;
    assert_eq!(iam.tcp(server.v4(85))?, "ECONNREFUSED");
    assert_eq!(chat.udp_connected(server.v4(80))?, "EPERM");
    let probed = format!("source={}&port=80&decision=DENY", chat.id);
    agent.wait_audit(&probed, DEADLINE, |found| !found.is_empty())?;
    assert_eq!(agent.get("/v1/rollout")?["rollout"]["stopped"], Value::Null);
    assert_eq!(chat.tcp(server.v4(85))?, "EPERM");
    let stopped = wait_stopped(&agent)?;
    assert_eq!(stopped["stage"], "chat");
    assert_eq!(stopped["in_force"], Value::Null);
    assert_eq!(stopped["stages"][0]["state"], "stopped");
    assert_eq!(stopped["stopped"]["denials"], 5);
    assert_eq!(stopped["stopped"]["action"], "rollback");
    let edges = stopped["stopped"]["edges"].as_array().context("edges")?;
    assert_eq!(edges.len(), 5, "{edges:?}");
    assert_eq!(edges[0]["source"], spiffe("chat"));
    assert_eq!(edges[0]["destination"], spiffe("server"));
    assert!(
        edges.iter().all(|edge| edge["times"] == 3 || edge["port"] == 85),
        "{edges:?}"
    );
    assert_eq!(chat.tcp(server.v4(81))?, "ok", "it observes again");
    let recorded = moves(&agent)?;
    let last = recorded.last().context("a record")?;
    assert_eq!((&last["cause"], &last["to"]), (&json!("denials"), &Value::Null));
    assert_eq!(last["to_observe"], 1);
    assert!(error_of(&agent, &["advance"], 1)?.contains("stopped at `chat`"));
    assert_eq!(cli(&agent, &["status", "--fail"])?.status.code(), Some(1));
    let shown = String::from_utf8(cli(&agent, &["status"])?.stdout)?;
    assert!(shown.contains("5 different connections"), "{shown}");
    let doctor = agent.command(&["doctor", "-o", "json"]).output()?;
    let doctor: Value = serde_json::from_slice(&doctor.stdout)?;
    let mut findings = doctor["findings"].as_array().context("findings")?.iter();
    let finding = findings.find(|finding| finding["check"] == "agent.rollout");
    let finding = finding.context("a finding")?;
    assert_eq!(finding["status"], "warning", "{finding}");
    assert!(
        finding["found"]
            .as_str()
            .is_some_and(|found| found.contains("stopped at chat")),
        "{finding}"
    );

    // A restart changes nothing, nor does a document that goes on.
    agent.kill()?;
    agent.restart()?;
    assert_eq!(chat.tcp(server.v4(81))?, "ok");
    json_of(&agent, &["advance", "--force"])?;
    for party in [&mut chat, &mut iam] {
        assert_eq!(party.tcp(server.v4(81))?, "ok");
    }

    // Back behind the stage and on: a second try.
    json_of(&agent, &["rollback", "--all"])?;
    assert_eq!(agent.get("/v1/rollout")?["rollout"]["stopped"], Value::Null);
    json_of(&agent, &["advance"])?;
    assert_eq!(chat.tcp(server.v4(81))?, "EPERM");
    Ok(())
}

#[test]
fn a_node_that_holds_keeps_what_it_has_and_goes_no_further() -> Result<()> {
    let mut scene = Scene::new("holds")?;
    let (mut server, mut chat) = (scene.workload("server")?, scene.workload("chat")?);
    let mut iam = scene.workload("iam")?;
    server.serve(any(81))?.local()?;
    let agent = scene
        .agent(&Policy::new("policy"))?
        .mode("observe")
        .policy("rollout.yaml", &rollout(Some("chat"), &limited("hold")))?
        .start()?;
    denied(&mut chat, &server, 81..=85)?;
    let stopped = wait_stopped(&agent)?;
    assert_eq!(
        (&stopped["in_force"], &stopped["stopped"]["action"]),
        (&json!("chat"), &json!("hold"))
    );
    json_of(&agent, &["advance", "--force"])?;
    assert_eq!(chat.tcp(server.v4(81))?, "EPERM");
    assert_eq!(iam.tcp(server.v4(81))?, "ok");
    let resumed = json_of(&agent, &["resume"])?;
    assert_eq!(resumed["stopped_at"], "chat");
    assert_eq!(iam.tcp(server.v4(81))?, "EPERM");
    let causes: Vec<Value> = moves(&agent)?
        .into_iter()
        .map(|change| change["cause"].clone())
        .collect();
    assert!(causes.contains(&json!("resumed")), "{causes:?}");
    Ok(())
}

/// Fails where different connections are all that counts.
#[test]
fn one_connection_that_is_refused_again_and_again_stops_a_node_where_that_is_limited() -> Result<()> {
    const BORNE: u64 = 30;
    let mut scene = Scene::new("attempts")?;
    let (mut server, mut chat) = (scene.workload("server")?, scene.workload("chat")?);
    server.serve(any(80))?.local()?;
    let limit = json!({ "perMinute": 4, "attemptsPerMinute": BORNE, "action": "rollback" });
    let agent = scene
        .agent(&Policy::new("policy"))?
        .mode("observe")
        .policy("rollout.yaml", &rollout(Some("chat"), &limited_by(&limit)))?
        .start()?;
    for _ in 0..BORNE {
        assert_eq!(chat.tcp(server.v4(80))?, "EPERM");
    }
    let refused = format!("source={}&port=80&decision=DENY", chat.id);
    let times = |record: &Value| record["count"].as_u64().unwrap_or(1);
    agent.wait_audit(&refused, DEADLINE, |found| {
        found.iter().map(times).sum::<u64>() == BORNE
    })?;
    assert_eq!(agent.get("/v1/rollout")?["rollout"]["stopped"], Value::Null);
    assert_eq!(chat.tcp(server.v4(80))?, "EPERM");
    let stopped = wait_stopped(&agent)?["stopped"].clone();
    assert_eq!(
        (
            &stopped["denials"],
            &stopped["attempts"],
            &stopped["attempts_per_minute"]
        ),
        (&json!(1), &json!(BORNE + 1), &json!(BORNE))
    );
    assert_eq!(chat.tcp(server.v4(80))?, "ok");
    let shown = String::from_utf8(cli(&agent, &["status"])?.stdout)?;
    assert!(
        shown.contains("31 refusals in a minute") && shown.contains("30 are borne"),
        "{shown}"
    );
    let recorded = moves(&agent)?;
    let last = recorded.last().context("a record")?;
    assert_eq!(
        (&last["cause"], &last["stopped"]["attempts"]),
        (&json!("denials"), &json!(31))
    );
    Ok(())
}
