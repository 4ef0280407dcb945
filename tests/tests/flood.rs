// SPDX-License-Identifier: Apache-2.0
//! What one workload does in a tight loop must not cost the others their records or their flows, nor hide what it does
//! beside that.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use zt_tests::datagram::{guarded, send, take};
use zt_tests::probe::{Flood, Operation, TIMEOUT};
use zt_tests::{Agent, Party, Policy, Scene, TCP, UDP, eventually, trail};

/// Attempts of whoever does not flood.
const PATIENT: u64 = 300;
/// How long a loop goes on while the agent is killed.
const STORM: Duration = Duration::from_secs(10);
/// How long the last agent may take for what the others left.
const CAUGHT_UP: Duration = Duration::from_secs(60);

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
    let refused = paced(&server, 1000, PATIENT);
    let reply = quiet.call(Operation::ConnectMany(refused))?.ok()?;
    assert!(
        reply.outcomes.iter().all(|of| of.count("EPERM") == 1),
        "{reply:?}"
    );
    agent.signal(Signal::SIGCONT)?;
    let records = agent.records(&format!("source={}", quiet.id), usize::try_from(PATIENT)?, |_| {
        true
    })?;
    assert_eq!(ports(&records), (1000..1000 + PATIENT).collect());
    // The flood did fill it, and what had no room is counted: not one decision is unaccounted for.
    let lost = agent.counter("events_lost")?;
    ensure!(
        lost > 0,
        "{tried} refusals did not fill the ring: the test shows nothing"
    );
    assert_eq!(agent.counter("denied_enforced")?, tried + PATIENT);
    Ok(())
}

/// One attempt after the other at as many ports, from one on.
fn paced(server: &Party, from: u16, count: u64) -> Flood {
    Flood {
        to: (from..)
            .take(count as usize)
            .map(|port| server.v4(port))
            .collect(),
        pace: Some(Duration::from_millis(10)),
        ..Flood::new(server.v4(from), count)
    }
}

/// The ports that records name, each of which is the one of its kind.
fn ports(records: &[Value]) -> BTreeSet<u64> {
    let port = |record: &Value| {
        assert_eq!(record["count"], 1, "{record}");
        record["destination"]["port"].as_u64().unwrap_or_default()
    };
    records.iter().map(port).collect()
}

/// While nobody empties the ring buffer, a workload that has had its share of it cannot cover what else it tries.
#[test]
fn a_flood_hides_no_first_denial_of_who_makes_it() -> Result<()> {
    const TRIES: u64 = 60;
    let mut scene = Scene::new("cover")?;
    let server = scene.workload("server")?;
    let mut noisy = scene.workload("noisy")?;
    let mut other = scene.start("other", &noisy.cgroup, &noisy.host)?;
    let agent = scene
        .agent(&Policy::new("cover").allow("server", "noisy", TCP, "1"))?
        .start()?;
    agent.signal(Signal::SIGSTOP)?;
    // More than half of the ring: from here on the loop has its share in each moment before anybody else has any.
    noisy
        .call(Operation::ConnectMany(Flood::new(server.v4(80), 250_000)))?
        .ok()?;
    noisy.send(Operation::ConnectMany(Flood {
        duration: Some(TIMEOUT),
        ..Flood::new(server.v4(80), 1_000_000)
    }))?;
    let reply = other
        .call(Operation::ConnectMany(paced(&server, 1000, TRIES)))?
        .ok()?;
    assert!(
        reply.outcomes.iter().all(|of| of.count("EPERM") == 1),
        "{reply:?}"
    );
    noisy.wait()?.ok()?;
    agent.signal(Signal::SIGCONT)?;
    let told = agent.records("decision=DENY", usize::try_from(TRIES)?, |record| {
        record["destination"]["port"] != 80
    })?;
    assert_eq!(ports(&told), (1000..1000 + TRIES).collect());
    ensure!(
        agent.counter("events_lost")? > 0,
        "the loop did not fill the ring: the test shows nothing"
    );
    Ok(())
}

/// A workload is refused as fast as it can try while agents are killed: it has few records, others have theirs, and the sums are
/// exact.
#[test]
fn a_refused_loop_is_few_records_whose_sums_are_exact_and_hides_nobody() -> Result<()> {
    let mut scene = Scene::new("loop")?;
    let (mut server, mut noisy) = (scene.workload("server")?, scene.workload("noisy")?);
    let mut quiet = scene.workload("quiet")?;
    let mut beside = scene.start("beside", &noisy.cgroup, &noisy.host)?;
    server.serve(any(81))?.local()?;
    let policy = Policy::new("loop").allow("quiet", "server", TCP, "81");
    let mut agent = scene.agent(&policy)?.start()?;
    noisy.send(Operation::ConnectMany(Flood {
        duration: Some(STORM),
        ..Flood::new(server.v4(80), u64::MAX)
    }))?;
    let start = Instant::now();
    let (mut kills, mut port) = (0, 1000_u16);
    while start.elapsed() < STORM {
        for attempt in 0..10 {
            // Half of them while nobody empties the ring buffer.
            if attempt == 5 {
                agent.kill()?;
                kills += 1;
            }
            assert_eq!(quiet.tcp(server.v4(port))?, "EPERM");
            assert_eq!(quiet.tcp(server.v4(81))?, "ok");
            assert_eq!(beside.tcp(server.v4(port))?, "EPERM");
            port += 1;
        }
        agent.restart()?;
    }
    let tried = noisy.wait()?.ok()?.count.context("a count")?;
    ensure!(kills >= 2 && tried > 100_000, "{kills} kills, {tried} attempts");
    let (records, lost) = accounted(&agent)?;
    println!(
        "{kills} kills, {tried} attempts, {} records, {lost} lost in the ring",
        records.len()
    );
    // In each second as many as are told one by one, and a few for each run of an agent; the others have theirs.
    ensure!(
        (records.len() as u64) < tried / 100,
        "{} records of {tried} attempts",
        records.len()
    );
    let wanted: BTreeSet<u64> = (1000..u64::from(port)).collect();
    for party in [&quiet, &noisy] {
        let firsts = records.iter().filter(|record| {
            record["source"]["spiffe_id"] == party.id
                && record["decision"] == "DENY"
                && record["destination"]["port"] != 80
        });
        assert_eq!(
            ports(&firsts.cloned().collect::<Vec<_>>()),
            wanted,
            "{}",
            party.id
        );
    }
    let let_through = records
        .iter()
        .filter(|record| record["decision"] == "ALLOW" && record["destination"]["port"] == 81);
    assert_eq!(let_through.count(), wanted.len());
    // The first of the loop is there by itself, before all that were joined.
    let first = records
        .iter()
        .find(|record| record["destination"]["port"] == 80)
        .context("records of the loop")?;
    assert_eq!(first["count"], 1);
    Ok(())
}

/// All records, and how many decisions were lost in the ring buffer, once both together are all that the kernel counts.
fn accounted(agent: &Agent) -> Result<(Vec<Value>, u64)> {
    let (mut records, mut lost, mut decisions) = (Vec::new(), 0, 0);
    let all = eventually("every decision to be on record", CAUGHT_UP, || {
        records = agent.all_records("type=decision")?;
        (lost, decisions) = (agent.counter("events_lost")?, agent.decisions()?);
        Ok(trail::decided(&records) + lost >= decisions)
    });
    let sum = trail::decided(&records);
    all.with_context(|| format!("{decisions} decisions, records of {sum}, {lost} lost"))?;
    ensure!(
        sum + lost == decisions,
        "{decisions} decisions, records of {sum}, {lost} lost"
    );
    Ok((records, lost))
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
