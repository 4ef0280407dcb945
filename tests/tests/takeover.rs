// SPDX-License-Identifier: Apache-2.0
//! The agent comes and goes; what is enforced does not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use zt_tests::hooks::{attached, exists, pins};
use zt_tests::pair::{any, pair, policy};
use zt_tests::probe::{Flood, Operation, TIMEOUT};
use zt_tests::trail::says;
use zt_tests::{Agent, Policy, TCP, eventually};

/// How long crashes, restarts and reloads go on under load.
const STORM: Duration = Duration::from_secs(12);
const PACE: Duration = Duration::from_micros(500);
const SOON: Duration = Duration::from_millis(200);

/// Program and link of each hook, as the status tells them.
fn hooks(agent: &Agent) -> Result<BTreeMap<String, (u64, u64)>> {
    let status = agent.get("/v1/status")?;
    let hooks = status["hooks"].as_array().context("the status has hooks")?;
    let number =
        |hook: &Value, field: &str| hook[field].as_u64().with_context(|| format!("{field} in {hook}"));
    // Those of the sockhash have no link.
    let linked = hooks.iter().filter(|hook| !hook["link_id"].is_null());
    linked
        .map(|hook| {
            assert_eq!(hook["attached"], true, "{hook}");
            let program = hook["program"].as_str().context("a program")?.to_owned();
            Ok((program, (number(hook, "program_id")?, number(hook, "link_id")?)))
        })
        .collect()
}

#[test]
fn crashes_restarts_and_reloads_never_change_a_verdict() -> Result<()> {
    let (scene, server, mut client) = pair("death")?;
    let mut agent = scene.agent(&policy())?.start()?;
    let mut sender = scene.start("sender", &client.cgroup, &client.host)?;
    let flood = |to: [SocketAddr; 2], echo| Flood {
        duration: Some(STORM),
        pace: Some(PACE),
        echo,
        to: to.to_vec(),
        ..Flood::new(to[0], u64::MAX)
    };
    client.send(Operation::ConnectMany(flood(
        [server.v4(80), server.v6(81)],
        true,
    )))?;
    sender.send(Operation::SendMany(flood([server.v6(80), server.v4(81)], false)))?;
    let start = Instant::now();
    let (mut restarts, mut reloads) = (0, 0);
    while start.elapsed() < STORM {
        for more in 0..10 {
            let text = policy().allow("client", "server", TCP, &(9000 + more).to_string());
            agent.files.write_policy("policy.yaml", &text.text())?;
            reloads += 1;
        }
        // In the middle of whatever it is doing.
        if restarts % 2 == 0 {
            agent.kill()?;
        } else {
            assert!(agent.terminate()?.success());
        }
        agent.restart()?;
        restarts += 1;
    }
    println!("{restarts} restarts, {reloads} reloads");
    assert!(restarts >= 3);
    for (party, who) in [(&mut client, "connections"), (&mut sender, "datagrams")] {
        let reply = party.wait()?.ok()?;
        let [good, bad] = &reply.outcomes[..] else {
            panic!("two destinations: {reply:?}")
        };
        println!("{who}: {:?} {:?}", good.counts, bad.counts);
        assert_eq!(good.counts.keys().collect::<Vec<_>>(), ["ok"], "{who}");
        assert_eq!(bad.counts.keys().collect::<Vec<_>>(), ["EPERM"], "{who}");
    }
    Ok(())
}

#[test]
fn a_dead_agent_enforces_and_its_successor_records() -> Result<()> {
    let (scene, mut server, mut client) = pair("dead")?;
    let mut stranger = scene.outsider("stranger")?;
    let mut agent = scene.agent(&policy())?.start()?;
    let listener = server.listen(any(82))?.handle()?;
    agent.kill()?;
    for _ in 0..10 {
        assert_eq!(client.talk(server.v4(80))?, "ok");
        assert_eq!(client.talk(server.v6(81))?, "EPERM");
        assert_eq!(client.udp(server.v4(81))?, "EPERM");
    }
    // Refused by the fences alone: nobody is there to destroy it.
    let socket = stranger.connect(server.v4(82))?.handle()?;
    stranger.send_text(socket, "secret")?;
    let accepted = server.call(Operation::Accept {
        socket: listener,
        timeout: SOON,
    })?;
    if let Some(socket) = accepted.socket {
        let (max, timeout) = (64, SOON);
        let received = server.call(Operation::Recv { socket, max, timeout })?;
        assert_eq!(received.data.unwrap_or_default(), "");
    }
    agent.restart()?;
    // Of datagrams, each from a socket of its own and so a flow of its own, as of connections.
    agent.records("decision=DENY", 20, |record| {
        says(record, &client.id, &server.id, "DENY", "no_rule")
    })?;
    agent.records("decision=ALLOW", 10, |record| record["observer"] == "source")?;
    agent.records("decision=DENY", 1, |record| record["hook"] == "established")?;
    eventually("the fenced socket to be destroyed", TIMEOUT, || {
        let output = server
            .host
            .command("ss")
            .args(["-tanH", "state", "connected"])
            .output()?;
        Ok(!String::from_utf8_lossy(&output.stdout).contains(&stranger.host.ipv4.to_string()))
    })?;
    Ok(())
}

#[test]
fn a_successor_takes_the_links_over_and_brings_its_own_programs() -> Result<()> {
    let (scene, server, mut client) = pair("takeover")?;
    let mut agent = scene.agent(&policy())?.start()?;
    let before = hooks(&agent)?;
    let live = client.connect(server.v4(80))?.handle()?;
    for crash in [true, false] {
        if crash {
            agent.kill()?;
        } else {
            agent.terminate()?;
        }
        // Attached without an agent: by the links that are pinned.
        let ids: Vec<u64> = attached(scene.sandbox().managed())?
            .iter()
            .map(|found| found.id)
            .collect();
        assert!(ids.len() >= before.len());
        agent.restart()?;
    }
    let after = hooks(&agent)?;
    assert_eq!(before.len(), after.len());
    for (program, (old, link)) in &before {
        let (new, same_link) = after[program];
        assert_eq!(same_link, *link, "{program}");
        assert_ne!(new, *old, "{program}");
        assert!(
            !exists("prog", *old)?,
            "{program} of the predecessor is still loaded"
        );
    }
    // What the status says is what the kernel says.
    let kernel: Vec<u64> = attached(scene.sandbox().managed())?
        .iter()
        .map(|found| found.id)
        .collect();
    for (program, (id, _)) in &after {
        assert!(kernel.contains(id), "{program}");
    }
    // A connection of the first agent's time is still known to the third, and is revoked when it must be.
    assert_eq!(client.end(live, Duration::ZERO)?, "alive");
    agent.change_policy(&Policy::new("policy").text())?;
    client.dies(live)?;
    Ok(())
}

#[test]
fn detaching_leaves_nothing() -> Result<()> {
    let (scene, mut server, mut client) = pair("detach")?;
    let mut agent = scene.agent(&policy())?.start()?;
    server.udp_bind(any(80))?.handle()?;
    let mut programs: Vec<u64> = hooks(&agent)?.values().map(|(program, _)| *program).collect();
    programs.extend(attached(&server.cgroup)?.iter().map(|guard| guard.id));
    let directory = scene.sandbox().pins()?;
    assert!(!pins(&directory)?.is_empty());
    agent.terminate()?;
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");

    // Nobody is asked without a terminal, and the answer is no.
    let refused = agent
        .command(&["detach"])
        .stdin(std::process::Stdio::null())
        .output()?;
    assert!(!refused.status.success());
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");

    let output = agent.command(&["detach", "--yes"]).output()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The kernel takes a hook away a moment after its last pin.
    eventually("the hooks to be gone", TIMEOUT, || {
        Ok(client.tcp(server.v4(81))? == "ok")
    })?;
    assert_eq!(pins(&directory)?, Vec::<std::path::PathBuf>::new());
    assert!(!directory.exists());
    for cgroup in [scene.sandbox().managed(), &server.cgroup] {
        assert_eq!(attached(cgroup)?, [], "{}", cgroup.path().display());
    }
    eventually("the programs to be unloaded", TIMEOUT, || {
        let left: Vec<bool> = programs
            .iter()
            .map(|id| exists("prog", *id))
            .collect::<Result<_>>()?;
        Ok(!left.contains(&true))
    })
}
