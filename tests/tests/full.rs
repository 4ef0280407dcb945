// SPDX-License-Identifier: Apache-2.0
//! The kernel's maps have an end: one workload does not fill them for all, and an agent starts also where one is full.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use zt_common::abi::{SHARE_INBOUND, SHARE_LISTENERS};
use zt_common::names::{CONNECTION_SHARE, LISTENER_SHARE};
use zt_tests::hooks::{fill_connections, fill_listeners, listeners, set_share};
use zt_tests::pair::{any, pair_after_agent, policy};
use zt_tests::probe::{ConnectOptions, Handle, How, ListenOptions, Operation, TIMEOUT};
use zt_tests::trail::{RECORDED, party};
use zt_tests::{Agent, Party, Policy, Scene, TCP, eventually};

const PATIENT: Duration = Duration::from_secs(60);
const TCP_NUMBER: u8 = 6;
const UDP_NUMBER: u8 = 17;

fn socket(party: &mut Party, kind: i32, protocol: u8) -> Result<Handle> {
    let open = Operation::Socket {
        family: libc::AF_INET,
        kind,
        protocol: i32::from(protocol),
    };
    party.call(open)?.handle()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// How many places of a protocol there are in `zt_listeners`.
fn places(scene: &Scene, protocol: u8) -> Result<usize> {
    let places = listeners(&scene.sandbox().maps()?)?;
    Ok(places.keys().filter(|place| place.protocol == protocol).count())
}

fn events(agent: &Agent, event: &str) -> Result<u64> {
    Ok(agent.metrics()?.sum("zt_node_events_total", &[("event", event)]))
}

/// One socket that is bound over and over has one place at a time.
#[test]
fn a_socket_that_is_bound_again_gives_its_place_back() -> Result<()> {
    let mut scene = Scene::new("full-rebind")?;
    let mut server = scene.workload("server")?;
    let _agent = scene.agent(&Policy::new("nothing"))?.start()?;
    let datagrams = socket(&mut server, libc::SOCK_DGRAM, UDP_NUMBER)?;
    let stream = socket(&mut server, libc::SOCK_STREAM, TCP_NUMBER)?;
    for _ in 0..20 {
        let at = loopback(0);
        server
            .call(Operation::Bind {
                socket: datagrams,
                at,
            })?
            .ok()?;
        assert_eq!(places(&scene, UDP_NUMBER)?, 1);
        server.call(Operation::Disconnect { socket: datagrams })?.ok()?;

        server.call(Operation::Bind { socket: stream, at })?.ok()?;
        server
            .call(Operation::Listen {
                socket: stream,
                backlog: 16,
            })?
            .ok()?;
        assert_eq!(places(&scene, TCP_NUMBER)?, 1);
        server
            .call(Operation::Shutdown {
                socket: stream,
                how: How::Read,
            })?
            .ok()?;
    }
    // The socket that has stopped to listen has no place either.
    assert_eq!(places(&scene, TCP_NUMBER)?, 0);
    server.close(datagrams)?;
    server.close(stream)?;
    eventually("the places to be given back", TIMEOUT, || {
        Ok(places(&scene, UDP_NUMBER)? == 0 && places(&scene, TCP_NUMBER)? == 0)
    })
}

/// Whoever stops to listen and listens again without a bind gets another port of the kernel, and is known there.
#[test]
fn who_listens_again_elsewhere_is_known_there() -> Result<()> {
    let mut scene = Scene::new("full-relisten")?;
    let host = scene.host("node")?;
    let (mut server, mut client) = (
        scene.workload_in("server", &host)?,
        scene.workload_in("client", &host)?,
    );
    let agent = scene
        .agent(&Policy::new("listen").allow("client", "host", TCP, ""))?
        .start()?;
    let stream = socket(&mut server, libc::SOCK_STREAM, TCP_NUMBER)?;
    server
        .call(Operation::Bind {
            socket: stream,
            at: loopback(0),
        })?
        .ok()?;
    let listen = Operation::Listen {
        socket: stream,
        backlog: 16,
    };
    let first = server.call(listen.clone())?.local()?;
    let how = How::Read;
    server.call(Operation::Shutdown { socket: stream, how })?.ok()?;
    let second = server.call(listen)?.local()?;
    assert_ne!(first.port(), second.port(), "the kernel has given the port back");
    assert_eq!(client.tcp(second)?, "EPERM");
    let records = agent.records("decision=DENY", 1, |record| record["observer"] == "source")?;
    assert_eq!(party(&records[0]["destination"]), server.id, "{}", records[0]);
    let places = listeners(&scene.sandbox().maps()?)?;
    assert!(
        places.keys().all(|place| place.port != first.port()),
        "{places:?}"
    );
    Ok(())
}

/// Whoever has his share of places to listen at leaves the rest to the others.
#[test]
fn nobody_takes_the_places_of_all() -> Result<()> {
    let mut scene = Scene::new("full-places")?;
    let (mut greedy, mut server) = (scene.workload("greedy")?, scene.workload("server")?);
    let agent = scene.agent(&Policy::new("nothing"))?.start()?;
    let maps = scene.sandbox().maps()?;
    set_share(&maps, greedy.cgroup.id()? | SHARE_LISTENERS, LISTENER_SHARE)?;
    greedy.udp_bind(any(53))?.handle()?;
    greedy.listen(any(80))?.handle()?;
    assert_eq!(places(&scene, UDP_NUMBER)?, 0);
    assert_eq!(agent.counter("listeners_full")?, 2);
    // Who listens without a bind has the agent look for him. It keeps to the share, too.
    let stream = socket(&mut greedy, libc::SOCK_STREAM, TCP_NUMBER)?;
    let listen = Operation::Listen {
        socket: stream,
        backlog: 16,
    };
    greedy.call(listen)?.local()?;
    eventually("the agent to leave two listeners out", RECORDED, || {
        Ok(events(&agent, "kernel_map_full")? >= 2)
    })?;
    assert_eq!(places(&scene, TCP_NUMBER)?, 0);
    server.udp_bind(any(53))?.handle()?;
    assert_eq!(places(&scene, UDP_NUMBER)?, 1);
    Ok(())
}

/// Who listens at a place that is not noted is not taken for the host, nor for who listens everywhere at that port.
#[test]
fn who_listens_beyond_his_share_has_no_other_name() -> Result<()> {
    let mut scene = Scene::new("full-name")?;
    let node = scene.host("node")?;
    let (mut greedy, mut server, mut client) = (
        scene.workload_in("greedy", &node)?,
        scene.workload_in("server", &node)?,
        scene.workload_in("client", &node)?,
    );
    let mut host = scene.outsider_in("daemon", &node)?;
    let policy = Policy::new("names")
        .allow("client", "host", TCP, "")
        .allow("client", "server", TCP, "");
    let agent = scene.agent(&policy)?.start()?;
    host.serve(loopback(70))?.local()?;
    let shared = || ListenOptions {
        reuse_port: true,
        ..ListenOptions::default()
    };
    let listen = |at| Operation::TcpListen {
        at,
        options: shared(),
    };
    server.call(listen(any(80)))?.handle()?;
    assert_eq!(client.tcp(loopback(80))?, "ok");
    let share = greedy.cgroup.id()? | SHARE_LISTENERS;
    set_share(&scene.sandbox().maps()?, share, LISTENER_SHARE)?;
    let mut held = Vec::new();
    for port in [80, 90] {
        held.push(greedy.call(listen(loopback(port)))?.handle()?);
    }
    // One who begins to listen everywhere while that one is there may share his port as well.
    server.call(listen(any(90)))?.handle()?;
    for port in [80, 90, 70] {
        assert_eq!(client.tcp(loopback(port))?, "EPERM", "{port}");
    }
    assert_eq!(agent.counter("listeners_full")?, 2);
    for socket in held {
        greedy.close(socket)?;
    }
    assert_eq!(client.tcp(loopback(70))?, "ok", "the host is known again");
    Ok(())
}

/// What others call takes nothing from the room for a workload's own calls.
#[test]
fn who_is_called_by_many_can_call_as_before() -> Result<()> {
    let policy = policy().allow("server", "client", TCP, "82");
    let (scene, mut server, mut client, agent) = pair_after_agent("full-called", &policy, |agent| agent)?;
    client.serve(any(82))?.local()?;
    let share = server.cgroup.id()? | SHARE_INBOUND;
    set_share(&scene.sandbox().maps()?, share, CONNECTION_SHARE)?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    assert_eq!(agent.counter("connections_full")?, 1);
    assert_eq!(server.talk(client.v4(82))?, "ok");
    agent.records("decision=ALLOW", 2, |record: &Value| record["proof"] == "mutual")?;
    Ok(())
}

/// An agent starts where the map of listeners is full, and where that of connections is; it says so.
#[test]
fn an_agent_starts_where_a_map_is_full() -> Result<()> {
    let (scene, mut server, mut client, mut agent) =
        pair_after_agent("full-start", &policy(), |agent| agent)?;
    let maps = scene.sandbox().maps()?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    agent.kill()?;
    fill_listeners(&maps)?;
    fill_connections(&maps)?;
    // Neither this listener nor this call finds room.
    server.serve(any(82))?.local()?;
    server.host.cut()?;
    client.send(Operation::TcpConnect {
        to: server.v4(80),
        options: ConnectOptions {
            timeout: PATIENT,
            ..ConnectOptions::default()
        },
    })?;
    eventually("the SYN to be sent", TIMEOUT, || {
        let listed = client
            .host
            .command("ss")
            .args(["-tanH", "state", "syn-sent"])
            .output()?;
        Ok(!listed.stdout.is_empty())
    })?;
    agent.restart()?;
    eventually("it to be said", RECORDED, || {
        Ok(events(&agent, "kernel_map_full")? >= 2)
    })?;
    server.host.mend()?;
    client.wait()?.ok()?;
    agent.change_policy(&Policy::new("policy").text())?;
    assert_eq!(client.talk(server.v4(80))?, "EPERM", "policy goes on");
    Ok(())
}
