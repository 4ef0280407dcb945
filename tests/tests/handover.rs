// SPDX-License-Identifier: Apache-2.0
//! Two agents on the same pins: one works, the other waits for its turn, and nothing shows when they change.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use zt_tests::agent::{AgentBuilder, DEADLINE};
use zt_tests::hooks::{Attached, attached};
use zt_tests::probe::{Flood, Operation};
use zt_tests::{Agent, Party, Policy, Scene, TCP, eventually, http};

const PACE: Duration = Duration::from_micros(500);

fn policy() -> Policy {
    Policy::new("policy").allow("client", "server", TCP, "80")
}

/// What the second agent is started with: one port more.
fn later() -> Policy {
    policy().allow("client", "server", TCP, "82")
}

/// A client with a port that it may always reach (80), one that it may never reach (81), and one that only the policy
/// of the later agent gives it (82).
fn three(label: &str) -> Result<(Scene, Party, Party)> {
    let mut scene = Scene::new(label)?;
    let (mut server, client) = (scene.workload("server")?, scene.workload("client")?);
    for port in [80, 81, 82] {
        server
            .serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))?
            .local()?;
    }
    Ok((scene, server, client))
}

/// A second agent, which records where the first one does.
fn second(scene: &Scene, first: &Agent) -> Result<AgentBuilder> {
    let dsn = format!("sqlite://{}", first.files.audit().display());
    let agent = scene.agent_beside("second", &later())?;
    Ok(agent.config("audit", json!({ "dsn": dsn })))
}

/// Waits until the agent says that it stands by, and returns what it says.
fn stands_by(agent: &Agent) -> Result<Value> {
    let mut said = Value::Null;
    eventually("the agent to stand by", DEADLINE, || {
        // Nobody listens in the beginning.
        let Ok(answer) = http::get(agent.health(), "/readyz") else {
            return Ok(false);
        };
        said = answer.json()?;
        Ok(answer.status == 200 && said["status"] == "standing_by")
    })?;
    Ok(said)
}

fn programs(scene: &Scene) -> Result<Vec<Attached>> {
    attached(scene.sandbox().managed())
}

/// Connections to what is always allowed and to what is never, one after the other, for so long.
fn storm(client: &mut Party, server: &Party, duration: Duration) -> Result<()> {
    client.send(Operation::ConnectMany(Flood {
        duration: Some(duration),
        pace: Some(PACE),
        echo: true,
        to: vec![server.v4(80), server.v6(81)],
        ..Flood::new(server.v4(80), u64::MAX)
    }))
}

/// No verdict was another one in the storm. Returns how many connections it was.
fn unchanged(client: &mut Party) -> Result<u64> {
    let reply = client.wait()?.ok()?;
    let [good, bad] = &reply.outcomes[..] else {
        panic!("two destinations: {reply:?}")
    };
    println!("{:?} {:?}", good.counts, bad.counts);
    let only = |counts: &BTreeMap<String, u64>, what: &str| {
        assert_eq!(counts.keys().collect::<Vec<_>>(), [what]);
        counts[what]
    };
    Ok(only(&good.counts, "ok") + only(&bad.counts, "EPERM"))
}

/// Each decision of the storm has one record, whoever made it.
fn exactly_once(agent: &Agent, count: u64) -> Result<()> {
    let records = agent.records("", usize::try_from(count)?, |record| {
        let port = &record["destination"]["port"];
        *port == 80 || *port == 81
    })?;
    let ids: std::collections::BTreeSet<&str> = records
        .iter()
        .filter_map(|record| record["id"].as_str())
        .collect();
    assert_eq!(ids.len(), records.len());
    assert_eq!(agent.counter("events_lost")?, 0);
    Ok(())
}

#[test]
fn a_second_agent_waits_and_takes_over_when_the_first_ends() -> Result<()> {
    let (scene, server, mut client) = three("stand-by")?;
    let mut first = scene.agent(&policy())?.start()?;
    let hooks = programs(&scene)?;
    storm(&mut client, &server, Duration::from_secs(8))?;
    let mut watcher = scene.start("watcher", &client.cgroup, &client.host)?;

    let mut second = second(&scene, &first)?.launch()?;
    let said = stands_by(&second)?;
    let pid = first.pid().context("it runs")?.to_string();
    assert!(
        said["detail"].as_str().is_some_and(|text| text.contains(&pid)),
        "{said}"
    );
    // It has its programs verified and has touched nothing: neither hooks nor policy.
    assert_eq!(programs(&scene)?, hooks);
    assert_eq!(watcher.tcp(server.v4(82))?, "EPERM");
    let revision = first.revision()?;
    // What is written while it waits is what it begins with.
    second.files.write_policy(
        "policy.yaml",
        &later().allow("client", "server", TCP, "83").text(),
    )?;
    assert!(http::get(second.api(), "/v1/status").is_err());

    assert!(first.terminate()?.success());
    second.wait_ready()?;
    eventually("the new policy to be in force", DEADLINE, || {
        Ok(watcher.tcp(server.v4(82))? == "ok")
    })?;
    assert_eq!(second.revision()?, revision + 1);
    assert!(second.get("/v1/policies")?.to_string().contains("83"));
    assert!(programs(&scene)?.iter().all(|hook| !hooks.contains(hook)));
    let count = unchanged(&mut client)?;
    exactly_once(&second, count)?;
    Ok(())
}

#[test]
fn a_second_agent_has_the_first_one_hand_over() -> Result<()> {
    let (scene, server, mut client) = three("hand-over")?;
    let mut first = scene.agent(&policy())?.start()?;
    let before = programs(&scene)?.len();
    storm(&mut client, &server, Duration::from_secs(8))?;
    let mut second = second(&scene, &first)?.argument("--take-over").start()?;
    assert!(first.wait_exit()?.success());
    assert_eq!(programs(&scene)?.len(), before);
    let mut watcher = scene.start("watcher", &client.cgroup, &client.host)?;
    assert_eq!(watcher.tcp(server.v4(82))?, "ok");
    let count = unchanged(&mut client)?;
    exactly_once(&second, count)?;

    // And back, on the very ports that the first one leaves.
    let third = scene
        .agent_beside("third", &policy())?
        .config(
            "api",
            json!({ "listen": second.api(), "health": second.health() }),
        )
        .argument("--take-over")
        .launch()?;
    assert!(second.wait_exit()?.success());
    eventually(
        "the third agent to answer in the second's place",
        DEADLINE,
        || Ok(http::get(second.health(), "/readyz").is_ok_and(|answer| answer.status == 200)),
    )?;
    assert_eq!(watcher.tcp(server.v4(82))?, "EPERM");
    drop(third);
    Ok(())
}

#[test]
fn who_waits_takes_over_from_the_killed_and_leaves_when_asked() -> Result<()> {
    let (scene, server, mut client) = three("killed")?;
    let mut first = scene.agent(&policy())?.start()?;
    let mut second = second(&scene, &first)?.launch()?;
    stands_by(&second)?;
    // Asked to end while it waits, it ends; nothing has changed.
    assert!(second.terminate()?.success());
    assert_eq!(client.tcp(server.v4(82))?, "EPERM");
    assert_eq!(first.get("/v1/status")?["ready"], true);

    let mut third = scene.agent_beside("third", &later())?.launch()?;
    stands_by(&third)?;
    first.kill()?;
    third.wait_ready()?;
    assert_eq!(client.tcp(server.v4(82))?, "ok");
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    // A lock that outlived its holder would have the first one wait for ever.
    third.kill()?;
    first.restart()?;
    assert_eq!(client.tcp(server.v4(82))?, "EPERM");
    Ok(())
}

#[test]
fn who_hangs_is_named_and_goes_on_holding_the_pins() -> Result<()> {
    let (scene, server, mut client) = three("hung")?;
    let mut first = scene.agent(&policy())?.start()?;
    first.signal(Signal::SIGSTOP)?;
    let mut second = second(&scene, &first)?.argument("--take-over").launch()?;
    // It gives the running one half a minute.
    let mut ended = second.wait_exit();
    if ended.is_err() {
        ended = second.wait_exit();
    }
    first.signal(Signal::SIGCONT)?;
    let said = second.log()?;
    assert_eq!(ended?.code(), Some(1), "{said}");
    let pid = first.pid().context("it runs")?;
    assert!(
        said.contains(&format!("process {pid} was asked to hand over")),
        "{said}"
    );
    assert_eq!(client.tcp(server.v4(82))?, "EPERM");
    // What it was asked for it does when it can.
    assert!(first.wait_exit()?.success());
    Ok(())
}
