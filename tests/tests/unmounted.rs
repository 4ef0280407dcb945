// SPDX-License-Identifier: Apache-2.0
//! The pins are gone with all that is around them: the BPF file system was unmounted, or the directory removed by hand. The
//! hooks stay, the agent pins them again before it can die, and nobody else takes its place meanwhile.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zt_common::{ABI_VERSION, names};
use zt_tests::hooks::{attached, pins};
use zt_tests::mounts::Mounts;
use zt_tests::pair::{any, pair, policy};
use zt_tests::{Agent, Party, eventually, http};

/// The agent looks once a second; a busy machine takes longer.
const NOTICED: Duration = Duration::from_secs(60);

fn restored(agent: &Agent) -> Result<u64> {
    agent.get("/v1/status")?["restored"].as_u64().context("a count")
}

/// What `/readyz` says now: the status, and the words.
fn ready(agent: &Agent) -> Result<(u16, String)> {
    let answer = http::get(agent.health(), "/readyz")?;
    Ok((answer.status, answer.body))
}

/// The ids of the maps that are pinned in a directory of pins.
fn maps(directory: &Path) -> Result<Vec<u32>> {
    let maps = directory.join(format!("v{ABI_VERSION}")).join("maps");
    let id = |name: &&str| {
        Ok(MapData::from_pin(maps.join(name))
            .with_context(|| (*name).to_owned())?
            .info()?
            .id())
    };
    names::MAPS.iter().map(id).collect()
}

/// Waits until all pins of before are there again, and the agent is content.
fn mended(agent: &Agent, directory: &Path, before: &[PathBuf]) -> Result<()> {
    eventually("all to be pinned again", NOTICED, || {
        Ok(pins(directory)? == before && ready(agent)?.0 == 200)
    })
}

fn is_enforced(client: &mut Party, server: &Party) -> Result<()> {
    for to in [server.v4(81), server.v6(81)] {
        assert_eq!(client.tcp(to)?, "EPERM", "{to}");
    }
    Ok(())
}

/// Sends a signal to the agent itself, whatever it was started through.
fn signal(mounts: &Mounts, agent: &Agent, signal: Signal) -> Result<()> {
    let pid = mounts.process(agent.pid().context("it runs")?)?;
    Ok(kill(Pid::from_raw(pid.try_into()?), signal)?)
}

/// Waits until an agent has ended that was stopped for a moment: what it was started through stops with it, perhaps after it went on.
fn has_ended(agent: &Agent) -> Result<()> {
    let pid = agent.pid().context("it runs")?;
    eventually("the agent to end", NOTICED, || {
        kill(Pid::from_raw(pid.try_into()?), Signal::SIGCONT)?;
        Ok(fs::read_to_string(format!("/proc/{pid}/stat"))?.contains(") Z "))
    })
}

#[test]
fn an_unmounted_file_system_is_mounted_again_and_the_next_agent_finds_the_same_maps() -> Result<()> {
    let (scene, mut server, mut client) = pair("unmounted")?;
    let mounts = Mounts::of_machine(scene.sandbox())?;
    let mut agent = scene.agent(&policy())?.through(mounts.enter()).start()?;
    server.udp_bind(any(80))?.handle()?;
    eventually("the guard of the server", NOTICED, || {
        Ok(attached(&server.cgroup)?.len() == 1)
    })?;
    let directory = mounts.seen(&scene.sandbox().pins()?);
    let (pinned, known) = (pins(&directory)?, maps(&directory)?);
    let (hooks, guard) = (attached(scene.sandbox().managed())?, attached(&server.cgroup)?);
    let revision = agent.revision()?;
    is_enforced(&mut client, &server)?;

    mounts.unmount()?;
    is_enforced(&mut client, &server)?;
    mended(&agent, &directory, &pinned)?;
    assert_eq!(maps(&directory)?, known);
    // Each pin was counted, and the directory; and no hook was off for it.
    let count = restored(&agent)?;
    assert!(count > pinned.len() as u64, "{count} of {}", pinned.len());
    assert_eq!(agent.metrics()?.sum("zt_hooks_restored_total", &[]), count);
    let log = agent.log()?;
    for said in [
        "mounted the BPF file system",
        "put back what somebody had removed: the directory ",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
    assert_eq!(attached(scene.sandbox().managed())?, hooks);

    signal(&mounts, &agent, Signal::SIGKILL)?;
    agent.wait_exit()?;
    assert_eq!(attached(scene.sandbox().managed())?, hooks);
    assert_eq!(attached(&server.cgroup)?, guard);
    is_enforced(&mut client, &server)?;
    agent.restart()?;
    assert_eq!(maps(&directory)?, known);
    assert_eq!(agent.revision()?, revision);
    is_enforced(&mut client, &server)?;

    // One that ends in order in the moment after leaves nothing open either.
    signal(&mounts, &agent, Signal::SIGSTOP)?;
    mounts.unmount()?;
    signal(&mounts, &agent, Signal::SIGTERM)?;
    signal(&mounts, &agent, Signal::SIGCONT)?;
    has_ended(&agent)?;
    agent.wait_exit()?;
    assert_eq!(maps(&directory)?, known);
    is_enforced(&mut client, &server)
}

#[test]
fn where_it_may_not_mount_it_says_so_and_pins_when_somebody_has() -> Result<()> {
    let (scene, server, mut client) = pair("unmounted-in-container")?;
    let mounts = Mounts::of_container(scene.sandbox())?;
    let agent = scene.agent(&policy())?.through(mounts.enter()).start()?;
    let directory = mounts.seen(&scene.sandbox().pins()?);
    let (pinned, known) = (pins(&directory)?, maps(&directory)?);
    mounts.unmount()?;
    eventually("the agent to say what is missing", NOTICED, || {
        let (status, said) = ready(&agent)?;
        Ok(status == 503 && said.contains("a BPF file system at /sys/fs/bpf of the host"))
    })?;
    is_enforced(&mut client, &server)?;
    mounts.mount()?;
    mended(&agent, &directory, &pinned)?;
    assert_eq!(maps(&directory)?, known);
    is_enforced(&mut client, &server)
}

#[test]
fn an_agent_that_was_started_meanwhile_is_named_and_left_alone() -> Result<()> {
    let (scene, server, mut client) = pair("unmounted-second")?;
    let mounts = Mounts::of_machine(scene.sandbox())?;
    let first = scene.agent(&policy())?.through(mounts.enter()).start()?;
    let directory = mounts.seen(&scene.sandbox().pins()?);
    let known = maps(&directory)?;
    signal(&mounts, &first, Signal::SIGSTOP)?;
    mounts.unmount()?;
    let mut second = scene
        .agent_beside("second", &policy())?
        .through(mounts.enter())
        .start()?;
    let theirs = (pins(&directory)?, maps(&directory)?);
    assert_ne!(theirs.1, known);
    signal(&mounts, &first, Signal::SIGCONT)?;
    eventually("the first one to say so", NOTICED, || {
        let (status, said) = ready(&first)?;
        Ok(status == 503 && said.contains("has been started on it since"))
    })?;
    assert_eq!((pins(&directory)?, maps(&directory)?), theirs);
    is_enforced(&mut client, &server)?;
    // When that one has ended, it is the first one's turn again.
    signal(&mounts, &second, Signal::SIGTERM)?;
    second.wait_exit()?;
    eventually("the first one to pin again", NOTICED, || {
        Ok(ready(&first)?.0 == 200 && maps(&directory)? == known)
    })?;
    is_enforced(&mut client, &server)
}

/// Removes a directory of pins as `rm -r` does.
fn remove(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(fs::remove_dir(path)?)
}

/// Waits until an agent that was started says that it stands by.
fn stands_by(agent: &Agent) -> Result<()> {
    eventually("the second one to stand by", NOTICED, || {
        Ok(ready(agent).is_ok_and(|(status, said)| status == 200 && said.contains("standing_by")))
    })
}

#[test]
fn a_directory_that_was_removed_by_hand_is_made_anew() -> Result<()> {
    let (scene, server, mut client) = pair("removed-by-hand")?;
    let mut agent = scene.agent(&policy())?.start()?;
    let directory = scene.sandbox().pins()?;
    let (pinned, known) = (pins(&directory)?, maps(&directory)?);
    let hooks = attached(scene.sandbox().managed())?;
    let version = directory.join(format!("v{ABI_VERSION}"));
    for gone in [&version, &directory] {
        let before = restored(&agent)?;
        remove(gone)?;
        mended(&agent, &directory, &pinned)?;
        assert!(restored(&agent)? > before + pinned.len() as u64);
        assert_eq!(maps(&directory)?, known, "{}", gone.display());
        assert_eq!(attached(scene.sandbox().managed())?, hooks);
        is_enforced(&mut client, &server)?;
    }

    // The lock is on the new directory: another agent waits, and goes on with the same maps.
    let mut second = scene.agent_beside("second", &policy())?.launch()?;
    stands_by(&second)?;
    agent.kill()?;
    is_enforced(&mut client, &server)?;
    second.wait_ready()?;
    eventually("the second one to enforce", NOTICED, || {
        Ok(!ready(&second)?.1.contains("standing_by"))
    })?;
    assert_eq!(maps(&directory)?, known);
    is_enforced(&mut client, &server)
}

#[test]
fn whoever_waits_for_the_directory_of_before_does_not_come_in_between() -> Result<()> {
    let (scene, server, mut client) = pair("removed-and-awaited")?;
    let mut agent = scene.agent(&policy())?.start()?;
    let mut second = scene.agent_beside("second", &policy())?.launch()?;
    stands_by(&second)?;
    let directory = scene.sandbox().pins()?;
    let (pinned, known) = (pins(&directory)?, maps(&directory)?);
    remove(&directory)?;
    mended(&agent, &directory, &pinned)?;
    // Both directories are the first one's as long as it lives.
    stands_by(&second)?;
    agent.kill()?;
    eventually("the second one to enforce", NOTICED, || {
        Ok(ready(&second).is_ok_and(|(status, said)| status == 200 && !said.contains("standing_by")))
    })?;
    second.wait_ready()?;
    assert_eq!(maps(&directory)?, known);
    is_enforced(&mut client, &server)
}
