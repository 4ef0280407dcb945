// SPDX-License-Identifier: Apache-2.0
//! Agents of different ABI versions pin in different directories: one replaces the other without a gap, and `detach`
//! means all of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use zt_common::ABI_VERSION;
use zt_tests::hooks::{attached, bpftool, exists, pins};
use zt_tests::pair::{any, lives, pair, policy};
use zt_tests::probe::{Flood, Operation, TIMEOUT};
use zt_tests::programs::{Measuring, held_by};
use zt_tests::{Party, Policy, Scene, TCP, eventually};

fn two(label: &str) -> Result<(Scene, Party, Party)> {
    let (scene, mut server, client) = pair(label)?;
    server.udp_bind(any(80))?.handle()?;
    Ok((scene, server, client))
}

/// Makes what an agent has pinned the pins of another version: real links, real programs, still attached.
fn as_version(directory: &Path, version: &str) -> Result<PathBuf> {
    let other = directory.join(version);
    std::fs::rename(directory.join(format!("v{ABI_VERSION}")), &other)?;
    Ok(other)
}

/// Ids of the links that are pinned in a directory of a version.
fn links(version: &Path) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    for pin in pins(&version.join("links"))? {
        let pin = pin.to_str().context("plain letters")?;
        let link = bpftool(&["link", "show", "pinned", pin])?;
        ids.push(link["id"].as_u64().with_context(|| format!("no id in {link}"))?);
    }
    Ok(ids)
}

/// An agent follows one of another version while connections are tried all the time: no verdict changes, and nothing of that version
/// is left. With the packet guard or without: then it looks at each packet of them.
fn one_follows(label: &str, version: &str, guard: bool) -> Result<()> {
    let (scene, server, mut client) = two(label)?;
    let directory = scene.sandbox().pins()?;
    let agent = scene.agent(&policy())?.config("packetGuard", json!(guard));
    let mut agent = agent.start()?;
    let mut watcher = scene.start("watcher", &client.cgroup, &client.host)?;
    let live = watcher.connect(server.v4(80))?.handle()?;
    let count = attached(scene.sandbox().managed())?.len();
    client.send(Operation::ConnectMany(Flood {
        duration: Some(Duration::from_secs(8)),
        pace: Some(Duration::from_micros(500)),
        echo: true,
        to: vec![server.v4(80), server.v6(81)],
        ..Flood::new(server.v4(80), u64::MAX)
    }))?;
    assert!(agent.terminate()?.success());
    let old = as_version(&directory, version)?;
    let old_links = links(&old)?;
    assert!(old_links.len() > count);
    agent.restart()?;

    assert!(!old.exists());
    assert_eq!(attached(scene.sandbox().managed())?.len(), count);
    assert_eq!(attached(&server.cgroup)?.len(), 1);
    for link in old_links {
        assert!(!exists("link", link)?, "link {link} of the old version");
    }
    let reply = client.wait()?.ok()?;
    let [good, bad] = &reply.outcomes[..] else {
        panic!("two destinations: {reply:?}")
    };
    assert_eq!(good.counts.keys().collect::<Vec<_>>(), ["ok"]);
    assert_eq!(bad.counts.keys().collect::<Vec<_>>(), ["EPERM"]);
    assert!(lives(&mut watcher, live)?);
    // A connection that only the old version's maps knew is revoked like any other.
    agent.change_policy(&Policy::new("policy").text())?;
    let end = watcher.call(Operation::WaitEnd {
        socket: live,
        timeout: TIMEOUT,
    })?;
    let end = end.data.unwrap_or_default();
    assert!(["ECONNABORTED", "ECONNRESET"].contains(&end.as_str()), "{end:?}");
    Ok(())
}

#[test]
fn a_new_version_is_in_place_before_the_old_one_goes() -> Result<()> {
    one_follows("versions", "v0", false)
}

#[test]
fn the_packet_guard_of_a_new_version_knows_what_the_old_one_knew() -> Result<()> {
    one_follows("versions-guard", "v0", true)
}

/// Which of two versions is newer counts for nothing.
#[test]
fn an_older_version_is_in_place_before_the_one_that_is_rolled_back_goes() -> Result<()> {
    one_follows("rolled-back", "v99", false)
}

#[test]
fn break_glass_outlives_a_change_of_version() -> Result<()> {
    let (scene, server, mut client) = two("glass-version")?;
    let mut agent = scene.agent(&policy())?.start()?;
    agent.post("/v1/mode", &json!({ "mode": "observe" }))?.success()?;
    agent.terminate()?;
    as_version(&scene.sandbox().pins()?, "v99")?;
    agent.restart()?;
    assert_eq!(client.tcp(server.v4(81))?, "ok");
    assert_eq!(agent.get("/v1/status")?["modes"]["observe_all"], true);
    agent.post("/v1/mode", &json!({ "mode": "restore" }))?.success()?;
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    Ok(())
}

#[test]
fn detach_removes_every_version_and_says_what_it_cannot() -> Result<()> {
    let (scene, server, mut client) = two("detach-all")?;
    let directory = scene.sandbox().pins()?;
    let mut agent = scene.agent(&policy())?.start()?;
    agent.terminate()?;
    let old = as_version(&directory, "v0")?;
    agent.restart()?;
    agent.terminate()?;
    // An old one once more, with a pin among its links that is none.
    as_version(&directory, "v0")?;
    let odd = old.join("links/odd");
    let odd = odd.to_str().context("plain letters")?;
    bpftool(&[
        "map", "create", odd, "type", "array", "key", "4", "value", "4", "entries", "1", "name", "odd",
    ])?;
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");

    let output = agent.command(&["detach", "--yes"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("detach the link") && said.contains("odd"), "{said}");
    // All else is gone nevertheless.
    assert_eq!(pins(&directory)?, Vec::<PathBuf>::new());
    eventually("the hooks to be gone", TIMEOUT, || {
        Ok(client.tcp(server.v4(81))? == "ok")
    })?;
    for cgroup in [scene.sandbox().managed(), &server.cgroup] {
        assert_eq!(attached(cgroup)?, [], "{}", cgroup.path().display());
    }
    let output = agent.command(&["detach", "--yes"]).output()?;
    assert!(output.status.success());
    assert!(!directory.exists());
    Ok(())
}

/// Two versions beside each other do not write into the same handshakes, and what the old one asked of those who listen is asked
/// of nobody whom they accept.
#[test]
fn a_new_version_takes_over_what_handshakes_bear() -> Result<()> {
    let (scene, mut server, mut client) = two("versions-proof")?;
    let directory = scene.sandbox().pins()?;
    let policy = policy()
        .allow("client", "server", TCP, "82")
        .allow_proven("client", "server", TCP, "83");
    let mut agent = scene.agent(&policy)?.config("handshake", json!("auto")).start()?;
    for port in [82, 83] {
        server.serve(any(port))?.local()?;
        assert_eq!(client.talk(server.v4(port))?, "ok");
    }
    // What has proven itself before stays.
    let mut watcher = scene.start("watcher", &client.cgroup, &client.host)?;
    let live = watcher.connect(server.v4(83))?.handle()?;
    client.send(Operation::ConnectMany(Flood {
        duration: Some(Duration::from_secs(8)),
        pace: Some(Duration::from_micros(500)),
        echo: true,
        to: vec![server.v4(80), server.v4(82)],
        ..Flood::new(server.v4(80), u64::MAX)
    }))?;
    assert!(agent.terminate()?.success());
    as_version(&directory, "v0")?;
    agent.restart()?;
    let reply = client.wait()?.ok()?;
    for outcome in &reply.outcomes {
        assert_eq!(outcome.counts.keys().collect::<Vec<_>>(), ["ok"], "{reply:?}");
    }
    assert_eq!(client.talk(server.v6(82))?, "ok");
    agent.records("decision=ALLOW", 1, |record| {
        record["destination"]["address"] == json!(server.host.ipv6) && record["proof"] == "mutual"
    })?;
    assert_eq!(client.talk(server.v4(83))?, "ok");
    agent.change_policy(&policy.allow("client", "server", TCP, "84").text())?;
    assert_eq!(watcher.end(live, Duration::ZERO)?, "alive");

    // Nothing of ours runs for what is sent on a connection.
    let measuring = Measuring::begin(held_by(agent.pid().context("it runs")?)?)?;
    let socket = client.connect(server.v4(82))?.handle()?;
    let talk = |client: &mut Party, count: u64| {
        let (size, timeout) = (4, TIMEOUT);
        client
            .call(Operation::RoundTrips {
                socket,
                count,
                size,
                timeout,
            })?
            .ok()
    };
    talk(&mut client, 1)?;
    let ran = measuring.during(|| talk(&mut client, 100).map(drop))?;
    assert_eq!(ran["zt_sock_ops"].runs, 0);
    Ok(())
}
