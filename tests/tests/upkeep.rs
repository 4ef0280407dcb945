// SPDX-License-Identifier: Apache-2.0
//! What somebody takes away behind the agent's back comes back; what `detach` takes away does not.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zt_tests::hooks::{attached, bpftool, pins};
use zt_tests::pair::{any, pair, policy};
use zt_tests::probe::{Operation, TIMEOUT};
use zt_tests::{Agent, eventually, http};

/// The agent looks after its hooks once a second; a busy machine takes longer.
const NOTICED: Duration = Duration::from_secs(60);

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of plain letters")
}

fn restored(agent: &Agent) -> Result<u64> {
    agent.get("/v1/status")?["restored"].as_u64().context("a count")
}

/// Waits until more has been put back than `before`, and the agent is content.
fn mended(agent: &Agent, before: u64) -> Result<u64> {
    let mut now = before;
    eventually("what is missing to be put back", NOTICED, || {
        now = restored(agent)?;
        Ok(now > before && http::get(agent.health(), "/readyz")?.status == 200)
    })?;
    Ok(now)
}

#[test]
fn what_is_taken_away_comes_back() -> Result<()> {
    let (scene, mut server, mut client) = pair("upkeep")?;
    let agent = scene.agent(&policy())?.start()?;
    let mut stranger = scene.outsider("stranger")?;
    stranger.serve(any(90))?.local()?;
    server.udp_bind(any(80))?.handle()?;
    let directory = scene.sandbox().pins()?;
    eventually("the guard to be there", NOTICED, || {
        Ok(attached(&server.cgroup)?.len() == 1)
    })?;
    let whole = pins(&directory)?;
    let before = attached(scene.sandbox().managed())?;
    assert_eq!(restored(&agent)?, 0);

    // Pins: of links and of maps.
    for part in ["links/zt_connect4", "maps/zt_workloads", "links/zt_udp_guard"] {
        let pin = whole
            .iter()
            .find(|pin| pin.display().to_string().contains(part))
            .with_context(|| format!("{part} is pinned"))?;
        let count = restored(&agent)?;
        std::fs::remove_file(pin)?;
        mended(&agent, count)?;
        assert_eq!(pins(&directory)?, whole);
    }
    // The same objects as before.
    assert_eq!(attached(scene.sandbox().managed())?, before);

    // A hook of the managed root, with a connection that got through meanwhile.
    let pin = whole
        .iter()
        .find(|pin| pin.display().to_string().contains("links/zt_connect6"))
        .context("the hook is pinned")?;
    let count = restored(&agent)?;
    agent.signal(Signal::SIGSTOP)?;
    bpftool(&["link", "detach", "pinned", text(pin)?])?;
    let through = client.connect(stranger.v6(90))?.handle()?;
    agent.signal(Signal::SIGCONT)?;
    mended(&agent, count)?;
    let (socket, timeout) = (through, TIMEOUT);
    let end = client.call(Operation::WaitEnd { socket, timeout })?;
    assert_eq!(end.data.as_deref(), Some("ECONNABORTED"));
    assert_eq!(attached(scene.sandbox().managed())?, before);
    assert_eq!(client.tcp(server.v6(81))?, "EPERM");
    assert_eq!(client.talk(server.v6(80))?, "ok");

    // The guard of a workload.
    let guard = attached(&server.cgroup)?;
    let pin = whole
        .iter()
        .find(|pin| pin.display().to_string().contains("links/zt_udp_guard"))
        .context("the guard is pinned")?;
    let count = restored(&agent)?;
    bpftool(&["link", "detach", "pinned", text(pin)?])?;
    mended(&agent, count)?;
    assert_eq!(attached(&server.cgroup)?, guard);

    // The programs behind refused sockets.
    let status = agent.get("/v1/status")?;
    let hooks = status["hooks"].as_array().context("hooks")?;
    for (program, hook) in [
        ("zt_refuse_in", "stream_verdict"),
        ("zt_refuse_out", "msg_verdict"),
    ] {
        let found = hooks
            .iter()
            .find(|hook| hook["program"] == program)
            .with_context(|| format!("{program} is in the status"))?;
        assert_eq!(found["attached"], true, "{found}");
        let id = found["program_id"].to_string();
        let map = scene.sandbox().maps()?.join("zt_refused");
        let count = restored(&agent)?;
        bpftool(&["prog", "detach", "id", &id, hook, "pinned", text(&map)?])?;
        mended(&agent, count)?;
    }
    let metrics = agent.metrics()?;
    assert_eq!(metrics.sum("zt_hooks_restored_total", &[]), restored(&agent)?);
    assert!(agent.log()?.contains("zt_connect6 on "));
    Ok(())
}

#[test]
fn what_is_detached_stays_detached() -> Result<()> {
    let (scene, mut server, mut client) = pair("detached")?;
    let mut agent = scene.agent(&policy())?.start()?;
    server.udp_bind(any(80))?.handle()?;
    let output = agent.command(&["detach", "--yes"]).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let pid = agent.pid().context("it runs")?.to_string();
    assert!(output.status.success() && said.contains(&pid), "{said}");
    eventually("the agent to say so", NOTICED, || {
        let answer = http::get(agent.health(), "/readyz")?;
        Ok(answer.status == 503 && answer.body.contains("detach"))
    })?;
    // It has looked, and put nothing back.
    assert_eq!(restored(&agent)?, 0);
    assert_eq!(attached(scene.sandbox().managed())?, []);
    assert_eq!(client.tcp(server.v4(81))?, "ok");
    assert!(agent.terminate()?.success());
    agent.restart()?;
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    Ok(())
}

/// The agent sleeps while the pin of one of its links is exchanged for one of a map, which nobody can detach, and goes on to hold
/// that link.
#[test]
fn a_link_that_is_not_detached_has_nothing_else_put_back() -> Result<()> {
    let (scene, server, mut client) = pair("detached-but-one")?;
    let mut agent = scene.agent(&policy())?.start()?;
    let (managed, directory) = (scene.sandbox().managed(), scene.sandbox().pins()?);
    let pid = Pid::from_raw(agent.pid().context("it runs")?.try_into()?);
    let pinned = pins(&directory)?;
    let pin = pinned
        .iter()
        .find(|pin| pin.to_string_lossy().contains("links/zt_connect4-"));
    let pin = text(pin.context("the link of zt_connect4 is pinned")?)?;
    kill(pid, Signal::SIGSTOP)?;
    std::fs::remove_file(pin)?;
    bpftool(&[
        "map", "create", pin, "type", "array", "key", "4", "value", "4", "entries", "1", "name", "odd",
    ])?;
    let output = agent.command(&["detach", "--yes"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("detach the link") && said.contains("zt_connect4-") && said.contains("stop the agent"),
        "{said}"
    );
    let left = |names: &[&str]| -> Result<()> {
        let there: Vec<String> = attached(managed)?.into_iter().map(|hook| hook.name).collect();
        assert_eq!(there, names);
        Ok(())
    };
    left(&["zt_connect4"])?;
    kill(pid, Signal::SIGCONT)?;
    eventually("the agent to say so", NOTICED, || {
        let answer = http::get(agent.health(), "/readyz")?;
        Ok(answer.status == 503 && answer.body.contains("detach"))
    })?;
    assert_eq!(restored(&agent)?, 0);
    left(&["zt_connect4"])?;
    assert_eq!(client.tcp(server.v6(81))?, "ok");
    // It goes with who holds it, and what was left of the removal with the next.
    assert!(agent.terminate()?.success());
    eventually("the hook to be gone", TIMEOUT, || {
        Ok(attached(managed)?.is_empty())
    })?;
    assert!(agent.command(&["detach", "--yes"]).status()?.success());
    assert!(!directory.exists());
    Ok(())
}

/// In a mount namespace whose BPF file system may not be written to there.
#[test]
fn where_pins_cannot_be_removed_the_hooks_go_and_what_is_left_is_told() -> Result<()> {
    const READ_ONLY: &str = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
    let (scene, server, mut client) = pair("detached-read-only")?;
    let mut agent = scene.agent(&policy())?.start()?;
    assert!(agent.terminate()?.success());
    let directory = scene.sandbox().pins()?;
    let pinned = pins(&directory)?;
    let detach = agent.command(&["detach", "--yes"]);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", READ_ONLY, text(&directory)?])
        .arg(detach.get_program())
        .args(detach.get_args());
    for (name, value) in detach.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot rename") && said.contains("puts back what is detached: stop it"),
        "{said}"
    );
    assert!(said.contains("remove the pin"), "{said}");
    assert_eq!(pins(&directory)?, pinned);
    assert_eq!(attached(scene.sandbox().managed())?, []);
    assert_eq!(client.tcp(server.v4(81))?, "ok");
    assert!(agent.command(&["detach", "--yes"]).status()?.success());
    assert!(!directory.exists());
    Ok(())
}
