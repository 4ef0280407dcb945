// SPDX-License-Identifier: Apache-2.0
//! `zt-agent demo`, as a user runs it: all that it tells holds, and however it ends, nothing of it is left.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zt_tests::{agent, cgroup, wait};

const DEADLINE: Duration = Duration::from_mins(1);
/// Each test looks for what a demo left behind, so none may run beside another one.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn start(arguments: &[&str]) -> Result<Child> {
    let mut command = Command::new(agent::binary()?);
    command.arg("demo").args(arguments);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().context("the demo starts")
}

/// Everything on this machine that bears the name of the demo of `pid`.
fn remains(pid: u32) -> Result<Vec<PathBuf>> {
    let name = format!("zt-demo-{pid}");
    let mut found = Vec::new();
    let mount = cgroup::mount_point()?;
    for directory in [
        mount.as_path(),
        Path::new("/run/netns"),
        Path::new("/sys/fs/bpf"),
        &std::env::temp_dir(),
    ] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&name) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn wait_end(child: &mut Child) -> Result<ExitStatus> {
    wait::wait_for("the demo to end", DEADLINE, || Ok(child.try_wait()?))
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
}

/// What the demo says until `text` comes.
fn read_until(child: &mut Child, text: &str) -> Result<Vec<String>> {
    let output = child.stdout.as_mut().context("a pipe")?;
    let mut said = Vec::new();
    for line in BufReader::new(output).lines() {
        said.push(line?);
        if said.last().is_some_and(|line| line.contains(text)) {
            return Ok(said);
        }
    }
    bail!("the demo never says {text:?} but {said:#?}")
}

#[test]
fn everything_that_it_tells_holds() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock();
    let child = start(&["--fast"])?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{told}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        told.contains("expectations held") && !told.contains('\x1b'),
        "{told}"
    );
    assert_eq!(remains(pid)?, Vec::<PathBuf>::new());
    Ok(())
}

#[test]
fn nothing_is_left_when_it_is_interrupted() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock();
    for (said, by) in [
        ("building", Signal::SIGINT),
        ("The agent arrives", Signal::SIGTERM),
        ("Who reaches whom", Signal::SIGHUP),
        ("There is no agent now", Signal::SIGINT),
    ] {
        let mut child = start(&["--fast"])?;
        read_until(&mut child, said)?;
        signal(child.id(), by)?;
        let status = wait_end(&mut child)?;
        assert_eq!(status.code(), Some(1), "{said}, {by}");
        assert_eq!(remains(child.id())?, Vec::<PathBuf>::new(), "{said}, {by}");
    }
    Ok(())
}

#[test]
fn what_a_killed_one_left_is_removed_by_the_next() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock();
    let mut killed = start(&["--fast"])?;
    read_until(&mut killed, "Who reaches whom")?;
    killed.kill()?;
    killed.wait()?;
    assert_ne!(remains(killed.id())?, Vec::<PathBuf>::new());
    let mut next = start(&["--fast"])?;
    read_until(&mut next, "building")?;
    assert_eq!(remains(killed.id())?, Vec::<PathBuf>::new());
    signal(next.id(), Signal::SIGTERM)?;
    wait_end(&mut next)?;
    assert_eq!(remains(next.id())?, Vec::<PathBuf>::new());
    Ok(())
}

#[test]
fn what_is_kept_works_until_it_is_ended() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock();
    let mut child = start(&["--fast", "--keep"])?;
    let said = read_until(&mut child, "Ctrl-C here")?;
    let pinned = said
        .iter()
        .find_map(|line| line.split_once("bpftool map dump pinned "));
    let (_, map) = pinned.context("a command for bpftool")?;
    assert!(Path::new(map).exists(), "{map}");
    let chat = format!("/run/netns/zt-demo-{}-chat", child.id());
    let procs = cgroup::mount_point()?.join(format!("zt-demo-{}/workloads/chat/cgroup.procs", child.id()));
    // As the demo says: join chat's cgroup, enter its namespace, connect.
    let reach = |address: &str| -> Result<bool> {
        let script = format!(
            "echo $$ > {}; exec nsenter --net={chat} bash -c '</dev/tcp/{address}'",
            procs.display()
        );
        let mut command = Command::new("timeout");
        command.args(["5", "bash", "-c", &script]).stderr(Stdio::null());
        Ok(command.status()?.success())
    };
    let (gateway, redis) = (reach("10.99.0.3/4000")?, reach("10.99.0.6/6379")?);
    assert!(child.try_wait()?.is_none(), "it is still there");
    signal(child.id(), Signal::SIGINT)?;
    let status = wait_end(&mut child)?;
    assert!(
        gateway && !redis,
        "chat reaches the gateway ({gateway}) and not redis ({redis})"
    );
    assert!(status.success());
    assert_eq!(remains(child.id())?, Vec::<PathBuf>::new());
    Ok(())
}

#[test]
fn it_says_what_it_lacks() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock();
    for (without, named) in [("-net_admin", "CAP_NET_ADMIN"), ("-sys_admin", "CAP_SYS_ADMIN")] {
        let output = Command::new("setpriv")
            .args(["--bounding-set", without])
            .arg(agent::binary()?)
            .arg("demo")
            .output()
            .context("cannot run `setpriv`: run `apt-get install util-linux`")?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(77), "{said}");
        assert!(said.contains(named) && output.stdout.is_empty(), "{said}");
    }
    Ok(())
}
