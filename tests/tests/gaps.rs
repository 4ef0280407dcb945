// SPDX-License-Identifier: Apache-2.0
//! No gap, whenever an agent dies: it is killed at moments of its start and of its work that nobody chose, while policy changes and
//! cgroups are born under load. What came of each attempt is counted by who made it, and by who was not to be reached.
//!
//! `ZT_KILLS=200` and `ZT_BIRTHS=10000` have it go on for minutes; `ZT_TEST_SEED` is what it printed the last time.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use zt_tests::entries::spread;
use zt_tests::pair::{any, policy};
use zt_tests::probe::{Flood, Operation, Outcomes, TIMEOUT};
use zt_tests::{Scene, TCP, asked, eventually};

/// How long load is made at a time.
const ROUND: Duration = Duration::from_secs(4);
/// One attempt in this time, of each of two.
const PACE: Duration = Duration::from_millis(2);
/// An agent lives no longer than this: somewhat longer than it takes to be ready.
const LIFE: Duration = Duration::from_millis(1200);

#[test]
fn whenever_the_agent_dies_no_verdict_changes_and_no_decision_is_lost() -> Result<()> {
    let (kills, births) = (asked("ZT_KILLS", 12)?, asked("ZT_BIRTHS", 2000)?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = asked("ZT_TEST_SEED", now)?;
    println!("ZT_TEST_SEED={seed}");
    let mut random = seed;

    let mut scene = Scene::new("gaps")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut midwife = scene.outsider_in("midwife", &client.host)?;
    let mut sender = scene.start("sender", &client.cgroup, &client.host)?;
    server.serve(any(80))?.local()?;
    let shut = server.serve(any(81))?.handle()?;
    let mut agent = scene.agent(&policy())?.start()?;
    let flood = |to: [SocketAddr; 2]| Flood {
        duration: Some(ROUND),
        pace: Some(PACE),
        to: to.to_vec(),
        ..Flood::new(to[0], u64::MAX)
    };

    let (mut killed, mut born, mut reloads, mut worked) = (0, 0, 0_u64, 0);
    while killed < kills || born < births {
        client.send(Operation::ConnectMany(Flood {
            echo: true,
            ..flood([server.v4(80), server.v6(81)])
        }))?;
        sender.send(Operation::SendMany(flood([server.v6(80), server.v4(81)])))?;
        // As many as are left; in each round some while agents die.
        let count = u32::try_from((births - born).min(1000))?;
        midwife.send(Operation::Birth {
            parent: client.cgroup.path().to_owned(),
            count,
            to: server.v4(81),
        })?;
        let begun = Instant::now();
        while begun.elapsed() < ROUND {
            reloads += 1;
            let text = policy().allow("client", "server", TCP, &(9000 + reloads % 100).to_string());
            agent.files.write_policy("policy.yaml", &text.text())?;
            let most = u64::try_from(LIFE.as_micros())?;
            random = spread(random);
            // Some die while they begin, and others at work.
            if killed % 3 == 2 {
                agent.wait_ready()?;
                worked += 1;
            }
            thread::sleep(Duration::from_micros(random % most));
            agent.kill()?;
            killed += 1;
            agent.begin_again()?;
        }
        for (party, who) in [(&mut client, "connections"), (&mut sender, "datagrams")] {
            let reply = party.wait()?.ok()?;
            let [good, bad] = &reply.outcomes[..] else {
                anyhow::bail!("two destinations: {reply:?}")
            };
            let outcomes = |outcome: &Outcomes| -> Vec<String> { outcome.counts.keys().cloned().collect() };
            ensure!(
                outcomes(good) == ["ok"] && outcomes(bad) == ["EPERM"],
                "{who}: {:?} where policy allows, {:?} where it does not",
                good.counts,
                bad.counts
            );
        }
        let reply = midwife.wait()?.ok()?;
        let refused = reply.counts.get("EPERM").copied().unwrap_or(0);
        ensure!(refused == u64::from(count), "the newborn: {:?}", reply.counts);
        born += refused;
    }
    println!("killed {killed} times, {worked} of them at work, {born} births, {reloads} changes of policy");
    ensure!(worked > 0, "no agent was ready before it died");
    let reached = server.call(Operation::ServeState { socket: shut })?.ok()?;
    ensure!(reached.count == Some(0), "somebody came through: {reached:?}");

    // The last one is whole, and accounts for what all of them left.
    agent.wait_ready().context("after the last kill")?;
    agent.settled("store_failed", 0)?;
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    // What was written last is in force: nobody listens at its port.
    let port = u16::try_from(9000 + reloads % 100)?;
    eventually("the last policy to be in force", TIMEOUT, || {
        Ok(client.tcp(server.v4(port))? == "ECONNREFUSED")
    })?;
    Ok(())
}
