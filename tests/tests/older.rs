// SPDX-License-Identifier: Apache-2.0
//! Sockets that are older than the hooks: found when the agent starts, judged as if the hooks had seen them begin.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use zt_common::outcome::{Arrived, Named, Noted, Place, Shown, at_destination};
use zt_tests::hooks::listeners;
use zt_tests::pair::{any, pair, policy};
use zt_tests::probe::{ConnectOptions, ListenOptions, Operation, TIMEOUT};
use zt_tests::trail::says;
use zt_tests::{Policy, Scene, TCP, eventually};

const SOON: Duration = Duration::from_millis(200);

#[test]
fn sockets_older_than_the_agent_are_judged_and_owned() -> Result<()> {
    let (mut scene, mut server, mut client) = pair("older")?;
    let mut neighbour = scene.workload_in("neighbour", &server.host)?;
    let mut stranger = scene.outsider("stranger")?;
    let receiver = server.udp_bind(any(80))?.handle()?;
    let mut open = Vec::new();
    for port in [80, 81] {
        for to in server.everywhere(port) {
            open.push((port, client.connect(to)?.handle()?));
        }
    }
    let inward = stranger.connect(server.v4(80))?.handle()?;
    let agent = scene.agent(&policy())?.start()?;
    for (port, socket) in open {
        if port == 80 {
            assert_eq!(client.end(socket, Duration::ZERO)?, "alive");
        } else {
            client.dies(socket)?;
        }
    }
    assert_eq!(stranger.end(inward, TIMEOUT)?, "ECONNRESET");
    // Old listeners are somebody's: from outside, from the same namespace, and for datagrams.
    assert_eq!(client.talk(server.v4(80))?, "ok");
    assert_eq!(stranger.talk(server.v6(80))?, "ECONNRESET");
    let loopback = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), 80);
    assert_eq!(neighbour.tcp(loopback)?, "EPERM");
    let query = format!("source={}", neighbour.id);
    agent.records(&query, 1, |record| {
        says(record, &neighbour.id, &server.id, "DENY", "no_rule")
    })?;
    assert_eq!(stranger.udp(server.v4(80))?, "ok");
    let take = |timeout| Operation::UdpRecvFrom {
        socket: receiver,
        timeout,
    };
    assert_eq!(server.call(take(SOON))?.outcome(), "EAGAIN");
    assert_eq!(client.udp(server.v4(80))?, "ok");
    assert_eq!(server.call(take(TIMEOUT))?.outcome(), "ok");
    Ok(())
}

/// A SYN that left before there was a hook: nobody decided, and the handshake may take long.
#[test]
fn a_handshake_older_than_the_hooks_is_judged_when_it_completes() -> Result<()> {
    const PATIENT: Duration = Duration::from_secs(40);
    let (scene, server, mut client) = pair("opening")?;
    // The addresses are resolved before the cut, so that it is the SYN that waits.
    assert_eq!(client.talk(server.v4(80))?, "ok");
    server.host.cut()?;
    let to = server.v4(81);
    let options = ConnectOptions {
        timeout: PATIENT,
        ..ConnectOptions::default()
    };
    client.send(Operation::TcpConnect { to, options })?;
    eventually("the SYN to be sent", TIMEOUT, || {
        let output = client
            .host
            .command("ss")
            .args(["-tanH", "state", "syn-sent"])
            .output()?;
        Ok(!output.stdout.is_empty())
    })?;
    let agent = scene.agent(&policy())?.start()?;
    server.host.mend()?;
    if let Some(socket) = client.wait()?.socket {
        client.dies(socket)?;
    }
    agent.records("decision=DENY", 1, |record| {
        record["observer"] == "source" && says(record, &client.id, &server.id, "DENY", "revoked")
    })?;
    Ok(())
}

#[test]
fn what_nobody_named_and_is_older_ends_where_that_is_refused() -> Result<()> {
    let mut scene = Scene::new("unnamed")?;
    let known = scene.workload("known")?;
    let mut stranger = scene.outsider("stranger")?;
    let mut nobody = scene.start("nobody", &scene.sandbox().cgroup("nobody")?, &known.host)?;
    stranger.serve(any(80))?.local()?;
    let socket = nobody.connect(stranger.v4(80))?.handle()?;
    let policy = Policy::new("unnamed").allow("known", "world", TCP, "80");
    let mut agent = scene.agent(&policy)?.start()?;
    assert_eq!(nobody.end(socket, Duration::ZERO)?, "alive");
    agent.terminate()?;
    let _strict = scene
        .agent(&policy)?
        .config("unknownWorkload", json!("deny"))
        .start()?;
    nobody.dies(socket)?;
    Ok(())
}

/// What a listener accepts while the agent gives it its place does not take that place with it when it goes.
#[test]
fn what_is_accepted_while_the_agent_starts_takes_no_place_with_it() -> Result<()> {
    const MOST: usize = 4000;
    let (mut scene, server, mut client) = pair("older-child")?;
    let mut neighbour = scene.workload_in("neighbour", &server.host)?;
    let mut agent = scene.agent(&policy())?.launch()?;
    let links = scene.sandbox().maps()?.with_file_name("links");
    let mut open = Vec::new();
    while open.len() < MOST && !(links.is_dir() && links.read_dir()?.next().is_some()) {
        open.push(client.connect(server.v4(80))?.handle()?);
    }
    agent.wait_ready()?;
    for socket in open {
        client.close(socket)?;
    }
    // The last of those that the server closes is one that hooks have seen.
    assert_eq!(client.talk(server.v4(80))?, "ok");
    let loopback = SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), 80);
    assert_eq!(neighbour.tcp(loopback)?, "EPERM");
    agent.records("decision=DENY", 1, |record| {
        says(record, &neighbour.id, &server.id, "DENY", "no_rule")
    })?;
    let places = listeners(&scene.sandbox().maps()?)?;
    assert_eq!(
        places.keys().filter(|place| place.port == 80).count(),
        1,
        "{places:?}"
    );
    Ok(())
}

/// Listeners that share a place are all given it: they are one workload's, or nobody's.
#[test]
fn older_listeners_that_share_a_place_are_all_counted() -> Result<()> {
    let mut scene = Scene::new("older-shared")?;
    let node = scene.host("node")?;
    let (mut one, mut two, mut client) = (
        scene.workload_in("one", &node)?,
        scene.workload_in("two", &node)?,
        scene.workload_in("client", &node)?,
    );
    let loopback = |port| SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), port);
    let listen = |at| {
        let options = ListenOptions {
            reuse_port: true,
            ..ListenOptions::default()
        };
        Operation::TcpListen { at, options }
    };
    let mut first = Vec::new();
    for port in [80, 80, 80, 90] {
        first.push(one.call(listen(any(port)))?.handle()?);
    }
    two.call(listen(any(90)))?.handle()?;
    let policy = Policy::new("shared").allow("client", "one", TCP, "");
    for handshake in ["off", "auto"] {
        let mut agent = scene
            .agent(&policy)?
            .config("handshake", json!(handshake))
            .start()?;
        let places = listeners(&scene.sandbox().maps()?)?;
        let sockets = |port| {
            places
                .iter()
                .find(|(place, _)| place.port == port)
                .map(|(_, it)| it.sockets)
        };
        assert_eq!(
            (sockets(80), sockets(90)),
            (Some(3), Some(2)),
            "{handshake}: {places:?}"
        );
        // Each of the three is somebody's: whichever it is that takes the connection.
        for _ in 0..12 {
            assert_eq!(client.tcp(loopback(80))?, "ok", "{handshake}");
        }
        eventually("each to be somebody's", TIMEOUT, || {
            Ok(agent.counter("agreed")? == 12)
        })?;
        assert_eq!(
            client.tcp(loopback(90))?,
            "EPERM",
            "{handshake}: one of two is nobody"
        );
        assert_eq!(agent.counter("owner_missing")?, 0);
        if handshake == "auto" {
            // As long as one of them listens.
            for socket in first.drain(..2) {
                one.close(socket)?;
            }
            assert_eq!(client.tcp(loopback(80))?, "ok");
        }
        agent.terminate()?;
        assert!(agent.command(&["detach", "--yes"]).status()?.success());
    }
    Ok(())
}

/// A datagram server that answers a client on a socket of its own is the destination's end, however old the socket is.
#[test]
fn an_older_socket_that_answers_one_client_is_the_destinations_end() -> Result<()> {
    let (scene, mut server, mut client) = pair("answers")?;
    let options = ListenOptions {
        reuse_port: true,
        ..ListenOptions::default()
    };
    let at = SocketAddr::new(server.host.ipv4.into(), 80);
    let here = SocketAddr::new(client.host.ipv4.into(), 0);
    let mut bind = |at| {
        let options = options.clone();
        server.call(Operation::UdpBind { at, options })?.handle()
    };
    let (_welcome, own) = (bind(at)?, bind(at)?);
    let from = client.udp_bind(here)?;
    let to = from.local()?;
    server
        .call(Operation::UdpConnect {
            socket: Some(own),
            to,
        })?
        .ok()?;
    let agent = scene.agent(&policy())?.start()?;
    // The client may ask at that port, so the server may answer.
    server.send_text(own, "answer")?.ok()?;
    agent.change_policy(&Policy::new("policy").text())?;
    eventually("the server's own socket to be cut off", TIMEOUT, || {
        Ok(server.send_text(own, "answer")?.errno.is_some())
    })?;
    Ok(())
}

/// A listener that no process has while the agent starts, as it is on its way from one to another, is asked for nothing: it keeps no SYN and
/// proves nothing. Who calls it is known by his socket, or by his address; what it accepts is nobody's.
#[test]
fn a_listener_that_could_be_asked_for_nothing_says_so() -> Result<()> {
    let (scene, mut server, mut client) = pair("unsaved")?;
    let mut neighbour = scene.outsider_in("neighbour", &client.host)?;
    let listen = Operation::TcpListen {
        at: any(82),
        options: ListenOptions::default(),
    };
    let socket = server.call(listen)?.handle()?;
    let path = scene.sandbox().directory().join("mailbox");
    neighbour
        .call(Operation::FdMailbox { path: path.clone() })?
        .handle()?;
    server.call(Operation::SendFd { path, socket })?.ok()?;
    server.close(socket)?;
    let policy = Policy::new("policy").allow("client", "server", TCP, "82");
    let agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    let status = agent.get("/v1/status")?["handshake"].clone();
    assert_eq!(status["older_failed"], 1, "{status}");
    let client_id = client.id.clone();
    // The very socket that has called is one of this node; whoever shares its address and is managed by nobody has that alone.
    for (port, caller, noted, by) in [
        (4001, &mut client, Noted::Answered, Named::BySocket),
        (4002, &mut neighbour, Noted::Nothing, Named::ByDirectory),
    ] {
        let outcome = at_destination(&Arrived {
            shown: Shown::Unsaved,
            noted,
            from: Place::Prover,
        });
        assert_eq!(outcome.named, by);
        let options = ConnectOptions {
            bind: Some(caller.v4(port)),
            ..ConnectOptions::default()
        };
        let connected = caller.connect_with(server.v4(82), options)?;
        let sent = caller.say(&connected, "word")?;
        caller.was_reset(&connected, sent.as_ref())?;
        let records = agent.records("decision=DENY", 1, |record| {
            record["observer"] == "destination" && record["source"]["port"] == port
        })?;
        let record = &records[0];
        assert!(
            says(record, &client_id, "unknown", "DENY", "unknown_destination"),
            "{record}"
        );
        assert_eq!(record["proof"], outcome.proof.name(), "{record}");
    }
    Ok(())
}
