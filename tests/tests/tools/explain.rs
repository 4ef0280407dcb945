// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy explain` of what an agent has in force.

use anyhow::Result;
use serde_json::{Value, json};
use zt_tests::pair::{pair, policy};
use zt_tests::{Agent, Party, UDP};

/// What is explained of a flow between two parties, of the policies in force.
fn explained(agent: &Agent, from: &str, to: &str, port: u16, protocol: &str) -> Result<Value> {
    let api = format!("unix://{}", agent.socket().display());
    agent.explained(&["--api", &api], (from, to, port.into(), protocol))
}

/// What is explained of the client's connections is what becomes of them.
fn is_so(agent: &Agent, client: &mut Party, server: &Party, port: u16, rule: Option<&str>) -> Result<()> {
    let said = explained(agent, &client.id, &server.id, port, "TCP")?;
    let (decision, outcome) = if rule.is_some() {
        ("ALLOW", "ok")
    } else {
        ("DENY", "EPERM")
    };
    assert_eq!(
        (&said["decision"], &said["policy_matched"]),
        (&json!(decision), &json!(rule)),
        "{said}"
    );
    for to in [server.v4(port), server.v6(port)] {
        assert_eq!(client.tcp(to)?, outcome, "{to}");
    }
    Ok(())
}

#[test]
fn what_is_in_force_is_explained_and_not_what_is_on_disk() -> Result<()> {
    let (scene, server, mut client) = pair("explain")?;
    let agent = scene.agent(&policy())?.start()?;
    is_so(&agent, &mut client, &server, 80, Some("policy/rule-1"))?;
    is_so(&agent, &mut client, &server, 81, None)?;
    let said = explained(&agent, &client.id, &server.id, 80, UDP)?;
    assert_eq!(said["policy_matched"], "policy/rule-2", "{said}");
    let said = explained(&agent, &client.id, &server.id, 81, "TCP")?;
    let near: Vec<(&Value, &Value)> = said["near"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|rule| (&rule["rule"], &rule["misses"]))
        .collect();
    assert_eq!(near, [(&json!("policy/rule-1"), &json!(["port"]))], "{said}");
    let said = explained(&agent, "world", &server.id, 80, "TCP")?;
    assert_eq!(said["reason"], "no_rule", "{said}");

    // A change that never came into force explains nothing.
    agent.files.write_policy("bad.yaml", "a: [")?;
    let open = policy().allow("client", "server", "TCP", "81");
    agent.files.write_policy("policy.yaml", &open.text())?;
    agent.wait_policies("the bad one to be told of", |answer| {
        answer["errors"] != json!([])
    })?;
    is_so(&agent, &mut client, &server, 81, None)?;
    let revision = agent.revision()?;
    agent.files.remove_policy("bad.yaml")?;
    agent.wait_revision_after(revision)?;
    is_so(&agent, &mut client, &server, 81, Some("policy/rule-3"))
}
