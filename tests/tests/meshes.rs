// SPDX-License-Identifier: Apache-2.0
//! Service meshes and load balancers in the kernel: what is decided about a connection whose destination somebody else changes,
//! and that they are told of.

#[path = "meshes/sidecars.rs"]
mod sidecars;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use zt_tests::probe::{Operation, TIMEOUT};
use zt_tests::trail::says;
use zt_tests::{Agent, Cgroup, Party, Place, Policy, Rewriter, Scene, TCP, UDP, wait_for};

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

/// What has no address but a virtual one, over IPv6.
const VIRTUAL_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x98, 0, 0, 0, 0, 0, 1)), 80);

#[test]
fn over_ipv6_the_same_holds() -> Result<()> {
    let (_scene, [server, other, mut client], agent) = three("rewritten-v6", "off", |policy| policy)?;
    let rewriter = Rewriter::attach(&client.cgroup, "foreign6", VIRTUAL_V6, server.v6(80))?;
    assert_eq!(client.talk(VIRTUAL_V6)?, "ok");
    drop(rewriter);
    for from in [VIRTUAL_V6, server.v6(80)] {
        let rewriter = Rewriter::attach(&client.cgroup, "foreign6", from, other.v6(80))?;
        assert_eq!(client.talk(from)?, "EPERM", "{from}");
        drop(rewriter);
    }
    agent.records("decision=DENY", 2, |record| {
        says(record, &client.id, &other.id, "DENY", "no_rule")
    })?;
    Ok(())
}

/// Load balancers translate datagrams where they are sent, and their answers where they are received.
#[test]
fn datagrams_of_sockets_that_are_not_connected_are_asked_about_as_connections_are() -> Result<()> {
    let (_scene, [mut server, mut other, mut client], agent) = three("rewritten-udp", "off", |policy| {
        policy.allow("client", "server", UDP, "53")
    })?;
    let port = |address: SocketAddr| SocketAddr::new(address.ip(), 53);
    let cgroup = client.cgroup.clone();
    let attach = |place, from, to| Rewriter::attach_at(place, &cgroup, "foreign_udp", from, to);
    for (from, to, strange) in [
        (port(VIRTUAL.into()), server.v4(53), other.v4(53)),
        (port(VIRTUAL_V6), server.v6(53), other.v6(53)),
    ] {
        let (at_server, at_other) = (server.udp_bind(to)?.handle()?, other.udp_bind(strange)?.handle()?);
        let (sends, receives) = (attach(Place::Send, from, to)?, attach(Place::Receive, to, from)?);

        // There and back again.
        let data = "asked".to_owned();
        let socket = client
            .call(Operation::UdpSendTo {
                socket: None,
                to: from,
                data,
            })?
            .handle()?;
        let timeout = TIMEOUT;
        let asked = server
            .call(Operation::UdpRecvFrom {
                socket: at_server,
                timeout,
            })?
            .ok()?;
        assert_eq!(asked.data.as_deref(), Some("asked"));
        let data = "answered".to_owned();
        let back = asked.peer.context("a sender")?;
        server
            .call(Operation::UdpSendTo {
                socket: Some(at_server),
                to: back,
                data,
            })?
            .ok()?;
        let answer = client.call(Operation::UdpRecvFrom { socket, timeout })?.ok()?;
        assert_eq!(
            (answer.data.as_deref(), answer.peer),
            (Some("answered"), Some(from)),
            "{from}"
        );
        drop((sends, receives));

        // Who is really there is not allowed, whatever the address that was asked for.
        for asked in [from, to] {
            let sends = attach(Place::Send, asked, strange)?;
            assert_eq!(client.udp(asked)?, "EPERM", "{asked}");
            drop(sends);
        }
        let timeout = Duration::from_millis(100);
        let nothing = other.call(Operation::UdpRecvFrom {
            socket: at_other,
            timeout,
        })?;
        assert_eq!(nothing.outcome(), "EAGAIN");
    }
    agent.records("decision=DENY", 4, |record| {
        says(record, &client.id, &other.id, "DENY", "no_rule")
    })?;
    // They are told of like those at `connect`.
    let _there = attach(Place::Send, port(VIRTUAL.into()), server.v4(53))?;
    let _there_too = attach(Place::Send, port(VIRTUAL_V6), server.v6(53))?;
    for hook in ["cgroup_udp4_sendmsg", "cgroup_udp6_sendmsg"] {
        let evidence = format!("program foreign_udp at {hook} ");
        let is = |one: &Value| {
            one["evidence"]
                .as_str()
                .is_some_and(|text| text.starts_with(&evidence))
        };
        wait_for(&evidence, LATER, || {
            let around = agent.get("/v1/status")?["around"].clone();
            let found = around.as_array().into_iter().flatten().find(|one| is(one));
            Ok(found.filter(|one| one["order"] == "before").map(drop))
        })?;
    }
    Ok(())
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
