// SPDX-License-Identifier: Apache-2.0
//! Service meshes and load balancers in the kernel: what is decided about a connection whose destination somebody else changes,
//! and that they are told of.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use zt_tests::probe::built_binary;
use zt_tests::trail::says;
use zt_tests::{Agent, Cgroup, Party, Policy, Rewriter, Scene, TCP, wait_for};

/// How long anything may take on a machine that has much else to do.
const LATER: Duration = Duration::from_secs(90);
/// An address that nobody has, as that of a Service.
const VIRTUAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 98, 0, 1), 80);

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

fn at(party: &Party, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(party.host.ipv4, port)
}

/// Waits until the status tells of it.
fn wait_around(agent: &Agent, what: &str, order: Option<&str>) -> Result<Value> {
    let mut last = Value::Null;
    let found = wait_for(&format!("{what} in the status"), LATER, || {
        last = agent.get("/v1/status")?["around"].clone();
        let found = last.as_array().into_iter().flatten();
        let mut found = found.filter(|one| one["what"] == what && one["order"].as_str() == order);
        Ok(found.next().cloned())
    });
    found.with_context(|| format!("last: {last}"))
}

/// A client, a server that it may reach and one that it may not, each on port 80, and the cgroup that is their managed root.
fn three(
    label: &str,
    handshake: &str,
    more: impl FnOnce(Policy) -> Policy,
) -> Result<(Scene, [Party; 3], Agent)> {
    let mut scene = Scene::new(label)?;
    let mut server = scene.workload("server")?;
    let mut other = scene.workload("other")?;
    let client = scene.workload("client")?;
    for party in [&mut server, &mut other] {
        party.serve(any(80))?.local()?;
    }
    let policy = more(Policy::new("mesh").allow("client", "server", TCP, "80"));
    let agent = scene
        .agent(&policy)?
        .config("handshake", handshake.into())
        .start()?;
    Ok((scene, [server, other, client], agent))
}

#[test]
fn below_the_managed_root_policy_is_asked_about_the_destination_that_somebody_else_chose() -> Result<()> {
    let (_scene, [server, other, mut client], agent) = three("rewritten-below", "off", |policy| policy)?;
    assert_eq!(client.talk(VIRTUAL.into())?, "EPERM");
    let rewriter = Rewriter::attach(&client.cgroup, "foreign", VIRTUAL, at(&server, 80))?;
    assert_eq!(client.talk(VIRTUAL.into())?, "ok");
    drop(rewriter);
    let rewriter = Rewriter::attach(&client.cgroup, "foreign", VIRTUAL, at(&other, 80))?;
    assert_eq!(client.talk(VIRTUAL.into())?, "EPERM");
    drop(rewriter);
    // Nor does the name of the one count where the other is reached.
    let rewriter = Rewriter::attach(&client.cgroup, "foreign", at(&server, 80), at(&other, 80))?;
    assert_eq!(client.talk(server.v4(80))?, "EPERM");
    agent.records("decision=DENY", 2, |record| {
        says(record, &client.id, &other.id, "DENY", "no_rule")
    })?;
    agent.records("decision=ALLOW", 1, |record| {
        says(record, &client.id, &server.id, "ALLOW", "rule")
    })?;
    let told = wait_around(&agent, "other", Some("before"))?;
    ensure!(
        told["evidence"]
            .as_str()
            .is_some_and(|text| text.contains("foreign")),
        "{told}"
    );
    drop(rewriter);
    Ok(())
}

#[test]
fn above_the_managed_root_the_destinations_end_decides_about_who_is_really_reached() -> Result<()> {
    let (scene, [server, other, mut client], agent) = three("rewritten-above", "off", |policy| {
        policy.allow("client", "10.98.0.0/16", TCP, "80")
    })?;
    let above = above(&scene)?;
    let rewriter = Rewriter::attach(&above, "cil_sock4_connect", VIRTUAL, at(&server, 80))?;
    assert_eq!(client.talk(VIRTUAL.into())?, "ok");
    drop(rewriter);
    reaches_nobody_else(&above, &server, &other, &mut client)?;
    let rewriter = Rewriter::attach(&above, "cil_sock4_connect", VIRTUAL, at(&server, 80))?;
    agent.records("decision=DENY", 2, |record| {
        record["observer"] == "destination" && says(record, &client.id, &other.id, "DENY", "no_rule")
    })?;
    let told = wait_around(&agent, "cilium", Some("after"))?;
    ensure!(
        told["evidence"]
            .as_str()
            .is_some_and(|text| text.contains("cil_sock4_conne")),
        "{told}"
    );
    drop(rewriter);
    Ok(())
}

#[test]
fn above_the_managed_root_nobody_else_is_reached_by_a_handshake_that_bears_identities() -> Result<()> {
    let (scene, [server, other, mut client], _agent) = three("rewritten-borne", "auto", |policy| {
        policy.allow("client", "10.98.0.0/16", TCP, "80")
    })?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    reaches_nobody_else(&above(&scene)?, &server, &other, &mut client)
}

/// The cgroup around the managed root.
fn above(scene: &Scene) -> Result<Cgroup> {
    let managed = scene.sandbox().managed().relative();
    Cgroup::at(managed.parent().context("the managed root has a parent")?)
}

/// The virtual address is allowed, and so is the server; who is really there is not, and gets not a byte.
fn reaches_nobody_else(above: &Cgroup, server: &Party, other: &Party, client: &mut Party) -> Result<()> {
    for from in [VIRTUAL, at(server, 80)] {
        let rewriter = Rewriter::attach(above, "cil_sock4_connect", from, at(other, 80))?;
        let outcome = client.talk(from.into())?;
        ensure!(outcome != "ok", "{from}: the other one has answered");
        drop(rewriter);
    }
    Ok(())
}

/// A sidecar of a workload: the rules of Istio's init container in its namespace, and a proxy in its cgroup.
struct Sidecar(Child);

impl Sidecar {
    fn start(party: &Party) -> Result<Self> {
        // Outbound what is not the proxy's own or on loopback, inbound everything.
        for rule in [
            "-A OUTPUT -p tcp -m owner --uid-owner 1337 -j RETURN",
            "-A OUTPUT -p tcp -d 127.0.0.1/32 -j RETURN",
            "-A OUTPUT -p tcp -j REDIRECT --to-ports 15001",
            "-A PREROUTING -p tcp -j REDIRECT --to-ports 15006",
        ] {
            let arguments = ["-t", "nat"].into_iter().chain(rule.split(' '));
            let done = party.host.command("iptables").args(arguments).output()?;
            ensure!(
                done.status.success(),
                "iptables {rule}: {}",
                String::from_utf8_lossy(&done.stderr)
            );
        }
        let mut child = Command::new(built_binary("zt-sidecar", "cargo xtask test kernel")?)
            .arg(party.cgroup.path())
            .arg(party.host.namespace_file())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        let output = child.stdout.take().context("a pipe")?;
        BufReader::new(output).read_line(&mut said)?;
        ensure!(said.trim() == "ready", "{said}");
        Ok(Self(child))
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_sidecar_changes_nothing_at_the_source_and_is_a_port_of_its_own_at_the_destination() -> Result<()> {
    let (scene, [server, other, mut client], agent) = three("sidecar", "off", |policy| policy)?;
    let _of_client = Sidecar::start(&client)?;
    // What it may reach, and what it may not, though its proxy would carry either on.
    assert_eq!(client.talk(server.v4(80))?, "ok");
    assert_eq!(client.talk(other.v4(80))?, "EPERM");
    let told = wait_around(&agent, "istio", None)?;
    ensure!(
        told["evidence"]
            .as_str()
            .is_some_and(|text| text.contains("15006")),
        "{told}"
    );

    // With one at the server too, its end is reached at the proxy's port: who may reach the workload is asked about that one.
    let _of_server = Sidecar::start(&server)?;
    let outcome = client.talk(server.v4(80))?;
    ensure!(
        outcome != "ok",
        "the port of the proxy is one that no rule allows"
    );
    agent.records("decision=DENY", 1, |record| {
        record["observer"] == "destination"
            && record["destination"]["port"] == 15006
            && record["source"]["spiffe_id"] == client.id
    })?;
    let mut stranger = scene.outsider("stranger")?;
    let outcome = stranger.talk(server.v4(80))?;
    ensure!(outcome != "ok", "{outcome}");
    let both = Policy::new("mesh")
        .allow("client", "server", TCP, "80")
        .allow("client", "server", TCP, "15006");
    agent.files.write_policy("policy.yaml", &both.text())?;
    wait_for("the proxy to be reached", LATER, || {
        Ok((client.talk(server.v4(80))? == "ok").then_some(()))
    })?;
    // The source's end still asks about the port that was meant.
    assert_eq!(client.talk(server.v4(81))?, "EPERM");
    assert_eq!(client.talk(other.v4(80))?, "EPERM");
    let outcome = stranger.talk(server.v4(80))?;
    ensure!(outcome != "ok", "{outcome}");
    Ok(())
}
