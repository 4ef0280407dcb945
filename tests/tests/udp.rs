// SPDX-License-Identifier: Apache-2.0
//! Datagrams: decided for each flow at the sender, guarded at the receiver, and answered without asking again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use zt_tests::datagram::{guarded, send, take};
use zt_tests::hooks::has_packet_hook;
use zt_tests::probe::{Handle, ListenOptions, Operation, TIMEOUT};
use zt_tests::trail::says;
use zt_tests::{Party, Policy, Scene, TCP, UDP, eventually};

/// Long enough for whatever was going to arrive.
const SOON: Duration = Duration::from_millis(200);

fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

fn any(port: u16) -> SocketAddr {
    at(Ipv6Addr::UNSPECIFIED, port)
}

/// Sends a datagram from a new socket, and says whether it came.
fn arrives(from: &mut Party, to: SocketAddr, server: &mut Party, socket: Handle) -> Result<bool> {
    assert_eq!(from.udp(to)?, "ok", "{to}");
    Ok(take(server, socket, SOON)?.errno.is_none())
}

/// Question and answer between two sockets; without an address, the client's is connected.
fn exchange(
    client: &mut Party,
    from: Handle,
    to: Option<SocketAddr>,
    server: &mut Party,
    at: Handle,
) -> Result<()> {
    match to {
        Some(to) => send(client, Some(from), to, "question")?.ok()?,
        None => client.send_text(from, "question")?.ok()?,
    };
    let question = take(server, at, TIMEOUT)?.ok()?;
    assert_eq!(question.data.as_deref(), Some("question"));
    send(server, Some(at), question.peer.unwrap(), "answer")?.ok()?;
    let answer = take(client, from, TIMEOUT)?.ok()?;
    assert_eq!(answer.data.as_deref(), Some("answer"));
    Ok(())
}

#[test]
fn a_strangers_datagrams_are_dropped_and_a_clients_arrive() -> Result<()> {
    let mut scene = Scene::new("guard")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut stranger = scene.outsider("stranger")?;
    let policy = Policy::new("guard").allow("client", "server", UDP, "53 54");
    let agent = scene.agent(&policy)?.start()?;
    let v6 = server.v6(54);
    // One socket for each family, and one for both.
    let sockets = [
        (
            server.udp_bind(at(Ipv4Addr::UNSPECIFIED, 54))?.handle()?,
            server.v4(54),
        ),
        (server.udp_bind(v6)?.handle()?, v6),
        (server.udp_bind(any(53))?.handle()?, server.v4(53)),
    ];
    guarded(&server)?;
    for (socket, to) in sockets {
        assert!(arrives(&mut client, to, &mut server, socket)?, "{to}");
        assert!(!arrives(&mut stranger, to, &mut server, socket)?, "{to}");
    }
    let refused = agent.records("decision=DENY", 3, |record| {
        says(record, "world", &server.id, "DENY", "no_rule")
    })?;
    for record in refused {
        assert_eq!(
            (&record["hook"], &record["observer"], &record["protocol"]),
            (&"receive".into(), &"destination".into(), &UDP.into())
        );
    }
    // The client's flows are the client's to record.
    agent.records("decision=ALLOW", 3, |record| record["observer"] == "source")?;
    Ok(())
}

#[test]
fn what_policy_makes_a_receiver_is_guarded_before_it_binds() -> Result<()> {
    let mut scene = Scene::new("before")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut stranger = scene.outsider("stranger")?;
    let policy = Policy::new("before").allow("client", "server", UDP, "53");
    let _agent = scene.agent(&policy)?.start()?;
    assert!(has_packet_hook(&server.cgroup)?);
    assert!(!has_packet_hook(&client.cgroup)?);
    let socket = server.udp_bind(any(53))?.handle()?;
    let to = server.v4(53);
    assert!(!arrives(&mut stranger, to, &mut server, socket)?);
    assert!(arrives(&mut client, to, &mut server, socket)?);
    Ok(())
}

#[test]
fn workloads_without_datagrams_have_no_packet_program() -> Result<()> {
    let mut scene = Scene::new("no-tax")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let policy = Policy::new("no-tax")
        .allow("client", "server", TCP, "")
        .allow("client", "world", UDP, "");
    let _agent = scene.agent(&policy)?.start()?;
    server.serve(any(80))?.local()?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    // Sending datagrams is no reason for a guard either.
    assert_eq!(client.udp(at(Ipv4Addr::new(10, 99, 200, 200), 53))?, "ok");
    for cgroup in [&server.cgroup, &client.cgroup, scene.sandbox().managed()] {
        assert!(!has_packet_hook(cgroup)?, "{}", cgroup.path().display());
    }
    server.udp_bind(any(53))?.handle()?;
    guarded(&server)?;
    assert!(!has_packet_hook(&client.cgroup)?);
    Ok(())
}

#[test]
fn a_server_of_unconnected_datagrams_lives() -> Result<()> {
    let mut scene = Scene::new("dns")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut stranger = scene.outsider("stranger")?;
    let policy = Policy::new("dns")
        .allow("client", "server", UDP, "53")
        .allow("world", "server", UDP, "53");
    let agent = scene.agent(&policy)?.start()?;
    let socket = server.udp_bind(any(53))?.handle()?;
    guarded(&server)?;
    for to in [server.v4(53), server.v6(53)] {
        for party in [&mut client, &mut stranger] {
            let unconnected = party.udp_bind(at(unspecified(to), 0))?.handle()?;
            exchange(party, unconnected, Some(to), &mut server, socket)?;
            exchange(party, unconnected, Some(to), &mut server, socket)?;
            let connected = party.call(Operation::UdpConnect { socket: None, to })?.handle()?;
            exchange(party, connected, None, &mut server, socket)?;
        }
    }
    // What nobody asked for is no answer.
    let elsewhere = [client.v4(4444), stranger.v4(4444)];
    for to in elsewhere {
        assert_eq!(send(&mut server, Some(socket), to, "unasked")?.outcome(), "EPERM");
    }
    agent.records("decision=DENY", 2, |record| {
        record["source"]["spiffe_id"] == server.id
    })?;
    // Four flows of the client at its end, four of the stranger at the server's.
    agent.records("decision=ALLOW", 8, |_| true)?;
    Ok(())
}

/// The wildcard of an address's family.
fn unspecified(of: SocketAddr) -> IpAddr {
    match of {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[test]
fn a_server_may_answer_each_client_on_a_socket_of_its_own() -> Result<()> {
    let mut scene = Scene::new("per-client")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let closed = Policy::new("per-client");
    let policy = closed.clone().allow("client", "server", UDP, "69");
    let agent = scene.agent(&policy)?.start()?;
    let options = ListenOptions {
        reuse_port: true,
        ..ListenOptions::default()
    };
    let mut revoked = 0;
    for to in [server.v4(69), server.v6(69)] {
        let mut bind = |at| {
            server
                .call(Operation::UdpBind {
                    at,
                    options: options.clone(),
                })?
                .handle()
        };
        let (welcome, own) = (bind(to)?, bind(to)?);
        // Both sockets take part in the port; the second is connected before anything arrives.
        let from = client.udp_bind(at(unspecified(to), 0))?;
        let peer = SocketAddr::new(
            if to.is_ipv4() {
                client.host.ipv4.into()
            } else {
                client.host.ipv6.into()
            },
            from.local()?.port(),
        );
        send(&mut client, from.socket, to, "question")?.ok()?;
        // Whichever of the two it was given to.
        if take(&mut server, welcome, SOON)?.errno.is_some() {
            take(&mut server, own, SOON)?.ok()?;
        }
        let connect = Operation::UdpConnect {
            socket: Some(own),
            to: peer,
        };
        assert_eq!(server.call(connect)?.outcome(), "ok", "{to}");
        server.send_text(own, "answer")?.ok()?;
        let answer = take(&mut client, from.handle()?, TIMEOUT)?;
        assert_eq!(answer.data.as_deref(), Some("answer"));
        // When policy no longer lets the client ask, it gets no answers either.
        agent.change_policy(&closed.text())?;
        eventually("the server's own socket to be cut off", TIMEOUT, || {
            Ok(server.send_text(own, "answer")?.errno.is_some())
        })?;
        revoked += 1;
        let destination = (&server.id, &client.id);
        agent.records("decision=DENY", revoked, |record| {
            says(record, destination.1, destination.0, "DENY", "revoked")
                && record["observer"] == "destination"
        })?;
        agent.change_policy(&policy.text())?;
        for socket in [welcome, own] {
            server.close(socket)?.ok()?;
        }
    }
    Ok(())
}

#[test]
fn clients_get_their_answers_also_where_they_are_guarded() -> Result<()> {
    let mut scene = Scene::new("answers")?;
    let mut client = scene.workload("client")?;
    let mut stranger = scene.outsider("stranger")?;
    let policy = Policy::new("answers").allow("client", "world", UDP, "53");
    let agent = scene.agent(&policy)?.start()?;
    let socket = stranger.udp_bind(any(53))?.handle()?;
    // A port of its own makes the client a receiver, and has it guarded.
    let own = client.udp_bind(any(5353))?.handle()?;
    guarded(&client)?;
    for to in [stranger.v4(53), stranger.v6(53)] {
        let auto = client.udp_bind(at(unspecified(to), 0))?.handle()?;
        exchange(&mut client, auto, Some(to), &mut stranger, socket)?;
        let connected = client
            .call(Operation::UdpConnect { socket: None, to })?
            .handle()?;
        exchange(&mut client, connected, None, &mut stranger, socket)?;
    }
    exchange(&mut client, own, Some(stranger.v6(53)), &mut stranger, socket)?;
    // From another port of the same address it is no answer.
    let mut other = stranger.udp_bind(any(54))?;
    let other = other.socket.take().unwrap();
    send(&mut stranger, Some(other), client.v6(5353), "unasked")?.ok()?;
    assert_eq!(take(&mut client, own, SOON)?.outcome(), "EAGAIN");
    agent.records("decision=DENY", 1, |record| {
        says(record, "world", &client.id, "DENY", "no_rule")
    })?;
    Ok(())
}

/// A port that the kernel chose is for answers. That holds where the workload is guarded; a workload that binds no
/// port and is no destination of UDP has no guard, for its TCP's sake, which is a limit that the documentation lists.
#[test]
fn a_port_that_the_kernel_chose_receives_answers_only() -> Result<()> {
    let mut scene = Scene::new("autobound")?;
    let mut client = scene.workload("client")?;
    let mut stranger = scene.outsider("stranger")?;
    let policy = Policy::new("autobound").allow("client", "world", UDP, "53");
    let _agent = scene.agent(&policy)?.start()?;
    client.udp_bind(any(5353))?.handle()?;
    guarded(&client)?;
    let socket = stranger.udp_bind(any(53))?.handle()?;
    for to in [stranger.v4(53), stranger.v6(53)] {
        let sent = send(&mut client, None, to, "question")?;
        let (from, port) = (sent.handle()?, sent.local()?.port());
        let question = take(&mut stranger, socket, TIMEOUT)?;
        // From a port that was never asked, before the answer.
        let back = if to.is_ipv4() {
            client.v4(port)
        } else {
            client.v6(port)
        };
        assert_eq!(stranger.udp(back)?, "ok");
        send(&mut stranger, Some(socket), question.peer.unwrap(), "answer")?.ok()?;
        let first = take(&mut client, from, TIMEOUT)?;
        assert_eq!(first.data.as_deref(), Some("answer"), "{to}");
    }
    Ok(())
}

#[test]
fn multicast_and_broadcast_receivers_are_guarded() -> Result<()> {
    let mut scene = Scene::new("groups")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut stranger = scene.outsider("stranger")?;
    let policy = Policy::new("groups")
        .allow("client", "server", UDP, "5000")
        .allow("client", "239.0.0.0/8", UDP, "5000")
        .allow("client", "10.99.255.255/32", UDP, "5000")
        .allow("client", "ff0e::/16", UDP, "5000");
    let agent = scene.agent(&policy)?.start()?;
    for host in [&client.host, &stranger.host, &server.host] {
        host.add_route("239.0.0.0/8")?;
    }
    let v4 = server.udp_bind(at(Ipv4Addr::UNSPECIFIED, 5000))?.handle()?;
    let options = ListenOptions {
        v6_only: Some(true),
        ..ListenOptions::default()
    };
    let v6 = server
        .call(Operation::UdpBind {
            at: any(5000),
            options,
        })?
        .handle()?;
    let group4 = IpAddr::V4(Ipv4Addr::new(239, 1, 2, 3));
    let group6 = IpAddr::V6("ff0e::123".parse()?);
    for (socket, group) in [(v4, group4), (v6, group6)] {
        server.call(Operation::JoinGroup { socket, group })?.ok()?;
    }
    guarded(&server)?;
    let broadcast = IpAddr::V4(Ipv4Addr::new(10, 99, 255, 255));
    for (socket, ip) in [(v4, group4), (v4, broadcast), (v6, group6)] {
        let to = at(ip, 5000);
        for (party, arrives) in [(&mut stranger, false), (&mut client, true)] {
            let from = party.udp_bind(at(unspecified(to), 0))?.handle()?;
            party.call(Operation::AllowBroadcast { socket: from })?.ok()?;
            assert_eq!(send(party, Some(from), to, "all")?.outcome(), "ok", "{to}");
            let wait = if arrives { TIMEOUT } else { SOON };
            let outcome = take(&mut server, socket, wait)?;
            assert_eq!(outcome.errno.is_none(), arrives, "{to}: {outcome:?}");
        }
    }
    agent.records("decision=DENY", 3, |record| {
        says(record, "world", &server.id, "DENY", "no_rule")
    })?;
    Ok(())
}

#[test]
fn an_observing_receiver_drops_nothing_and_records() -> Result<()> {
    let mut scene = Scene::new("observed")?;
    let mut server = scene.workload("server")?;
    let mut stranger = scene.outsider("stranger")?;
    let agent = scene.agent(&Policy::new("nothing"))?.mode("observe").start()?;
    let socket = server.udp_bind(any(53))?.handle()?;
    guarded(&server)?;
    for to in [server.v4(53), server.v6(53)] {
        assert!(arrives(&mut stranger, to, &mut server, socket)?, "{to}");
    }
    let records = agent.records("decision=DENY", 2, |_| true)?;
    assert!(records.iter().all(|record| record["enforced"] == false));
    Ok(())
}
