// SPDX-License-Identifier: Apache-2.0
//! Nothing of zt runs for what is sent on an established TCP connection, by the kernel's own accounting of every program.
//!
//! `ZT_SEGMENTS` says how many segments are sent; 10,000,000 take some minutes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use zt_tests::datagram::guarded;
use zt_tests::pair::any;
use zt_tests::probe::{Flood, Handle, Operation};
use zt_tests::programs::{Measuring, Program, held_by};
use zt_tests::{Agent, Host, Party, Policy, Scene, TCP, UDP};

const SEGMENTS: u64 = 200_000;
/// Round trips before the segments are counted again.
const TURN: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(60);

/// How many segments to send.
fn wanted() -> Result<u64> {
    let said = std::env::var("ZT_SEGMENTS").ok();
    said.map_or(Ok(SEGMENTS), |said| {
        said.parse()
            .with_context(|| format!("ZT_SEGMENTS={said} is no number"))
    })
}

/// TCP segments of a namespace, of both families: those that it received and those that it sent.
fn segments(host: &Host) -> Result<(u64, u64)> {
    let output = host.command("cat").arg("/proc/net/snmp").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = lines.next().zip(lines.next()).context("counters of TCP")?;
    let counters: BTreeMap<&str, &str> = names.split(' ').zip(values.split(' ')).collect();
    let counter = |name: &str| -> Result<u64> {
        let value = counters
            .get(name)
            .with_context(|| format!("no {name} in {text}"))?;
        Ok(value.parse()?)
    };
    Ok((counter("InSegs")?, counter("OutSegs")?))
}

fn round_trips(party: &mut Party, socket: Handle, count: u64, size: usize) -> Result<()> {
    let timeout = PATIENCE;
    let done = party.call(Operation::RoundTrips {
        socket,
        count,
        size,
        timeout,
    })?;
    done.ok().map(drop)
}

/// `client` may reach `server`, which receives no datagrams, and `receiver`, which does. Every segment is a packet of its own.
fn cast(label: &str) -> Result<(Scene, [Party; 3], Agent, Measuring)> {
    let mut scene = Scene::new(label)?;
    let mut server = scene.workload("server")?;
    let (mut receiver, client) = (scene.workload("receiver")?, scene.workload("client")?);
    let policy = Policy::new("established")
        .allow("client", "server", TCP, "80")
        .allow("client", "receiver", TCP, "80")
        .allow("client", "receiver", UDP, "80");
    let agent = scene.agent(&policy)?.start()?;
    for party in [&mut server, &mut receiver] {
        party.serve(any(80))?.local()?;
    }
    receiver.udp_bind(any(80))?.handle()?;
    guarded(&receiver)?;
    for party in [&server, &receiver, &client] {
        party.host.ip("link set eth0 gso_max_segs 1\n")?;
    }
    let held = held_by(agent.pid().context("it runs")?)?;
    for name in ["zt_connect4", "zt_sock_ops", "zt_udp_guard", "zt_refuse_in"] {
        ensure!(held.contains_key(name), "{name} is none of {held:?}");
    }
    let measuring = Measuring::begin(held)?;
    Ok((scene, [server, receiver, client], agent, measuring))
}

/// Those that ran at all.
fn ran(programs: &BTreeMap<String, Program>) -> BTreeMap<&str, u64> {
    let ran = programs.iter().filter(|(_, program)| program.runs > 0);
    ran.map(|(name, program)| (name.as_str(), program.runs)).collect()
}

#[test]
fn nothing_runs_for_a_segment_of_an_established_connection() -> Result<()> {
    let (_scene, [server, _receiver, mut client], agent, measuring) = cast("established")?;
    // That the counts move at all: an opened connection has them move.
    let mut sockets = Vec::new();
    for (to, hook) in [(server.v4(80), "zt_connect4"), (server.v6(80), "zt_connect6")] {
        let opened = measuring.during(|| {
            let socket = client.connect(to)?.handle()?;
            // The server's end is established with the first byte at the latest.
            round_trips(&mut client, socket, 1, 1)?;
            sockets.push(socket);
            Ok(())
        })?;
        let opened = ran(&opened);
        assert!(
            opened.contains_key(hook) && opened["zt_sock_ops"] >= 2,
            "{opened:?}"
        );
    }
    agent.records("decision=ALLOW", 2, |record| record["proof"] == "mutual")?;

    let wanted = wanted()?;
    let (_, before) = segments(&client.host)?;
    let (_, answers) = segments(&server.host)?;
    let mut sent = 0;
    let during = measuring.during(|| {
        while sent < wanted {
            for socket in &sockets {
                // One byte in a segment, then full ones.
                let size = if sent < wanted / 10 { 1 } else { 8192 };
                round_trips(&mut client, *socket, TURN, size)?;
            }
            sent = segments(&client.host)?.1 - before + segments(&server.host)?.1 - answers;
        }
        Ok(())
    })?;
    eprintln!(
        "{sent} segments, of which none ran any of {} programs",
        during.len()
    );
    assert_eq!(ran(&during), BTreeMap::new(), "for {sent} segments");
    Ok(())
}

#[test]
fn a_packet_guard_costs_who_receives_datagrams_and_nobody_else() -> Result<()> {
    const COUNT: u64 = 5000;
    let (_scene, [_server, receiver, mut client], _agent, measuring) = cast("packet-guard")?;
    let socket = client.connect(receiver.v4(80))?.handle()?;
    round_trips(&mut client, socket, 1, 1)?;
    let (before, _) = segments(&receiver.host)?;
    let tcp = measuring.during(|| round_trips(&mut client, socket, COUNT, 1))?;
    let received = segments(&receiver.host)?.0 - before;
    let guard = tcp["zt_udp_guard"];
    assert_eq!(ran(&tcp), BTreeMap::from([("zt_udp_guard", guard.runs)]));
    assert_eq!(guard.runs, received);

    let to = receiver.v4(80);
    let udp = measuring.during(|| {
        let sent = client.call(Operation::SendMany(Flood::new(to, COUNT)))?.ok()?;
        ensure!(sent.outcomes[0].count("ok") == COUNT, "{sent:?}");
        Ok(())
    })?;
    let datagrams = udp["zt_udp_guard"];
    // Some may still be under way when it has been counted.
    assert!(datagrams.runs > COUNT / 2, "{datagrams:?}");
    eprintln!(
        "zt_udp_guard: {:.0} ns for a segment of TCP, {:.0} ns for a datagram; zt_sendmsg4: {:.0} ns",
        guard.nanoseconds(),
        datagrams.nanoseconds(),
        udp["zt_sendmsg4"].nanoseconds(),
    );
    Ok(())
}
