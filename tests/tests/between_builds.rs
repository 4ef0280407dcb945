// SPDX-License-Identifier: Apache-2.0
//! Two builds of the agent follow each other, back and forth, while connections and datagrams are tried all the time: no verdict changes
//! that policy did not change. `cargo xtask test upgrade --from REVISION` builds the other one, whose place is in `ZT_OTHER_AGENT`.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use zt_tests::agent::binary;
use zt_tests::hooks::attached;
use zt_tests::http;
use zt_tests::pair::{any, lives, policy};
use zt_tests::probe::{Flood, Operation, Outcomes, TIMEOUT};
use zt_tests::{Agent, Policy, Scene, TCP, UDP, eventually};

/// One attempt in this time, of each of two.
const PACE: Duration = Duration::from_millis(2);

/// What came of each attempt at what policy allows, and at what it does not.
fn judge(who: &str, outcomes: &[Outcomes]) -> Result<()> {
    let [good, bad] = outcomes else {
        anyhow::bail!("two destinations: {outcomes:?}")
    };
    let names = |outcome: &Outcomes| -> Vec<String> { outcome.counts.keys().cloned().collect() };
    ensure!(
        names(good) == ["ok"] && names(bad) == ["EPERM"],
        "{who}: {:?} where policy allows, {:?} where it does not",
        good.counts,
        bad.counts
    );
    Ok(())
}

/// Asks for the packet guard where the build that comes next knows it: one that does not refuses the key. Whether it does.
fn guard(agent: &Agent, build: &str) -> Result<bool> {
    let help = Command::new(build).args(["run", "--help"]).output()?;
    let knows = String::from_utf8_lossy(&help.stdout).contains("--packet-guard");
    let file = agent.files.config();
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    let settings = config.as_object_mut().context("settings")?;
    if knows {
        settings.insert("packetGuard".into(), json!(true));
    } else {
        settings.remove("packetGuard");
    }
    fs::write(&file, config.to_string())?;
    Ok(knows)
}

/// Whether the packet guard is at the managed root.
fn is_guarded(scene: &Scene) -> Result<bool> {
    let attached = attached(scene.sandbox().managed())?;
    Ok(attached.iter().any(|hook| hook.name.starts_with("zt_packet_")))
}

#[test]
fn one_build_follows_the_other_without_a_gap() -> Result<()> {
    let other = std::env::var("ZT_OTHER_AGENT");
    let other = other.context("ZT_OTHER_AGENT is not set: run `cargo xtask test upgrade --from REVISION`")?;
    let own = binary()?.display().to_string();
    ensure!(Path::new(&other).is_file(), "{other} is not there");

    let mut scene = Scene::new("between-builds")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    let mut sender = scene.start("sender", &client.cgroup, &client.host)?;
    let mut watcher = scene.start("watcher", &client.cgroup, &client.host)?;
    server.serve(any(80))?.local()?;
    server.udp_bind(any(80))?.handle()?;
    let shut = server.serve(any(81))?.handle()?;
    // Which of the two is started is what this file says at the time; the one that is named after the words is not looked at.
    let which = scene.sandbox().directory().join("which");
    fs::write(&which, &own)?;
    let words = format!("exec \"$(cat '{}')\" \"$@\"", which.display());
    let through = ["sh".to_owned(), "-c".to_owned(), words].to_vec();
    let mut agent = scene.agent(&policy())?.through(through).start()?;
    let live = watcher.connect(server.v4(80))?.handle()?;
    let idle = watcher.connect(server.v6(80))?.handle()?;
    ensure!(guard(&agent, &own)?, "this build knows the packet guard");
    agent.terminate()?;
    agent.restart()?;
    ensure!(is_guarded(&scene)?, "the packet guard is there");

    // Load is made until the one has followed the other, and is told to change policy.
    let stop = |turn: usize| scene.sandbox().directory().join(format!("stop-{turn}"));
    let flood = |turn: usize, to: [SocketAddr; 2]| Flood {
        until: Some(stop(turn)),
        pace: Some(PACE),
        to: to.to_vec(),
        ..Flood::new(to[0], u64::MAX)
    };
    for (turn, (build, in_order)) in [(&other, true), (&own, true), (&other, false), (&own, false)]
        .into_iter()
        .enumerate()
    {
        client.send(Operation::ConnectMany(Flood {
            echo: true,
            ..flood(turn, [server.v4(80), server.v6(81)])
        }))?;
        sender.send(Operation::SendMany(flood(turn, [server.v6(80), server.v4(81)])))?;
        fs::write(&which, build)?;
        let guarded = guard(&agent, build)?;
        if in_order {
            ensure!(agent.terminate()?.success(), "it did not end in order");
        } else {
            agent.kill()?;
        }
        agent
            .restart()
            .with_context(|| format!("{build} does not follow"))?;
        // It does not only stand there: a change of policy comes into force, at a port where nobody listens.
        let port = 9000 + u16::try_from(turn)?;
        let text = policy().allow("client", "server", TCP, &port.to_string());
        agent.files.write_policy("policy.yaml", &text.text())?;
        eventually("the change of policy to be in force", TIMEOUT, || {
            Ok(watcher.tcp(server.v4(port))? == "ECONNREFUSED")
        })?;
        let asked = Policy::new("asked").allow("client", "server", TCP, &(port + 100).to_string());
        http::request(
            agent.api(),
            "PUT",
            "/v1/policies/asked",
            Some(asked.text().as_str()),
        )?
        .success()
        .with_context(|| format!("{build} takes no policy"))?;
        eventually("the policy that it was given to be in force", TIMEOUT, || {
            Ok(watcher.tcp(server.v4(port + 100))? == "ECONNREFUSED")
        })?;
        eventually("the packet guard to be where it is asked for", TIMEOUT, || {
            Ok(is_guarded(&scene)? == guarded)
        })?;
        fs::write(stop(turn), "")?;
        judge("connections", &client.wait()?.ok()?.outcomes)?;
        judge("datagrams", &sender.wait()?.ok()?.outcomes)?;
        ensure!(lives(&mut watcher, live)?, "{build} has ended what is allowed");
    }
    let reached = server.call(Operation::ServeState { socket: shut })?.ok()?;
    ensure!(reached.count == Some(0), "somebody came through: {reached:?}");
    ensure!(
        lives(&mut watcher, idle)?,
        "what said nothing meanwhile has ended"
    );

    // What began before all of them is revoked as any other, and what is still allowed is not.
    let revoked = Policy::new("policy").allow("client", "server", UDP, "80");
    agent.files.write_policy("policy.yaml", &revoked.text())?;
    watcher.dies(live)?;
    watcher.dies(idle)?;
    assert_eq!(client.tcp(server.v4(80))?, "EPERM");
    assert_eq!(client.udp(server.v4(80))?, "ok");
    agent.files.write_policy("policy.yaml", &policy().text())?;
    eventually("the policy of before to be in force", TIMEOUT, || {
        Ok(client.talk(server.v4(80))? == "ok")
    })
}
