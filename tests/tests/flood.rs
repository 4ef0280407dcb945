// SPDX-License-Identifier: Apache-2.0
//! What one workload does in a tight loop must not cost the others their records or their flows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use zt_tests::datagram::{guarded, send, take};
use zt_tests::probe::{Flood, Operation, TIMEOUT};
use zt_tests::{Policy, Scene, TCP, UDP};

/// Attempts of whoever does not flood.
const PATIENT: u64 = 300;

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

/// While nobody empties the ring buffer, a workload that fills it leaves room for the records of another.
#[test]
fn a_flood_of_refusals_leaves_room_for_the_records_of_others() -> Result<()> {
    let mut scene = Scene::new("flood")?;
    let server = scene.workload("server")?;
    let (mut noisy, mut quiet) = (scene.workload("noisy")?, scene.workload("quiet")?);
    let agent = scene
        .agent(&Policy::new("flood").allow("server", "noisy", TCP, "1"))?
        .start()?;
    agent.signal(Signal::SIGSTOP)?;
    // More than twice what the ring holds.
    let flood = Flood::new(server.v4(80), 250_000);
    let tried = noisy
        .call(Operation::ConnectMany(flood))?
        .ok()?
        .count
        .unwrap_or_default();
    let paced = Flood {
        pace: Some(Duration::from_millis(10)),
        ..Flood::new(server.v4(80), PATIENT)
    };
    let reply = quiet.call(Operation::ConnectMany(paced))?.ok()?;
    assert_eq!(reply.outcomes[0].count("EPERM"), PATIENT);
    agent.signal(Signal::SIGCONT)?;
    agent.records(&format!("source={}", quiet.id), usize::try_from(PATIENT)?, |_| {
        true
    })?;
    // The flood did fill it, and what had no room is counted: not one decision is unaccounted for.
    let lost = agent.counter("events_lost")?;
    ensure!(
        lost > 0,
        "{tried} refusals did not fill the ring: the test shows nothing"
    );
    assert_eq!(agent.counter("denied_enforced")?, tried + PATIENT);
    Ok(())
}

/// Flows that policy denies cannot displace flows that it allows.
#[test]
fn denied_flows_displace_none_that_is_allowed() -> Result<()> {
    let mut scene = Scene::new("displace")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut noisy = scene.workload("noisy")?;
    let policy = Policy::new("displace").allow("client", "server", UDP, "53");
    let agent = scene.agent(&policy)?.start()?;
    let socket = server.udp_bind(any(53))?.handle()?;
    guarded(&server)?;
    let from = client.udp_bind(any(0))?.handle()?;
    send(&mut client, Some(from), server.v4(53), "question")?.ok()?;
    let question = take(&mut server, socket, TIMEOUT)?.ok()?;
    let back = question.peer.unwrap_or_else(|| any(0));
    // More flows than a table holds, all refused: as many at a time as a process may have sockets.
    for turn in 0..90_u16 {
        let to: Vec<_> = (0..900)
            .map(|port| {
                let ip = Ipv4Addr::new(10, 99, 200, turn as u8);
                SocketAddr::new(ip.into(), 1000 + port)
            })
            .collect();
        let flood = Flood {
            count: to.len() as u64,
            to,
            ..Flood::new(server.v4(1), 1)
        };
        let reply = noisy.call(Operation::SendMany(flood))?.ok()?;
        assert_eq!(reply.count, Some(900));
    }
    send(&mut server, Some(socket), back, "answer")?.ok()?;
    assert_eq!(take(&mut client, from, TIMEOUT)?.data.as_deref(), Some("answer"));
    send(&mut client, Some(from), server.v4(53), "again")?.ok()?;
    agent.records("decision=ALLOW", 1, |_| true)?;
    Ok(())
}
