// SPDX-License-Identifier: Apache-2.0
//! Every decision is a record or a counted loss, whatever happens to the agent.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use zt_tests::probe::{Flood, Operation};
use zt_tests::{Agent, Policy, Scene, TCP, eventually, trail};

/// How long the agent is killed again and again under load.
const STORM: Duration = Duration::from_secs(12);
/// How long the last agent may take for what the others left.
const CAUGHT_UP: Duration = Duration::from_secs(60);
/// One connection in this time, decided at one end or at both.
const PACE: Duration = Duration::from_micros(700);

fn ids(records: &[Value]) -> Result<BTreeSet<&str>> {
    let ids = records
        .iter()
        .map(|record| record["id"].as_str().context("an id"));
    ids.collect()
}

/// What the kernel programs have decided, and what of it never reached the ring buffer.
fn decided(agent: &Agent) -> Result<(u64, u64)> {
    Ok((agent.decisions()?, agent.counter("events_lost")?))
}

#[test]
fn a_killed_agent_loses_no_record_and_its_successor_doubles_none() -> Result<()> {
    let mut scene = Scene::new("exact")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    for port in [80, 81] {
        server
            .serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))?
            .local()?;
    }
    let policy = Policy::new("policy").allow("client", "server", TCP, "80");
    let mut agent = scene.agent(&policy)?.start()?;
    let to = [server.v4(80), server.v6(81)];
    client.send(Operation::ConnectMany(Flood {
        duration: Some(STORM),
        pace: Some(PACE),
        to: to.to_vec(),
        ..Flood::new(to[0], u64::MAX)
    }))?;
    let start = Instant::now();
    let (mut kills, mut random) = (0, 7_u64);
    while start.elapsed() < STORM {
        // The moment within a batch is what matters, and no two are alike.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        thread::sleep(Duration::from_micros(20_000 + (random >> 33) % 200_000));
        agent.kill()?;
        agent.restart()?;
        kills += 1;
    }
    let reply = client.wait()?.ok()?;
    ensure!(kills >= 2, "{kills} kills");
    // What the dead left in the ring takes a while; fewer than decided must not stay fewer.
    let mut records = Vec::new();
    let all = eventually("every decision to be on record", CAUGHT_UP, || {
        records = agent.all_records("type=decision")?;
        let (decisions, lost) = decided(&agent)?;
        Ok(trail::decided(&records) + lost >= decisions)
    });
    let (decisions, lost) = decided(&agent)?;
    println!(
        "{kills} kills, {:?} attempts, {decisions} decisions, {} records of {}, {lost} lost in the ring",
        reply.count,
        records.len(),
        trail::decided(&records)
    );
    all?;
    ensure!(
        decisions == trail::decided(&records) + lost,
        "{decisions} decisions, records of {}, {lost} lost",
        trail::decided(&records)
    );
    ensure!(ids(&records)?.len() == records.len(), "a record is there twice");
    Ok(())
}
