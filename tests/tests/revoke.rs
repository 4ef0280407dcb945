// SPDX-License-Identifier: Apache-2.0
//! Revocation: what policy or mode no longer allows dies, at both ends and at once, and nothing else does.

use std::net::{Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use zt_tests::agent::binary;
use zt_tests::pair::lives;
use zt_tests::probe::{ConnectOptions, Handle, Operation, TIMEOUT};
use zt_tests::{Agent, Party, Policy, Scene, TCP, UDP, eventually};

/// How long the death of thousands of connections may take on a machine that has other things to do.
const GENEROUS: Duration = Duration::from_secs(20);

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

fn open(party: &mut Party, to: SocketAddr, count: u32) -> Result<Handle> {
    let options = ConnectOptions::default();
    let group = party.call(Operation::OpenMany { to, count, options })?;
    assert_eq!(group.open, Some(count.into()), "{group:?}");
    group.handle()
}

/// How many connections of a group have ended when `count` of them should have.
fn ended(party: &mut Party, group: Handle, count: u32, timeout: Duration) -> Result<(u64, u64)> {
    let reply = party.call(Operation::WaitGroupEnd {
        socket: group,
        count,
        timeout,
    })?;
    Ok((reply.count.unwrap_or_default(), reply.open.unwrap_or_default()))
}

#[test]
fn a_revoked_connection_dies_at_both_ends() -> Result<()> {
    let mut scene = Scene::new("revoke")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut stranger = scene.outsider("stranger")?;
    let keep = Policy::new("revoke")
        .allow("client", "server", TCP, "81")
        .allow("world", "server", TCP, "83");
    let before = keep
        .clone()
        .allow("client", "server", TCP, "80")
        .allow("client", "server", UDP, "53")
        .allow("client", "world", TCP, "90")
        .allow("world", "server", TCP, "82");
    let agent = scene.agent(&before)?.start()?;
    let mut states = Vec::new();
    for port in [80, 81, 82, 83] {
        states.push(server.serve(any(port))?.handle()?);
    }
    let far = stranger.serve(any(90))?.handle()?;
    server.udp_bind(any(53))?.handle()?;

    let (mut die, mut stay) = (Vec::new(), Vec::new());
    for to in server.everywhere(80) {
        die.push(client.connect(to)?.handle()?);
    }
    for to in server.everywhere(81) {
        stay.push(client.connect(to)?.handle()?);
    }
    let outward = client.connect(stranger.v4(90))?.handle()?;
    let inward = stranger.connect(server.v4(82))?.handle()?;
    let inward_stays = stranger.connect(server.v6(83))?.handle()?;
    let datagrams = client.call(Operation::UdpConnect {
        socket: None,
        to: server.v4(53),
    })?;
    let datagrams = datagrams.handle()?;
    client.send_text(datagrams, "datagram")?.ok()?;
    for socket in die.iter().chain(&stay).chain([&outward]) {
        assert!(lives(&mut client, *socket)?);
    }
    for socket in [inward, inward_stays] {
        assert!(lives(&mut stranger, socket)?);
    }

    let revision = agent.change_policy(&keep.text())?;
    for socket in die.iter().chain([&outward]) {
        client.dies(*socket)?;
    }
    // The end of who is not managed learns it from the reset.
    assert_eq!(stranger.end(inward, TIMEOUT)?, "ECONNRESET");
    // A connected datagram socket is not closed, but it is no longer connected to anyone.
    eventually("the datagram socket to be cut off", TIMEOUT, || {
        Ok(client.send_text(datagrams, "datagram")?.errno.is_some())
    })?;
    for (party, socket) in [(&mut server, states[0]), (&mut stranger, far)] {
        eventually("the other end to be gone", TIMEOUT, || {
            let state = party.call(Operation::ServeState { socket })?;
            Ok(state.open == Some(0))
        })?;
    }
    for socket in &stay {
        assert!(lives(&mut client, *socket)?);
    }
    assert!(lives(&mut stranger, inward_stays)?);

    // Each end that judged is a record: three connections at both ends, the two that had one end here, the datagrams.
    let revoked = agent.records("decision=DENY", 9, |record| record["reason"] == "revoked")?;
    for record in revoked {
        assert_eq!(record["hook"], "sweep");
        assert_eq!(record["enforced"], true);
        assert_eq!(record["revision"], revision, "{record}");
    }
    Ok(())
}

#[test]
fn ten_thousand_connections_in_fifty_namespaces() -> Result<()> {
    const NAMESPACES: u32 = 50;
    const DIE: u32 = 200;
    const STAY: u32 = 20;
    let mut scene = Scene::new("thousands")?;
    let mut server = scene.workload("server")?;
    let mut clients = Vec::new();
    let mut keep = Policy::new("thousands");
    let mut before = Policy::new("thousands");
    for number in 0..NAMESPACES {
        let name = format!("client-{number}");
        keep = keep.allow(&name, "server", TCP, "81");
        before = before.allow(&name, "server", TCP, "80 81");
        clients.push(scene.workload(&name)?);
    }
    let agent = scene.agent(&before)?.start()?;
    let (dying, staying) = (server.serve(any(80))?.handle()?, server.serve(any(81))?.handle()?);
    let mut groups = Vec::new();
    for (number, client) in clients.iter_mut().enumerate() {
        // Both families, in turn.
        let (die, stay) = if number % 2 == 0 {
            (server.v4(80), server.v6(81))
        } else {
            (server.v6(80), server.v4(81))
        };
        groups.push((open(client, die, DIE)?, open(client, stay, STAY)?));
    }
    let held = |server: &mut Party, socket| -> Result<u64> {
        let state = server.call(Operation::ServeState { socket })?;
        state.open.context("the server counts")
    };
    eventually("all to be accepted", GENEROUS, || {
        Ok(held(&mut server, dying)? == u64::from(NAMESPACES * DIE)
            && held(&mut server, staying)? == u64::from(NAMESPACES * STAY))
    })?;

    let start = Instant::now();
    agent.files.write_policy("policy.yaml", &keep.text())?;
    for (client, (die, _)) in clients.iter_mut().zip(&groups) {
        let left = GENEROUS.saturating_sub(start.elapsed());
        assert_eq!(ended(client, *die, DIE, left)?, (DIE.into(), 0));
    }
    let at_clients = start.elapsed();
    eventually("the server's ends to be gone", GENEROUS, || {
        Ok(held(&mut server, dying)? == 0)
    })?;
    println!(
        "{} connections: {at_clients:?} until the clients' ends were dead, {:?} until all were",
        NAMESPACES * DIE,
        start.elapsed()
    );
    for (client, (_, stay)) in clients.iter_mut().zip(&groups) {
        assert_eq!(ended(client, *stay, 1, Duration::ZERO)?, (0, STAY.into()));
    }
    assert_eq!(held(&mut server, staying)?, u64::from(NAMESPACES * STAY));
    // Both ends of each were judged, and each judgement is a record.
    let wanted = usize::try_from(2 * NAMESPACES * DIE)?;
    agent.records("decision=DENY", wanted, |record| record["reason"] == "revoked")?;
    Ok(())
}

#[test]
fn a_handshake_under_way_is_judged_again_when_it_completes() -> Result<()> {
    let mut scene = Scene::new("in-flight")?;
    let mut client = scene.workload("client")?;
    let mut stranger = scene.outsider("stranger")?;
    let open = Policy::new("in-flight").allow("client", "world", TCP, "80 81");
    let agent = scene.agent(&open)?.start()?;
    let (refused, allowed) = (
        stranger.serve(any(80))?.handle()?,
        stranger.serve(any(81))?.handle()?,
    );
    assert_eq!(client.talk(stranger.v4(81))?, "ok");
    let mut second = scene.start("second", &client.cgroup, &client.host)?;
    client.host.cut()?;
    for (party, port) in [(&mut client, 80), (&mut second, 81)] {
        party.send(Operation::SendWhileConnecting {
            to: stranger.v4(port),
            data: "secret".into(),
            timeout: Duration::from_secs(10),
        })?;
    }
    eventually("both SYNs to be sent", TIMEOUT, || {
        let arguments = ["-tanH", "state", "syn-sent"];
        let output = client.host.command("ss").args(arguments).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().count() == 2)
    })?;
    agent.change_policy(
        &Policy::new("in-flight")
            .allow("client", "world", TCP, "81")
            .text(),
    )?;
    client.host.mend()?;
    // The one that is still allowed goes through under the new revision.
    assert_eq!(second.wait()?.outcome(), "ok");
    eventually("the word that is allowed", TIMEOUT, || {
        let state = stranger.call(Operation::ServeState { socket: allowed })?;
        Ok(state.bytes == Some("word".len() as u64 + "secret".len() as u64))
    })?;
    client.wait()?;
    agent.records("decision=DENY", 1, |record| {
        record["reason"] == "revoked" && record["hook"] == "established"
    })?;
    let state = stranger.call(Operation::ServeState { socket: refused })?;
    assert_eq!(state.bytes, Some(0));
    Ok(())
}

#[test]
fn enforcing_what_was_observed_sweeps() -> Result<()> {
    let mut scene = Scene::new("to-enforce")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let policy = Policy::new("to-enforce").allow("client", "server", TCP, "81");
    let agent = scene.agent(&policy)?.mode("observe").start()?;
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    let (bad, good) = (
        client.connect(server.v4(80))?.handle()?,
        client.connect(server.v4(81))?.handle()?,
    );
    assert!(lives(&mut client, bad)?);
    // Only the client's end is enforced upon: it is the one that sweeps.
    scene.declare("client", |workload| workload.mode("enforce"))?;
    agent.files.write_workloads(&scene.workloads())?;
    client.dies(bad)?;
    assert!(lives(&mut client, good)?);
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");
    agent.records("decision=DENY", 1, |record| record["reason"] == "revoked")?;
    Ok(())
}

#[test]
fn break_glass_opens_and_restoring_closes() -> Result<()> {
    let mut scene = Scene::new("break-glass")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let agent = scene.agent(&Policy::new("nothing"))?.start()?;
    server.serve(any(80))?.local()?;
    assert_eq!(client.talk(server.v4(80))?, "EPERM");

    command(&agent, &["mode", "observe", "--all"])?;
    let socket = client.connect(server.v4(80))?.handle()?;
    assert!(lives(&mut client, socket)?);
    assert_eq!(client.udp(server.v4(53))?, "ok");
    assert_eq!(agent.get("/v1/status")?["modes"]["observe_all"], true);
    // It opens, and does not blind: policy's verdict is recorded as it was.
    agent.records("decision=DENY&enforced=false", 2, |record| {
        record["observer"] == "source"
    })?;

    command(&agent, &["mode", "restore"])?;
    client.dies(socket)?;
    assert_eq!(client.talk(server.v4(80))?, "EPERM");
    assert_eq!(agent.get("/v1/status")?["modes"]["observe_all"], false);
    let changes = agent.records("type=mode_change", 2, |_| true)?;
    assert_eq!(changes[0]["change"], json!({ "mode": "observe" }));
    Ok(())
}

/// Runs a command of the agent's, which must succeed.
fn command(agent: &Agent, arguments: &[&str]) -> Result<()> {
    let api = format!("http://{}", agent.api());
    let output = Command::new(binary()?)
        .args(arguments)
        .args(["--api", &api])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    Ok(())
}
