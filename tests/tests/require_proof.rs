// SPDX-License-Identifier: Apache-2.0
//! `requireProof`: who does not prove in the handshake who he is is refused, at each end, whatever his name.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use zt_tests::other_program::OtherProgram;
use zt_tests::pair::{any, pair_after_agent};
use zt_tests::probe::{ListenOptions, Operation};
use zt_tests::trail::says;
use zt_tests::{Agent, Party, Policy, Scene, TCP, UDP};

/// `client` may reach `server` at port 80, with proof.
fn proven() -> Policy {
    Policy::new("policy").allow_proven("client", "server", TCP, "80")
}

/// The only record that names a reason of its own for the refusal.
fn refused(agent: &Agent, client: &Party, server: &Party, more: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut found = agent.records("decision=DENY", 1, |record| {
        says(record, &client.id, &server.id, "DENY", "proof_required")
            && record["policy_matched"] == "policy/rule-1"
            && more(record)
    })?;
    Ok(found.remove(0))
}

#[test]
fn who_proves_gets_through_and_who_asks_is_told() -> Result<()> {
    let (_scene, server, mut client, agent) = pair_after_agent("require", &proven(), |agent| agent)?;
    for to in server.everywhere(80) {
        assert_eq!(client.talk(to)?, "ok", "{to}");
    }
    agent.records("", 3, |record| {
        says(record, &client.id, &server.id, "ALLOW", "rule") && record["proof"] == "mutual"
    })?;
    let ask = |protocol: &str| -> Result<Value> {
        let destination = json!({ "spiffe_id": server.id, "port": 80, "protocol": protocol });
        let question = json!({ "source": { "spiffe_id": client.id }, "destination": destination });
        agent.post("/v1/evaluate", &question)?.json()
    };
    let answer = ask(TCP)?;
    assert_eq!(
        (&answer["decision"], &answer["proof_required"]),
        (&json!("ALLOW"), &json!(true))
    );
    assert_eq!(ask(UDP)?["proof_required"], false, "it is not about datagrams");
    Ok(())
}

/// Somebody whom no agent manages answers at the server's place: the directory names it, and nothing proves it.
#[test]
fn a_destination_that_proves_nothing_is_refused_by_the_source() -> Result<()> {
    let mut scene = Scene::new("require-source")?;
    let (server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut watcher = scene.workload("watcher")?;
    scene.declare("watcher", |workload| workload.mode("observe"))?;
    let policy = proven().allow_proven("watcher", "server", TCP, "80");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    let mut thief = scene.outsider_in("thief", &server.host)?;
    let listener = thief.call(Operation::Serve {
        at: any(80),
        options: ListenOptions::default(),
    })?;
    assert_ne!(client.talk(server.v4(80))?, "ok");
    refused(&agent, &client, &server, |record| {
        record["observer"] == "source"
            && record["proof"] == "none:absent"
            && record["enforced"] == true
            && record["source"]["pid"] == client.pid()
    })?;
    let state = thief.call(Operation::ServeState {
        socket: listener.handle()?,
    })?;
    assert_eq!(state.bytes, Some(0), "not a byte of the client's arrived");
    // Who only observes goes on, and has one record of what enforcing would refuse.
    assert_eq!(watcher.talk(server.v4(80))?, "ok");
    agent.records("", 1, |record| {
        zt_tests::trail::party(&record["source"]) == watcher.id
            && says(record, &watcher.id, &server.id, "DENY", "proof_required")
            && record["enforced"] == false
    })?;
    Ok(())
}

/// Somebody else's options take the room of ours: the destination's kernel knows the very socket that called, and that is no
/// proof.
#[test]
fn a_source_that_proves_nothing_is_refused_by_the_destination() -> Result<()> {
    let mut scene = Scene::new("require-destination")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    // Its own end would refuse as well, and first.
    scene.declare("client", |workload| workload.mode("observe"))?;
    let policy = proven().allow("client", "server", TCP, "81");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    // Below the managed root, so that it is asked before ours.
    let _greedy = OtherProgram::attach(&client.cgroup, 8)?;
    assert_eq!(client.talk(server.v4(81))?, "ok", "without proof it is who it is");
    assert_ne!(client.talk(server.v4(80))?, "ok");
    refused(&agent, &client, &server, |record| {
        record["observer"] == "destination" && record["proof"] == "none:absent"
    })?;
    Ok(())
}

/// There is no handshake that could bear a proof: refused at once.
#[test]
fn datagrams_and_handshakes_without_identities_prove_nothing() -> Result<()> {
    let policy = proven().allow_proven("client", "server", UDP, "80");
    let off = |agent: zt_tests::AgentBuilder| agent.config("handshake", json!("off"));
    let (_scene, mut server, mut client, agent) = pair_after_agent("require-off", &policy, off)?;
    let receiver = server.udp_bind(any(80))?.handle()?;
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");
    assert_eq!(client.udp(server.v4(80))?, "EPERM");
    assert_eq!(client.udp_connected(server.v4(80))?, "EPERM");
    refused(&agent, &client, &server, |record| record["protocol"] == TCP)?;
    agent.records("decision=DENY", 2, |record| {
        says(record, &client.id, &server.id, "DENY", "proof_required") && record["protocol"] == UDP
    })?;
    let taken = server.call(Operation::UdpRecvFrom {
        socket: receiver,
        timeout: Duration::ZERO,
    })?;
    assert_eq!(taken.outcome(), "EAGAIN");
    Ok(())
}

/// Policy asks for proof when connections are there: those that proved who they are stay.
#[test]
fn a_new_requirement_ends_what_proved_nothing() -> Result<()> {
    let before = Policy::new("policy").allow("client", "server", TCP, "80 82");
    let (scene, server, mut client, agent) = pair_after_agent("require-later", &before, |agent| agent)?;
    let mut beside = scene.outsider_in("beside", &server.host)?;
    beside.serve(any(82))?.local()?;
    let good = client.connect(server.v4(80))?.handle()?;
    let bad = client.connect(server.v4(82))?.handle()?;
    agent.change_policy(
        &Policy::new("policy")
            .allow_proven("client", "server", TCP, "80 82")
            .text(),
    )?;
    client.dies(bad)?;
    assert_eq!(client.end(good, Duration::ZERO)?, "alive");
    client.send_text(good, "word")?.ok()?;
    assert_eq!(client.receive(good)?.data.as_deref(), Some("word"));
    agent.records("decision=DENY", 1, |record| {
        says(record, &client.id, &server.id, "DENY", "revoked")
    })?;
    Ok(())
}
