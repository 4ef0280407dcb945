// SPDX-License-Identifier: Apache-2.0
//! Identity in the handshake beside what else happens to TCP: programs of others, options of others, servers that wait for data, small
//! and large segments, and SYNs that are sent twice.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use zt_tests::other_program::{KIND, OtherProgram};
use zt_tests::pair::{any, pair_after_agent, policy};
use zt_tests::probe::{ConnectOptions, Handle, ListenOptions, Operation, TIMEOUT};
use zt_tests::trail::says;
use zt_tests::wire::{ACK, SYN, Segment, Wire};
use zt_tests::{Agent, Party, Scene, eventually};

const PATIENT: Duration = Duration::from_secs(40);

/// `client`, `server` at port 80, and an agent, with somebody else's programs attached between agent and sockets.
fn beside(
    label: &str,
    attach: impl FnOnce(&Scene, &Party, &Party) -> Result<Vec<OtherProgram>>,
) -> Result<(Scene, Party, Party, Agent, Vec<OtherProgram>)> {
    let mut scene = Scene::new(label)?;
    let (mut server, client) = (scene.workload("server")?, scene.workload("client")?);
    let agent = scene
        .agent(&policy())?
        .config("handshake", json!("auto"))
        .start()?;
    let others = attach(&scene, &client, &server)?;
    for port in [80, 81] {
        server.serve(any(port))?.local()?;
    }
    Ok((scene, server, client, agent, others))
}

fn proven(agent: &Agent, count: usize, proof: &str, client: &Party, server: &Party) -> Result<()> {
    agent.records("decision=ALLOW", count, |record| {
        record["observer"] == "source"
            && says(record, &client.id, &server.id, "ALLOW", "rule")
            && record["proof"] == proof
    })?;
    Ok(())
}

fn bearing(segments: &[Segment], kind: u8) -> Vec<u8> {
    let bearing = segments.iter().filter(|segment| segment.option(kind).is_some());
    bearing.map(|segment| segment.flags & (SYN | ACK)).collect()
}

/// Programs that ask for the same callbacks, on the managed root itself, above it and below it.
#[test]
fn others_who_ask_for_the_same_callbacks_keep_them() -> Result<()> {
    let (_scene, server, mut client, agent, _others) =
        beside("beside-callbacks", |scene, client, server| {
            let managed = scene.sandbox().managed();
            let above = managed.relative().parent().expect("a parent");
            [
                managed,
                &zt_tests::Cgroup::at(above)?,
                &client.cgroup,
                &server.cgroup,
            ]
            .into_iter()
            .map(|cgroup| OtherProgram::attach(cgroup, 0))
            .collect()
        })?;
    let to = Wire::open(&server.host, "eth0")?;
    for address in server.everywhere(80) {
        assert_eq!(client.talk(address)?, "ok");
    }
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    proven(&agent, 3, "mutual", &client, &server)?;
    let both = [SYN, SYN | ACK];
    assert_eq!(
        bearing(&to.seen()?, 253),
        [both, both].concat(),
        "two of the three are IPv4"
    );
    assert_eq!(agent.counter("options_no_room")?, 0);
    Ok(())
}

/// One that writes a small option beside ours, on the listener's answers, where there is room for both without time stamps.
#[test]
fn an_option_of_others_is_written_beside_ours() -> Result<()> {
    let (_scene, server, mut client, agent, _others) = beside("beside-both", |scene, client, server| {
        for party in [client, server] {
            party.host.sysctl("net/ipv4/tcp_timestamps", "0")?;
        }
        Ok(vec![OtherProgram::attach(scene.sandbox().managed(), 8)?])
    })?;
    let wire = Wire::open(&server.host, "eth0")?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    proven(&agent, 1, "mutual", &client, &server)?;
    let seen = wire.seen()?;
    assert_eq!(bearing(&seen, 253), [SYN, SYN | ACK], "{seen:?}");
    let theirs = bearing(&seen, KIND);
    assert!(
        theirs.iter().any(|flags| flags & SYN == 0),
        "theirs go on after the handshake: {seen:?}"
    );
    Ok(())
}

/// One that takes the room: the connection goes without, is counted, and is named as if nobody bore an option.
#[test]
fn where_others_take_the_room_it_goes_without() -> Result<()> {
    // Below the managed root, so that it is asked before ours.
    let (_scene, server, mut client, agent, _others) = beside("beside-room", |_, client, _| {
        Ok(vec![OtherProgram::attach(&client.cgroup, 8)?])
    })?;
    let to = Wire::open(&server.host, "eth0")?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    proven(&agent, 1, "none:absent", &client, &server)?;
    assert!(agent.counter("options_no_room")? > 0);
    assert_eq!(agent.counter("tags_invalid")?, 0);
    let seen = to.seen()?;
    assert_eq!(bearing(&seen, 253), Vec::<u8>::new(), "{seen:?}");
    assert!(bearing(&seen, KIND).contains(&SYN), "{seen:?}");
    Ok(())
}

/// `TCP_DEFER_ACCEPT`: the server's kernel waits for data before there is a connection at all.
#[test]
fn a_server_that_waits_for_data_is_proven_to() -> Result<()> {
    let (scene, mut server, mut client, agent) = pair_after_agent("beside-defer", &policy(), |agent| agent)?;
    let mut stranger = scene.outsider_in("stranger", &client.host)?;
    let options = ListenOptions {
        defer_accept: Some(30),
        v6_only: Some(false),
        ..ListenOptions::default()
    };
    // In the place of the server that is there.
    let at = any(82);
    let listener = server.call(Operation::Serve { at, options })?.handle()?;
    agent.change_policy(
        &zt_tests::Policy::new("policy")
            .allow("client", "server", zt_tests::TCP, "82")
            .text(),
    )?;
    for address in server.everywhere(82) {
        assert_eq!(client.talk(address)?, "ok");
    }
    proven(&agent, 3, "mutual", &client, &server)?;
    let before = server.call(Operation::ServeState { socket: listener })?.bytes;
    let connected = stranger.connect(server.v4(82))?;
    let sent = stranger.say(&connected, "word")?;
    stranger.was_reset(&connected, sent.as_ref())?;
    agent.records("", 1, |record| {
        says(record, "unknown", &server.id, "DENY", "proof_missing")
    })?;
    let after = server.call(Operation::ServeState { socket: listener })?.bytes;
    assert_eq!(after, before, "nothing of it arrived");
    Ok(())
}

#[test]
fn segments_may_be_small() -> Result<()> {
    let (_scene, server, mut client, agent) = pair_after_agent("beside-small", &policy(), |agent| agent)?;
    let options = ConnectOptions {
        segment: Some(88),
        ..ConnectOptions::default()
    };
    let wire = Wire::open(&server.host, "eth0")?;
    let socket = client.connect_with(server.v4(80), options)?.handle()?;
    exchange(&mut client, socket, 4096, 16)?;
    proven(&agent, 1, "mutual", &client, &server)?;
    let seen = wire.seen()?;
    assert_eq!(bearing(&seen, 253), [SYN, SYN | ACK], "{seen:?}");
    Ok(())
}

/// Sends and receives so many bytes, a number of times.
fn exchange(client: &mut Party, socket: Handle, piece: usize, times: u32) -> Result<()> {
    for _ in 0..times {
        client
            .call(Operation::Send {
                socket,
                data: "x".repeat(piece),
                repeat: 1,
                timeout: PATIENT,
            })?
            .ok()?;
        let mut missing = piece;
        while missing > 0 {
            let received = client.call(Operation::Recv {
                socket,
                max: missing,
                timeout: PATIENT,
            })?;
            let length = received.ok()?.data.unwrap_or_default().len();
            assert!(length > 0, "the echo ended {missing} bytes before its end");
            missing -= length;
        }
    }
    Ok(())
}

/// Segmentation is left to the interface, where the options of one segment would be those of many.
#[test]
fn bulk_data_bears_nothing() -> Result<()> {
    const LARGE: usize = 3000;
    let (_scene, server, mut client, agent) = pair_after_agent("beside-bulk", &policy(), |agent| agent)?;
    let socket = client.connect(server.v4(80))?.handle()?;
    proven(&agent, 1, "mutual", &client, &server)?;
    let wire = Wire::open(&server.host, "eth0")?;
    exchange(&mut client, socket, 65_536, 20)?;
    let seen = wire.seen()?;
    assert!(
        seen.iter().any(|segment| segment.data.len() > LARGE),
        "the interface takes large segments"
    );
    assert_eq!(bearing(&seen, 253), Vec::<u8>::new());
    Ok(())
}

/// The first SYN is lost, and the second bears the same option: it is about the same sequence number.
#[test]
fn a_syn_that_is_sent_twice_proves_the_same() -> Result<()> {
    let (_scene, server, mut client, agent) = pair_after_agent("beside-twice", &policy(), |agent| agent)?;
    // The addresses are resolved before the cut, so that it is the SYN that waits.
    assert_eq!(client.talk(server.v4(80))?, "ok");
    server.host.cut()?;
    let wire = Wire::open(&server.host, "eth0")?;
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
    server.host.mend()?;
    client.wait()?.ok()?;
    proven(&agent, 2, "mutual", &client, &server)?;
    let again = wire.receive("the SYN that came through", TIMEOUT, |segment| {
        segment.flags == SYN
    })?;
    assert!(again.option(253).is_some(), "{again:?}");
    assert_eq!(agent.counter("tags_invalid")?, 0);
    Ok(())
}
