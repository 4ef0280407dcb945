// SPDX-License-Identifier: Apache-2.0
//! Break-glass when no agent answers.

use std::process::Output;

use anyhow::Result;
use nix::sys::signal::Signal;
use zt_tests::agent::DEADLINE;
use zt_tests::{Agent, Party, Policy, Scene, TCP, eventually};

fn two(label: &str) -> Result<(Scene, Party, Party)> {
    Scene::served(label, &[80, 81])
}

fn policy() -> Policy {
    Policy::new("policy").allow("client", "server", TCP, "80")
}

fn mode(agent: &Agent, arguments: &[&str]) -> Result<Output> {
    let mut command = agent.command(&[&["mode"], arguments].concat());
    Ok(command
        .arg("--api")
        .arg(format!("http://{}", agent.api()))
        .output()?)
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// The changes of mode that are in the trail, oldest first.
fn recorded(agent: &Agent, count: usize) -> Result<Vec<String>> {
    let by_hand = |record: &serde_json::Value| record.to_string().contains("without the agent");
    let records = agent.records("", count, by_hand)?;
    Ok(records.iter().map(|record| record["mode"].to_string()).collect())
}

#[test]
fn a_dead_agent_needs_not_be_asked() -> Result<()> {
    let (scene, server, mut client) = two("glass-dead")?;
    let mut agent = scene.agent(&policy())?.start()?;
    agent.kill()?;
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");

    let output = mode(&agent, &["observe", "--all"])?;
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("without the agent") && text.contains("cannot reach"),
        "{text}"
    );
    assert_eq!(client.tcp(server.v4(81))?, "ok");
    let output = mode(&agent, &["restore", "-o", "json"])?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(
        (&answer["without_agent"], &answer["changed"]),
        (&true.into(), &true.into())
    );
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    let output = mode(&agent, &["observe", "--all"])?;
    assert!(output.status.success(), "{}", said(&output));
    // A second time changes nothing, and is no second record.
    assert!(said(&mode(&agent, &["observe", "--all"])?).contains("so before"));

    agent.restart()?;
    assert_eq!(client.tcp(server.v4(81))?, "ok");
    assert_eq!(agent.get("/v1/status")?["modes"]["observe_all"], true);
    assert_eq!(recorded(&agent, 2)?.len(), 2);
    // Once: the next start finds nothing that is not recorded.
    assert!(agent.terminate()?.success());
    agent.restart()?;
    assert_eq!(recorded(&agent, 2)?.len(), 2);
    // And the agent is asked again.
    let output = mode(&agent, &["restore"])?;
    assert!(!said(&output).contains("without the agent"), "{}", said(&output));
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    Ok(())
}

#[test]
fn an_agent_that_hangs_is_not_waited_for_and_follows() -> Result<()> {
    let (scene, server, mut client) = two("glass-hung")?;
    let agent = scene.agent(&policy())?.start()?;
    agent.signal(Signal::SIGSTOP)?;
    let output = mode(&agent, &["observe", "--all"]);
    let open = client.tcp(server.v4(81));
    agent.signal(Signal::SIGCONT)?;
    let output = output?;
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("does not answer"), "{}", said(&output));
    assert_eq!(open?, "ok");
    eventually("the agent to make it its own", DEADLINE, || {
        Ok(agent.get("/v1/status")?["modes"]["observe_all"] == true)
    })?;
    // Whatever it writes from now on, it does not take it back.
    agent.change_policy(&policy().allow("client", "server", TCP, "82").text())?;
    assert_eq!(client.tcp(server.v4(81))?, "ok");
    Ok(())
}

#[test]
fn where_nothing_is_pinned_it_says_so() -> Result<()> {
    let (scene, ..) = two("glass-none")?;
    let mut agent = scene.agent(&policy())?.start()?;
    agent.terminate()?;
    assert!(agent.command(&["detach", "--yes"]).status()?.success());
    let output = mode(&agent, &["observe", "--all"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("zt_control"), "{}", said(&output));
    Ok(())
}
