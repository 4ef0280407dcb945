// SPDX-License-Identifier: Apache-2.0
//! What the agent was not told of, what it may find too late, and what does not fit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use zt_tests::agent_files::Workload;
use zt_tests::hooks::has_packet_hook;
use zt_tests::probe::{Flood, Handle, Operation, TIMEOUT};
use zt_tests::{Agent, Cgroup, Party, Policy, Scene, TCP, eventually, spiffe};

/// On a machine that has other things to do.
const GENEROUS: Duration = Duration::from_secs(30);
/// Workloads that together leave no room in the ring buffer, whatever the share of each...
const FLOODS: u32 = 8;
/// ... if they take this long.
const LONG_ENOUGH: Duration = Duration::from_secs(8);

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// Entries of `zt_workloads`.
fn entries(scene: &Scene) -> Result<usize> {
    let pin = scene
        .sandbox()
        .pins()?
        .join(format!("v{}", zt_common::ABI_VERSION))
        .join("maps/zt_workloads");
    let output = Command::new("bpftool")
        .args(["-j", "map", "dump", "pinned"])
        .arg(pin)
        .output()?;
    let dump: Value = serde_json::from_slice(&output.stdout)?;
    Ok(dump.as_array().context("bpftool lists entries")?.len())
}

/// TCP sockets of a namespace that are bound to the interface that does not exist.
fn fenced(party: &Party) -> Result<usize> {
    let output = party.host.command("ss").args(["-tanH"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter(|line| line.contains("%if2147483646")).count())
}

fn node_event(agent: &Agent, event: &str) -> Result<u64> {
    Ok(agent.metrics()?.sum("zt_node_events_total", &[("event", event)]))
}

#[test]
fn what_a_full_ring_lost_is_made_up_for() -> Result<()> {
    let mut scene = Scene::new("full-ring")?;
    let mut server = scene.workload("server")?;
    let mut clients = (0..FLOODS)
        .map(|number| scene.workload(&format!("client-{number}")))
        .collect::<Result<Vec<_>>>()?;
    let mut binder = scene.workload("binder")?;
    let mut stranger = scene.outsider("stranger")?;
    let agent = scene.agent(&Policy::new("nothing"))?.start()?;
    server.serve(any(80))?.local()?;
    assert!(!has_packet_hook(&server.cgroup)?);

    // Nobody takes anything out of the ring, and so many workloads fill it that what each may add does not leave room.
    agent.signal(Signal::SIGSTOP)?;
    let flood = Flood {
        duration: Some(LONG_ENOUGH),
        ..Flood::new(server.v4(81), u64::MAX)
    };
    for client in &mut clients {
        client.send(Operation::ConnectMany(flood.clone()))?;
    }
    for client in &mut clients {
        client.wait()?.ok()?;
    }
    // A notice is smaller than a decision: a few may still have found room.
    for port in 1000..1010 {
        binder.udp_bind(any(port))?.handle()?;
    }
    // The notices of these have none.
    server.udp_bind(any(53))?.handle()?;
    stranger.connect(server.v4(80))?.handle()?;
    eventually("the refused socket to be behind its fence", TIMEOUT, || {
        Ok(fenced(&server)? == 1)
    })?;
    agent.signal(Signal::SIGCONT)?;

    eventually("the guard of the port that nobody told of", GENEROUS, || {
        has_packet_hook(&server.cgroup)
    })?;
    eventually("the refused socket to be destroyed", GENEROUS, || {
        Ok(fenced(&server)? == 0)
    })?;
    assert!(agent.counter("events_lost")? > 0);
    assert!(agent.counter("notices_lost")? > 0);
    assert!(node_event(&agent, "recovered")? >= 1);
    assert!(node_event(&agent, "fenced_found")? >= 1);
    // A workload that only sends got no guard by it.
    assert!(!has_packet_hook(&clients[0].cgroup)?);
    Ok(())
}

#[test]
fn what_could_not_be_destroyed_is_tried_again_and_recorded_once() -> Result<()> {
    let mut scene = Scene::new("unreached")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let elsewhere = scene.host("elsewhere")?;
    let mut keeper = scene.start("keeper", &client.cgroup, &elsewhere)?;
    let mut stranger = scene.outsider("stranger")?;
    server.serve(any(80))?.local()?;
    stranger.serve(any(80))?.local()?;
    let open = Policy::new("unreached").allow("client", "world", TCP, "80");
    let agent = scene.agent(&open)?.start()?;
    // Somebody in another namespace has the socket, and nobody is left in its own.
    let socket = client.connect(stranger.v4(80))?.handle()?;
    let path = scene.sandbox().directory().join("passed");
    let mailbox = keeper
        .call(Operation::FdMailbox { path: path.clone() })?
        .handle()?;
    client.call(Operation::SendFd { path, socket })?.ok()?;
    let kept = keeper
        .call(Operation::RecvFd {
            socket: mailbox,
            timeout: TIMEOUT,
        })?
        .handle()?;
    let (cgroup, host) = (client.cgroup.clone(), client.host.clone());
    drop(client);
    agent.change_policy(&Policy::new("unreached").text())?;
    eventually("a second try", GENEROUS, || {
        Ok(node_event(&agent, "sweep_failed")? >= 2)
    })?;
    agent.records("decision=DENY", 1, |record| record["reason"] == "unfenced")?;
    keeper.send_text(kept, "word")?.ok()?;

    let _again = scene.start("again", &cgroup, &host)?;
    let end = keeper.call(Operation::WaitEnd {
        socket: kept,
        timeout: GENEROUS,
    })?;
    assert!(end.data.is_some_and(|end| end.starts_with("ECONN")));
    agent.records("decision=DENY", 1, |record| record["reason"] == "revoked")?;
    // However often it was tried, it was told once.
    agent.records("decision=DENY", 1, |record| record["reason"] == "unfenced")?;
    Ok(())
}

#[test]
fn an_older_connection_that_ended_by_itself_is_not_recorded_as_revoked() -> Result<()> {
    let mut scene = Scene::new("ended")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let served = server.serve(any(80))?.handle()?;
    let (closed, kept) = (
        client.connect(server.v4(80))?.handle()?,
        client.connect(server.v6(80))?.handle()?,
    );
    let open = Policy::new("ended").allow("client", "server", TCP, "80");
    let agent = scene.agent(&open)?.start()?;
    client.close(closed)?;
    eventually("the connection to be gone", TIMEOUT, || {
        let state = server.call(Operation::ServeState { socket: served })?;
        Ok(state.open == Some(1))
    })?;
    agent.change_policy(&Policy::new("ended").text())?;
    let end = client.call(Operation::WaitEnd {
        socket: kept,
        timeout: TIMEOUT,
    })?;
    assert!(end.data.is_some_and(|end| end.starts_with("ECONN")));
    let revoked = agent.records("decision=DENY", 2, |record| record["reason"] == "revoked")?;
    let (v4, v6) = (client.host.ipv4.to_string(), client.host.ipv6.to_string());
    for record in revoked {
        let text = record.to_string();
        assert!(text.contains(&v6) && !text.contains(&v4), "{text}");
    }
    assert!(node_event(&agent, "revoked_gone")? >= 1);
    Ok(())
}

/// An ICMP type that no system answers, so that what arrives was sent by the other end.
const WORD: &str = "\u{7f}\u{0}\u{0}\u{0}word";

/// A raw socket for the ICMP of an address's family.
fn raw(party: &mut Party, family_of: IpAddr) -> Result<Handle> {
    let (family, protocol) = match family_of {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
    };
    let kind = libc::SOCK_RAW;
    let made = party.call(Operation::Socket {
        family,
        kind,
        protocol,
    })?;
    made.handle()
}

/// Whether sending fails, and how.
fn sends(party: &mut Party, socket: Handle, to: IpAddr) -> Result<String> {
    let sent = party.call(Operation::UdpSendTo {
        socket: Some(socket),
        to: SocketAddr::new(to, 0),
        data: WORD.to_owned(),
    })?;
    Ok(sent.outcome().to_owned())
}

/// Whether the word comes; neighbours' discovery comes to such sockets too.
fn receives(party: &mut Party, socket: Handle) -> Result<bool> {
    loop {
        let received = party.call(Operation::UdpRecvFrom {
            socket,
            timeout: Duration::from_millis(300),
        })?;
        match received.data {
            Some(data) if data.contains("word") => return Ok(true),
            Some(_) => {}
            None => return Ok(false),
        }
    }
}

#[test]
fn raw_sockets_older_than_enforcement_are_cut_off() -> Result<()> {
    let mut scene = Scene::new("raw-older")?;
    let (mut holder, mut other) = (scene.workload("holder")?, scene.workload("other")?);
    let mut stranger = scene.outsider("stranger")?;
    let policy = Policy::new("nothing");
    let mut agent = scene.agent(&policy)?.mode("observe").start()?;
    let (here, there) = (holder.host.clone(), stranger.host.clone());
    let mut pairs = Vec::new();
    for (mine, theirs) in [
        (IpAddr::V4(here.ipv4), IpAddr::V4(there.ipv4)),
        (IpAddr::V6(here.ipv6), IpAddr::V6(there.ipv6)),
    ] {
        pairs.push((
            (raw(&mut holder, mine)?, mine),
            (raw(&mut stranger, theirs)?, theirs),
        ));
    }
    let spared = raw(&mut other, there.ipv4.into())?;
    for ((mine, here), (theirs, there)) in &pairs {
        assert_eq!(sends(&mut holder, *mine, *there)?, "ok");
        assert!(receives(&mut stranger, *theirs)?);
        assert_eq!(sends(&mut stranger, *theirs, *here)?, "ok");
        assert!(receives(&mut holder, *mine)?);
        // Left in the buffer: what came before must not be read after, either.
        assert_eq!(sends(&mut stranger, *theirs, *here)?, "ok");
    }

    scene.declare("holder", |workload| workload.mode("enforce"))?;
    agent.files.write_workloads(&scene.workloads())?;
    eventually("both to be cut off", GENEROUS, || {
        Ok(node_event(&agent, "raw_fenced")? >= 2)
    })?;
    for ((mine, here), (theirs, there)) in &pairs {
        assert!(!receives(&mut holder, *mine)?, "what was queued");
        assert_ne!(sends(&mut holder, *mine, *there)?, "ok");
        assert!(!receives(&mut stranger, *theirs)?);
        assert_eq!(sends(&mut stranger, *theirs, *here)?, "ok");
        assert!(!receives(&mut holder, *mine)?, "what is sent now");
    }
    // Who only observes keeps what it has.
    assert_eq!(sends(&mut other, spared, there.ipv4.into())?, "ok");
    assert_eq!(node_event(&agent, "raw_left")?, 0);
    let told = agent.records("decision=DENY", 2, |record| {
        record["reason"] == "revoked" && record["destination"]["entity"] == "raw-sockets"
    })?;
    assert!(told.iter().all(|record| record["hook"] == "sweep"));
    assert!(told.iter().all(|record| record["source"]["pid"] == holder.pid()));
    // The next agent finds them as they are, and has nothing to say of them.
    agent.terminate()?;
    agent.restart()?;
    for event in ["raw_fenced", "raw_left"] {
        assert_eq!(node_event(&agent, event)?, 0, "{event}");
    }
    agent.records("decision=DENY", 2, |record| record["hook"] == "sweep")?;
    Ok(())
}

#[test]
fn only_declared_cgroups_take_room_in_the_map() -> Result<()> {
    let mut scene = Scene::new("room")?;
    let (server, client) = (scene.workload("server")?, scene.workload("client")?);
    let nested = client.cgroup.child("nested")?;
    let agent = scene.agent(&Policy::new("nothing"))?.start()?;
    assert_eq!(entries(&scene)?, 2);
    let late = nested.child("late")?;
    let id = late.id()?;
    eventually("the nested cgroup to be seen", TIMEOUT, || {
        let identities = agent.get("/v1/identities")?;
        Ok(identities.to_string().contains(&id.to_string()))
    })?;
    assert_eq!(entries(&scene)?, 2);
    // A process deep inside is the workload all the same.
    let mut deep = scene.start("deep", &late, &client.host)?;
    assert_eq!(deep.tcp(server.v4(80))?, "EPERM");

    // Declared by itself, it is one of its own, and falls back to what is around it when it is not any more.
    scene.add("inner", Workload::new(&spiffe("inner"), &nested));
    agent.files.write_workloads(&scene.workloads())?;
    eventually("the inner workload to be known", TIMEOUT, || {
        Ok(entries(&scene)? == 3)
    })?;
    let without: Vec<Workload> = scene.workloads().into_iter().take(2).collect();
    agent.files.write_workloads(&without)?;
    eventually("the inner workload to be forgotten", TIMEOUT, || {
        Ok(entries(&scene)? == 2)
    })?;
    assert_eq!(deep.tcp(server.v4(80))?, "EPERM");
    Ok(())
}

#[test]
fn a_workload_that_is_declared_inside_another_takes_its_connections_along() -> Result<()> {
    let mut scene = Scene::new("inside")?;
    let mut server = scene.workload("server")?;
    let outer = scene.workload("outer")?;
    let nested = outer.cgroup.child("nested")?;
    let mut inner = scene.start("inner", &nested, &outer.host)?;
    server.serve(any(80))?.local()?;
    let policy = Policy::new("inside").allow("outer", "server", TCP, "80");
    let agent = scene.agent(&policy)?.start()?;
    let socket = inner.connect(server.v4(80))?.handle()?;
    scene.add("inner", Workload::new(&spiffe("inner"), &nested));
    agent.files.write_workloads(&scene.workloads())?;
    let end = inner.call(Operation::WaitEnd {
        socket,
        timeout: GENEROUS,
    })?;
    assert!(end.data.is_some_and(|end| end.starts_with("ECONN")));
    Ok(())
}

#[test]
fn more_workloads_or_addresses_than_fit_are_refused_whole() -> Result<()> {
    let mut scene = Scene::new("too-many")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    server.serve(any(80))?.local()?;
    let policy = Policy::new("too-many").allow("client", "server", TCP, "80");
    let agent = scene.agent(&policy)?.start()?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    let absent = Cgroup::absent(scene.sandbox().managed(), "crowded");
    let address = |number: u32| IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + number));
    let addresses: Vec<IpAddr> = (0..262_143).map(address).collect();
    scene.add(
        "crowded",
        Workload::new(&spiffe("crowded"), &absent).at(addresses),
    );
    agent.files.write_workloads(&scene.workloads())?;
    eventually("the file to be refused", GENEROUS, || {
        let log = agent.log()?;
        Ok(log.contains("workloads not loaded") && log.contains("262144"))
    })?;
    assert_eq!(client.talk(server.v4(80))?, "ok");
    assert_eq!(entries(&scene)?, 2);
    Ok(())
}
