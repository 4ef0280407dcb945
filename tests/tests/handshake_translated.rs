// SPDX-License-Identifier: Apache-2.0
//! Identity proven in the handshake where addresses are translated on the way and nobody tells zt: ports of the host, rules of one's
//! own, redirections, masquerade. Connections work as policy says, and nobody has another's name.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use zt_tests::nat::{nat, translate};
use zt_tests::pair::{any, pair_after_agent};
use zt_tests::trail::{party, says};
use zt_tests::wire::{ACK, SYN, Segment, Wire};
use zt_tests::{Agent, Party, Policy, Scene, TCP};

/// Somewhere that policy knows as a network.
const FRONT: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 99, 77, 7);

/// An address of this machine, which no namespace of a test can reach.
fn of_this_node() -> Result<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket
        .connect("192.0.2.1:9")
        .context("this machine has no route")?;
    match socket.local_addr()?.ip() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => anyhow::bail!("{address} is none of IPv4"),
    }
}

fn world(label: &str, policy: &Policy) -> Result<(Scene, Party, Party, Agent)> {
    pair_after_agent(label, policy, |agent| agent)
}

fn of(agent: &Agent, observer: &str) -> Result<Value> {
    let mut records = agent.records("", 1, |record| record["observer"] == observer)?;
    Ok(records.swap_remove(0))
}

fn bearing(seen: &[Segment]) -> Vec<u8> {
    let bearing = seen.iter().filter(|segment| segment.option(253).is_some());
    bearing.map(|segment| segment.flags).collect()
}

/// A port of the host that leads to a workload (`hostPort`, `NodePort`): the source calls the host, and proves to the workload
/// that answers who it is.
#[test]
fn behind_a_port_of_the_host_the_source_is_proven() -> Result<()> {
    let policy = Policy::new("host")
        .allow("client", "host", TCP, "30080")
        .allow("client", "server", TCP, "80");
    let (_scene, server, mut client, agent) = world("translated-host", &policy)?;
    let node = of_this_node()?;
    client.host.add_route(&format!("{node}/32"))?;
    let to = translate(&client, node, 30_080, &server)?;
    let wire = Wire::open(&client.host, "eth0")?;
    assert_eq!(client.talk(to)?, "ok");
    let record = of(&agent, "source")?;
    assert!(says(&record, &client.id, "host", "ALLOW", "rule"), "{record}");
    assert_eq!(record["proof"], "source", "{record}");
    let seen = wire.seen()?;
    assert_eq!(bearing(&seen)[..3], [SYN, SYN | ACK, ACK], "{seen:?}");
    assert_eq!(
        agent.counter("agreed")?,
        1,
        "the destination has the client's name"
    );
    assert_eq!(agent.counter("tags_invalid")?, 0);
    Ok(())
}

/// A rule of one's own: no option goes there, and the destination knows the source by this node's own sockets.
#[test]
fn behind_a_rule_of_ones_own_the_source_is_known() -> Result<()> {
    let policy = Policy::new("own")
        .allow("client", "10.200.0.0/16", TCP, "9000")
        .allow("client", "server", TCP, "80");
    let (_scene, server, mut client, agent) = world("translated-own", &policy)?;
    client.host.add_route("10.200.0.0/16")?;
    let to = translate(&client, FRONT, 9000, &server)?;
    let wire = Wire::open(&client.host, "eth0")?;
    assert_eq!(client.talk(to)?, "ok");
    let record = of(&agent, "source")?;
    assert_eq!(record["proof"], "none", "{record}");
    assert_eq!(bearing(&wire.seen()?), Vec::<u8>::new());
    // The source's end has recorded somewhere else: who really reached whom is recorded by the destination's.
    let record = of(&agent, "destination")?;
    assert!(says(&record, &client.id, &server.id, "ALLOW", "rule"), "{record}");
    assert_eq!(record["proof"], "none:absent", "{record}");

    // What the destination refuses it refuses under this name.
    let less = Policy::new("own").allow("client", "10.200.0.0/16", TCP, "9000");
    agent.change_policy(&less.text())?;
    let connected = client.connect(to)?;
    let sent = client.say(&connected, "word")?;
    client.was_reset(&connected, sent.as_ref())?;
    agent.records("decision=DENY", 1, |record| {
        record["observer"] == "destination" && says(record, &client.id, &server.id, "DENY", "no_rule")
    })?;
    Ok(())
}

/// A destination that only observes records what it would refuse, although the source's end has recorded that something else is allowed.
#[test]
fn what_a_translation_leads_to_is_recorded_where_it_would_be_refused() -> Result<()> {
    let mut scene = Scene::new("translated-observed")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    scene.declare("server", |workload| workload.mode("observe"))?;
    let policy = Policy::new("observed")
        .allow("client", "host", TCP, "30080")
        .allow("client", "10.200.0.0/16", TCP, "9000")
        .allow("server", "client", TCP, "1");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    server.serve(any(80))?.local()?;
    let node = of_this_node()?;
    client.host.add_route(&format!("{node}/32"))?;
    client.host.add_route("10.200.0.0/16")?;
    for to in [
        translate(&client, node, 30_080, &server)?,
        translate(&client, FRONT, 9000, &server)?,
    ] {
        assert_eq!(client.talk(to)?, "ok", "{to}");
    }
    agent.records("decision=DENY", 2, |record| {
        record["observer"] == "destination"
            && says(record, &client.id, &server.id, "DENY", "no_rule")
            && record["enforced"] == false
    })?;
    Ok(())
}

/// A port that the destination's namespace redirects, as service meshes do it.
#[test]
fn behind_a_redirection_the_source_is_known() -> Result<()> {
    let policy = Policy::new("redirected").allow("client", "server", TCP, "80 81");
    let (_scene, server, mut client, agent) = world("translated-redirect", &policy)?;
    nat(&server, "PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 81")?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    let record = of(&agent, "source")?;
    assert!(says(&record, &client.id, &server.id, "ALLOW", "rule"), "{record}");
    assert_eq!(record["proof"], "none:absent", "{record}");
    let record = of(&agent, "destination")?;
    assert!(says(&record, &client.id, &server.id, "ALLOW", "rule"), "{record}");
    assert_eq!(record["destination"]["port"], 81, "{record}");
    assert_eq!(record["proof"], "none:tag_invalid", "{record}");
    Ok(())
}

/// The source's address is translated: its option does not verify any more, and the address that arrives is judged.
#[test]
fn behind_a_masquerade_the_address_is_judged() -> Result<()> {
    let policy = Policy::new("masquerade")
        .allow("client", "server", TCP, "80")
        .allow("10.99.77.0/24", "server", TCP, "80");
    let (_scene, server, mut client, agent) = world("translated-source", &policy)?;
    client.host.add_address(&format!("{OTHER}/16"))?;
    nat(
        &client,
        &format!("POSTROUTING -d {} -j SNAT --to-source {OTHER}", server.host.ipv4),
    )?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    let record = of(&agent, "source")?;
    assert!(says(&record, &client.id, &server.id, "ALLOW", "rule"), "{record}");
    assert_eq!(record["proof"], "none:absent", "{record}");
    let record = of(&agent, "destination")?;
    assert_eq!(record["source"]["address"], json!(OTHER), "{record}");
    assert_eq!(party(&record["source"]), "cidr:10.99.77.0/24", "{record}");
    assert_eq!(record["proof"], "none:tag_invalid", "{record}");

    // Who is not named by it is refused, as anybody else from there.
    let less = Policy::new("masquerade").allow("client", "server", TCP, "80");
    agent.change_policy(&less.text())?;
    let connected = client.connect(server.v4(80))?;
    let sent = client.say(&connected, "word")?;
    client.was_reset(&connected, sent.as_ref())?;
    agent.records("decision=DENY", 1, |record| {
        record["observer"] == "destination" && record["proof"] == "none:tag_invalid"
    })?;
    Ok(())
}

/// The same with an address of the node: whoever comes from there is the host.
#[test]
fn behind_a_masquerade_of_the_node_it_is_the_host() -> Result<()> {
    let policy = Policy::new("node").allow("client", "server", TCP, "80");
    let (_scene, server, mut client, agent) = world("translated-node", &policy)?;
    let node = of_this_node()?;
    server.host.add_route(&format!("{node}/32"))?;
    server.host.neighbour(node.into(), client.host.hardware()?)?;
    nat(
        &client,
        &format!("POSTROUTING -d {} -j SNAT --to-source {node}", server.host.ipv4),
    )?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    let record = of(&agent, "destination")?;
    assert!(says(&record, "host", &server.id, "ALLOW", "rule"), "{record}");
    assert_eq!(record["proof"], "none:tag_invalid", "{record}");
    Ok(())
}

/// The address of another workload of the node is no name, whoever translates to it.
#[test]
fn behind_a_masquerade_nobody_has_the_name_of_another() -> Result<()> {
    let mut scene = Scene::new("translated-other")?;
    let (mut server, other, mut client) = (
        scene.workload("server")?,
        scene.workload("other")?,
        scene.workload("client")?,
    );
    let policy = Policy::new("other")
        .allow("client", "server", TCP, "80")
        .allow("other", "server", TCP, "80");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    server.serve(any(80))?.local()?;
    server
        .host
        .neighbour(other.host.ipv4.into(), client.host.hardware()?)?;
    nat(
        &client,
        &format!(
            "POSTROUTING -d {} -j SNAT --to-source {}",
            server.host.ipv4, other.host.ipv4
        ),
    )?;
    assert_ne!(client.talk(server.v4(80))?, "ok");
    let record = of(&agent, "destination")?;
    assert!(
        says(&record, "unknown", &server.id, "DENY", "tag_invalid"),
        "{record}"
    );
    Ok(())
}
