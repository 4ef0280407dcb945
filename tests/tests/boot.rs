// SPDX-License-Identifier: Apache-2.0
//! The agent starts before what it manages: it says what it waits for, and is there when it comes.

use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use zt_tests::agent::DEADLINE;
use zt_tests::agent_files::Workload;
use zt_tests::hooks::attached;
use zt_tests::probe::TIMEOUT;
use zt_tests::{Agent, Cgroup, Policy, Scene, TCP, eventually, http, spiffe};

/// How long after a managed root is made the hooks may be missing. The look without inotify is every second.
const AT_ONCE: Duration = Duration::from_millis(300);

/// Waits until the agent says that it waits for `name`.
fn waits_for(agent: &Agent, name: &str) -> Result<()> {
    eventually("the agent to say what it waits for", DEADLINE, || {
        let answer = http::get(agent.health(), "/readyz");
        Ok(answer.is_ok_and(|answer| answer.status == 503 && answer.body.contains(name)))
    })
}

#[test]
fn a_root_that_is_absent_is_waited_for() -> Result<()> {
    let scene = Scene::new("boot")?;
    let late = Cgroup::absent(scene.sandbox().managed(), "late");
    let place = Cgroup::absent(&late, "pod");
    let socket_path = scene.sandbox().directory().join("notify");
    let systemd = UnixDatagram::bind(&socket_path)?;
    systemd.set_read_timeout(Some(TIMEOUT))?;
    let (server, mut outsider) = (scene.host("server")?, scene.outsider("outsider")?);
    let policy = Policy::new("policy").allow("client", "server", TCP, "80");
    let agent = scene
        .agent(&policy)?
        .config("managedCgroup", json!(late.relative()))
        .env("NOTIFY_SOCKET", socket_path.to_str().context("plain letters")?)
        .workload(Workload::new(&spiffe("client"), &place))
        .workload(Workload::new(&spiffe("server"), &Cgroup::absent(&late, "server")).at(server.addresses()))
        .launch()?;
    waits_for(&agent, "late")?;
    let status = agent.get("/v1/status")?;
    assert_eq!(status["awaited"], json!([late.relative()]), "{status}");
    // Whoever orders itself behind the agent must not wait for what it waits for.
    let mut told = String::new();
    while !(told.contains("READY=1") && told.contains("STATUS=waiting")) {
        let mut buffer = [0; 2048];
        let count = systemd
            .recv(&mut buffer)
            .with_context(|| format!("after {told:?}"))?;
        told.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(agent.log()?.contains("late"));
    outsider
        .serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 81))?
        .local()?;

    let late = Cgroup::create(late.relative())?;
    eventually("the hooks to be there", AT_ONCE, || {
        Ok(!attached(&late)?.is_empty())
    })?;
    let mut client = scene.start(
        "client",
        &Cgroup::create(place.relative())?,
        &scene.host("client")?,
    )?;
    eventually("the agent to be ready", DEADLINE, || {
        Ok(http::get(agent.health(), "/readyz")?.status == 200)
    })?;
    let to = SocketAddr::new(outsider.host.ipv4.into(), 81);
    eventually("the workload to be known", DEADLINE, || {
        Ok(client.tcp(to)? == "EPERM")
    })?;
    Ok(())
}

#[test]
fn of_explicit_roots_each_one_must_exist() -> Result<()> {
    let mut scene = Scene::new("mistyped")?;
    let (mut server, mut client) = (scene.workload("server")?, scene.workload("client")?);
    server
        .serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 81))?
        .local()?;
    let managed = scene.sandbox().managed().relative().to_owned();
    let agent = scene
        .agent(&Policy::new("policy"))?
        .config("managedCgroup", json!([managed, "zt-test-mistyped.slize"]))
        .launch()?;
    waits_for(&agent, "zt-test-mistyped.slize")?;
    // Those that exist are enforced upon all the same.
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    assert_eq!(agent.get("/v1/status")?["ready"], false);
    Ok(())
}

#[test]
fn a_root_that_is_made_anew_is_attached_to_anew() -> Result<()> {
    let scene = Scene::new("anew")?;
    let root = scene.sandbox().managed().child("root")?;
    let agent = scene
        .agent(&Policy::new("policy"))?
        .config("managedCgroup", json!(root.relative()))
        .start()?;
    let hooks = attached(&root)?;
    std::fs::remove_dir(root.path())?;
    waits_for(&agent, "root")?;
    let root = Cgroup::create(root.relative())?;
    eventually("the hooks to be there", AT_ONCE, || Ok(attached(&root)? == hooks))?;
    Ok(())
}

/// How often the root is removed, with who lives in it, and made again.
const LIVES: usize = 5;

#[test]
fn who_lives_in_a_root_that_is_made_anew_is_judged_from_the_first_connection_on() -> Result<()> {
    let scene = Scene::new("anew-traffic")?;
    let root = scene.sandbox().managed().child("root")?;
    let place = Cgroup::absent(&root, "client");
    let (home, mut server) = (scene.host("client")?, scene.outsider("server")?);
    for port in [80, 81] {
        server
            .serve(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))?
            .local()?;
    }
    let policy = Policy::new("policy")
        .allow("client", "10.99.0.0/16", TCP, "80")
        .allow("client", "fd99::/64", TCP, "80");
    let agent = scene
        .agent(&policy)?
        .config("managedCgroup", json!(root.relative()))
        // Who has no name yet is refused as well: what gets through does so because no hook is there.
        .config("unknownWorkload", json!("deny"))
        .workload(Workload::new(&spiffe("client"), &place))
        .start()?;
    for life in 0..LIVES {
        if life > 0 {
            root.remove()?;
            waits_for(&agent, "root")?;
        }
        // At once, whether the hooks are there already or not.
        let mut client = scene.start("client", &Cgroup::create(place.relative())?, &home)?;
        let early = [server.v4(81), server.v6(81)].map(|to| client.connect(to));
        eventually("the root to be managed", DEADLINE, || {
            Ok(http::get(agent.health(), "/readyz")?.status == 200)
        })?;
        for early in early {
            // What was opened before the hooks were there is found.
            if let Some(socket) = early?.socket {
                client.dies(socket).with_context(|| format!("life {life}"))?;
            }
        }
        // Who is not known yet is refused everything.
        eventually("the workload to be known", DEADLINE, || {
            Ok(client.tcp(server.v4(80))? == "ok")
        })?;
        let to = [server.v4(80), server.v6(80), server.v4(81), server.v6(81)];
        let answers = to.map(|to| client.tcp(to));
        for (to, answer) in to.into_iter().zip(answers) {
            let expected = if to.port() == 80 { "ok" } else { "EPERM" };
            assert_eq!(answer?, expected, "{to}, life {life}");
        }
    }
    Ok(())
}
