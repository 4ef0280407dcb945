// SPDX-License-Identifier: Apache-2.0
//! Ways round: other protocols, other people's sockets, other cgroups, and the odd corners of `connect()`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use zt_tests::probe::{ConnectOptions, Handle, ListenOptions, Operation, TIMEOUT};
use zt_tests::trail::{RECORDED, says};
use zt_tests::{Agent, Party, Policy, Scene, TCP, UDP, eventually};

const SOON: Duration = Duration::from_millis(200);

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// A server with an allowed port (80) and a refused one (81), a client, and another workload that may do nothing.
fn three(label: &str) -> Result<(Scene, [Party; 3], Agent)> {
    three_with(label, "auto")
}

fn three_with(label: &str, handshake: &str) -> Result<(Scene, [Party; 3], Agent)> {
    let mut scene = Scene::new(label)?;
    let mut server = scene.workload("server")?;
    let client = scene.workload("client")?;
    let other = scene.workload_in("other", &client.host)?;
    let policy = Policy::new("around")
        .allow("client", "server", TCP, "80")
        .allow("client", "server", UDP, "80");
    let agent = scene
        .agent(&policy)?
        .config("handshake", json!(handshake))
        .start()?;
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
        server.udp_bind(any(port))?.local()?;
    }
    Ok((scene, [server, client, other], agent))
}

fn socket(party: &mut Party, family: i32, kind: i32, protocol: i32) -> Result<String> {
    let made = party.call(Operation::Socket {
        family,
        kind,
        protocol,
    })?;
    if let Some(socket) = made.socket {
        party.close(socket)?;
    }
    Ok(made.outcome().to_owned())
}

/// A new TCP socket for a destination's family, not connected.
fn stream(party: &mut Party, to: SocketAddr) -> Result<Handle> {
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let (kind, protocol) = (libc::SOCK_STREAM, 0);
    party
        .call(Operation::Socket {
            family,
            kind,
            protocol,
        })?
        .handle()
}

fn connect(party: &mut Party, socket: Handle, to: SocketAddr) -> Result<String> {
    let timeout = TIMEOUT;
    Ok(party
        .call(Operation::Connect { socket, to, timeout })?
        .outcome()
        .to_owned())
}

/// Passes a copy of a socket from one process to another.
fn pass(scene: &Scene, from: &mut Party, socket: Handle, to: &mut Party, name: &str) -> Result<Handle> {
    let path = scene.sandbox().directory().join(name);
    let mailbox = to.call(Operation::FdMailbox { path: path.clone() })?.handle()?;
    from.call(Operation::SendFd { path, socket })?.ok()?;
    let timeout = TIMEOUT;
    to.call(Operation::RecvFd {
        socket: mailbox,
        timeout,
    })?
    .handle()
}

/// Sockets that could speak past every rule, with the reason for which each is refused.
const PAST_POLICY: [(i32, i32, i32, &str); 6] = [
    (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP, "raw_socket"),
    (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP, "raw_socket"),
    (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_RAW, "raw_socket"),
    (libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP, "protocol"),
    (libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6, "protocol"),
    (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP, "mptcp"),
];

#[test]
fn sockets_that_policy_cannot_speak_about_are_refused() -> Result<()> {
    let mut scene = Scene::new("raw")?;
    let (mut strict, mut lax) = (scene.workload("strict")?, scene.workload("lax")?);
    let mut trusted = scene.workload("trusted")?;
    scene.declare("lax", |workload| workload.mode("observe"))?;
    for party in [&strict, &lax, &trusted] {
        party.host.sysctl("net/ipv4/ping_group_range", "0 65535")?;
    }
    let agent = scene.agent(&Policy::new("raw").raw_sockets("trusted"))?.start()?;
    for (family, kind, protocol, _) in PAST_POLICY {
        let of = |party: &mut Party| socket(party, family, kind, protocol);
        assert_eq!(of(&mut strict)?, "EPERM", "{family} {kind} {protocol}");
        assert_eq!(of(&mut lax)?, "ok", "{family} {kind} {protocol}");
        assert_eq!(of(&mut trusted)?, "ok", "{family} {kind} {protocol}");
    }
    for (party, decision, enforced) in [
        (&strict, "DENY", true),
        (&lax, "DENY", false),
        (&trusted, "ALLOW", true),
    ] {
        for reason in ["raw_socket", "protocol", "mptcp"] {
            let count = PAST_POLICY.iter().filter(|(.., of)| *of == reason).count();
            let (reason, count) = match decision {
                "ALLOW" => ("rule", PAST_POLICY.len()),
                _ => (reason, count),
            };
            let query = format!("source={}&decision={decision}&enforced={enforced}", party.id);
            eventually(&format!("{count} of {query} for {reason}"), RECORDED, || {
                let records = agent.all_records(&query)?;
                Ok(records.iter().filter(|record| record["reason"] == reason).count() >= count)
            })?;
        }
    }
    // Plain sockets are nobody's concern until they are used.
    for (kind, protocol) in [
        (libc::SOCK_STREAM, libc::IPPROTO_TCP),
        (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    ] {
        for family in [libc::AF_INET, libc::AF_INET6] {
            assert_eq!(socket(&mut strict, family, kind, protocol)?, "ok");
        }
    }
    Ok(())
}

#[test]
fn multipath_is_refused_and_what_falls_back_is_judged() -> Result<()> {
    let (scene, [mut server, mut client, _other], agent) = three("mptcp")?;
    let mptcp = || ConnectOptions {
        mptcp: true,
        ..ConnectOptions::default()
    };
    assert_eq!(client.connect_with(server.v4(80), mptcp())?.outcome(), "EPERM");
    let listen = Operation::Serve {
        at: any(82),
        options: ListenOptions {
            mptcp: true,
            ..ListenOptions::default()
        },
    };
    assert_eq!(server.call(listen)?.outcome(), "EPERM");
    // Runtimes then open a plain socket.
    assert_eq!(client.talk(server.v4(80))?, "ok");
    // A stranger's falls back at the listener, and is refused like any other.
    let mut stranger = scene.outsider("stranger")?;
    let connected = stranger.connect_with(server.v4(80), mptcp())?;
    let sent = stranger.say(&connected, "secret")?;
    stranger.was_reset(&connected, sent.as_ref())?;
    agent.records("decision=DENY", 1, |record| record["observer"] == "destination")?;
    Ok(())
}

#[test]
fn a_socket_bound_to_a_device_is_judged_like_any_other() -> Result<()> {
    let (_scene, [server, mut client, mut other], _agent) = three("device")?;
    let on = |device: &str| ConnectOptions {
        device: Some(device.to_owned()),
        ..ConnectOptions::default()
    };
    for (port, outcome) in [(80, "ok"), (81, "EPERM")] {
        for to in [server.v4(port), server.v6(port)] {
            assert_eq!(client.connect_with(to, on("eth0"))?.outcome(), outcome, "{to}");
        }
    }
    // Loopback by its device is still the namespace itself.
    other.serve(any(90))?.local()?;
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 90);
    assert_eq!(client.connect_with(to, on("lo"))?.outcome(), "EPERM");
    Ok(())
}

#[test]
fn whoever_connects_a_socket_decides_for_himself() -> Result<()> {
    let (scene, [server, mut client, mut other], agent) = three("passed")?;
    let mut alien = scene.outsider_in("alien", &client.host)?;
    let to = server.v4(80);

    // Made by one who may, connected by one who may not; and the other way round.
    let made = stream(&mut client, to)?;
    let got = pass(&scene, &mut client, made, &mut other, "to-other")?;
    assert_eq!(connect(&mut other, got, to)?, "EPERM");
    let made = stream(&mut other, to)?;
    let got = pass(&scene, &mut other, made, &mut client, "to-client")?;
    assert_eq!(connect(&mut client, got, to)?, "ok");

    // Who is not managed has no business with a managed socket.
    for to in [server.v4(80), server.v6(80)] {
        let made = stream(&mut client, to)?;
        let got = pass(
            &scene,
            &mut client,
            made,
            &mut alien,
            &format!("to-alien-{}", to.is_ipv4()),
        )?;
        assert_eq!(connect(&mut alien, got, to)?, "EPERM", "{to}");
    }
    let datagrams = client.udp_bind(any(0))?.handle()?;
    let got = pass(&scene, &mut client, datagrams, &mut alien, "datagrams")?;
    let data = "datagram".to_owned();
    let to = server.v6(80);
    let sent = alien.call(Operation::UdpSendTo {
        socket: Some(got),
        to,
        data,
    })?;
    assert_eq!(sent.outcome(), "EPERM");
    agent.records("decision=DENY", 3, |record| record["reason"] == "alien_task")?;

    // A connection that was admitted is a capability, like any descriptor: whoever is given it can use it.
    let open = client.connect(server.v4(80))?.handle()?;
    let got = pass(&scene, &mut client, open, &mut other, "connected")?;
    other.send_text(got, "word")?.ok()?;
    assert_eq!(other.receive(got)?.data.as_deref(), Some("word"));
    Ok(())
}

#[test]
fn a_process_that_moves_is_who_it_has_become() -> Result<()> {
    let (scene, [server, mut client, other], agent) = three("moved")?;
    let to = server.v4(80);
    let early = stream(&mut client, to)?;
    assert_eq!(client.talk(to)?, "ok");
    client.move_to(&other.cgroup)?.ok()?;
    assert_eq!(client.talk(to)?, "EPERM");
    assert_eq!(connect(&mut client, early, to)?, "EPERM");
    agent.records("decision=DENY", 2, |record| {
        says(record, &other.id, &server.id, "DENY", "no_rule")
    })?;
    let home = client.cgroup.clone();
    client.move_to(&home)?.ok()?;
    assert_eq!(client.talk(to)?, "ok");
    // Outside the managed tree, what was made inside is of no more use.
    let early = stream(&mut client, to)?;
    client.move_to(scene.sandbox().outside())?.ok()?;
    assert_eq!(connect(&mut client, early, to)?, "EPERM");
    agent.records("decision=DENY", 1, |record| record["reason"] == "alien_task")?;
    Ok(())
}

#[test]
fn disconnecting_and_connecting_anew_asks_anew() -> Result<()> {
    let (_scene, [server, mut client, _other], _agent) = three("again")?;
    for (good, bad) in [(server.v4(80), server.v4(81)), (server.v6(80), server.v6(81))] {
        let socket = stream(&mut client, good)?;
        assert_eq!(connect(&mut client, socket, good)?, "ok");
        client.call(Operation::Disconnect { socket })?.ok()?;
        assert_eq!(connect(&mut client, socket, bad)?, "EPERM", "{bad}");
        assert_eq!(connect(&mut client, socket, good)?, "ok", "{good}");

        // A datagram socket may be connected again and again.
        let socket = client
            .call(Operation::UdpConnect {
                socket: None,
                to: good,
            })?
            .handle()?;
        let again = |to| Operation::UdpConnect {
            socket: Some(socket),
            to,
        };
        assert_eq!(client.call(again(bad))?.outcome(), "EPERM");
        assert_eq!(client.call(again(good))?.outcome(), "ok");
        client.send_text(socket, "datagram")?.ok()?;
        // An address beside the one that it is connected to is asked about as well.
        let data = "datagram".to_owned();
        let sent = client.call(Operation::UdpSendTo {
            socket: Some(socket),
            to: bad,
            data,
        })?;
        assert_eq!(sent.outcome(), "EPERM");
        client.call(Operation::Disconnect { socket })?.ok()?;
        assert_eq!(client.call(again(bad))?.outcome(), "EPERM");
    }
    Ok(())
}

#[test]
fn data_in_the_first_packet_does_not_precede_the_decision() -> Result<()> {
    let (_scene, [server, mut client, _other], _agent) = three_with("fast-open-source", "off")?;
    let early = || ConnectOptions {
        fast_open: Some("word".into()),
        ..ConnectOptions::default()
    };
    for (port, outcome) in [(80, "ok"), (81, "EPERM")] {
        for to in [server.v4(port), server.v6(port)] {
            assert_eq!(client.connect_with(to, early())?.outcome(), outcome, "{to}");
        }
    }
    Ok(())
}

#[test]
fn a_listener_that_chose_no_port_is_owned_too() -> Result<()> {
    let (scene, [mut server, mut client, _other], _agent) = three("autobound")?;
    let mut stranger = scene.outsider("stranger")?;
    let socket = stream(&mut server, any(0))?;
    let listener = server.call(Operation::Listen { socket, backlog: 16 })?;
    let port = listener.local()?.port();
    // Nobody may reach it: not by what policy says of the port, and not because nobody knows whose it is.
    assert_eq!(client.talk(server.v4(port))?, "EPERM");
    for to in [server.v4(port), server.v6(port)] {
        let connected = stranger.connect(to)?;
        stranger.say(&connected, "secret")?;
        let accepted = server.call(Operation::Accept {
            socket,
            timeout: SOON,
        })?;
        if let Some(socket) = accepted.socket {
            let (max, timeout) = (64, SOON);
            let received = server.call(Operation::Recv { socket, max, timeout })?;
            assert_eq!(received.data.unwrap_or_default(), "", "{to}");
        }
    }
    Ok(())
}

/// A known limit: a socket is whose it was when it was made. What somebody outside has made connects as the host, whoever has it by
/// then; the destination's end decides about that.
#[test]
fn a_socket_that_was_made_outside_is_the_hosts() -> Result<()> {
    for (allows, decision, reason) in [(true, "ALLOW", "rule"), (false, "DENY", "no_rule")] {
        let mut scene = Scene::new("outside")?;
        let mut server = scene.workload("server")?;
        let mut other = scene.workload_in("other", &server.host)?;
        let mut alien = scene.outsider_in("alien", &server.host)?;
        let agent = scene
            .agent(&Policy::new("outside"))?
            .config("allowHost", json!(allows))
            .start()?;
        server.serve(any(80))?.local()?;
        for to in [server.v4(80), server.v6(80)] {
            assert_eq!(other.tcp(to)?, "EPERM", "{to}");
            let made = stream(&mut alien, to)?;
            let name = format!("outside-{}", to.is_ipv4());
            let socket = pass(&scene, &mut alien, made, &mut other, &name)?;
            let timeout = TIMEOUT;
            let mut connected = other.call(Operation::Connect { socket, to, timeout })?;
            if allows {
                connected.ok()?;
                other.send_text(socket, "word")?.ok()?;
                assert_eq!(other.receive(socket)?.data.as_deref(), Some("word"), "{to}");
            } else {
                connected.socket = connected.errno.is_none().then_some(socket);
                let sent = other.say(&connected, "secret")?;
                other.was_reset(&connected, sent.as_ref())?;
            }
        }
        agent.records("", 2, |record| {
            record["observer"] == "destination" && says(record, "host", &server.id, decision, reason)
        })?;
    }
    Ok(())
}
