// SPDX-License-Identifier: Apache-2.0
//! The disk that the trail is on is full, or only to be read: enforcement goes on, what has no room waits in the ring buffer or is
//! counted, and when there is room again nothing needs to be done.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use zt_tests::mounts::Mounts;
use zt_tests::pair::{decide, pair, policy};
use zt_tests::probe::TIMEOUT;
use zt_tests::{Agent, AgentBuilder, Sandbox, eventually, http};

/// Of the file system: room for what all of this records.
const SIZE: &str = "size=96m";
/// Decisions while there is no room, fewer than the ring buffer holds.
const SOME: u64 = 300;
/// More than half of what the ring buffer holds.
const MANY: u64 = 100_000;

/// Why decisions are lost that find no room.
const FULL: &str = "store_failed";

/// A file system of its own for the trail, in a mount namespace that goes with its last process.
struct Disk {
    mounts: Mounts,
    directory: PathBuf,
}

impl Disk {
    fn new(sandbox: &Sandbox) -> Result<Self> {
        let mounts = Mounts::of_container(sandbox)?;
        let directory = sandbox.directory().join("disk");
        fs::create_dir(&directory)?;
        let path = directory.display().to_string();
        mounts.run(&["mount", "-t", "tmpfs", "-o", SIZE, "tmpfs", &path])?;
        Ok(Self { mounts, directory })
    }

    /// An agent that has its trail there.
    fn agent(&self, agent: AgentBuilder) -> AgentBuilder {
        let file = self.directory.join("audit.db");
        agent
            .config("audit", json!({ "dsn": format!("sqlite://{}", file.display()) }))
            .through(self.mounts.enter())
    }

    fn filler(&self) -> PathBuf {
        self.mounts.seen(&self.directory.join("filler"))
    }

    /// Leaves no room.
    fn fill(&self) -> Result<()> {
        let mut filler = File::create(self.filler())?;
        let mut block = vec![0; 1 << 16];
        loop {
            match filler.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull && block.len() > 512 => {
                    block.truncate(block.len() / 2);
                }
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn make_room(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn remount(&self, how: &str) -> Result<()> {
        let options = format!("remount,{how}");
        let path = self.directory.display().to_string();
        self.mounts.run(&["mount", "-o", &options, &path])
    }

    /// Runs a command of the agent's where the disk is.
    fn output(&self, agent: &Agent, arguments: &[&str]) -> Result<Output> {
        let command = agent.command(arguments);
        let enter = self.mounts.enter();
        let mut inside = Command::new(&enter[0]);
        inside.args(&enter[1..]).arg(command.get_program());
        Ok(inside.args(command.get_args()).output()?)
    }
}

#[test]
fn a_full_disk_stops_no_decision_and_takes_none_that_is_not_counted() -> Result<()> {
    let (scene, server, mut client) = pair("full-disk")?;
    let disk = Disk::new(scene.sandbox())?;
    let mut agent = disk.agent(scene.agent(&policy())?).start()?;
    decide(&mut client, &server, SOME)?;
    agent.settled(FULL, 0)?;

    // What comes now waits, and nothing of it is lost.
    disk.fill()?;
    decide(&mut client, &server, SOME)?;
    eventually("the store to fail", TIMEOUT, || {
        Ok(agent.metrics()?.sum("zt_audit_store_failures_total", &[]) > 0)
    })?;
    assert_eq!(http::get(agent.health(), "/readyz")?.status, 200);
    decide(&mut client, &server, SOME)?;
    assert_eq!(agent.lost(FULL)?, 0);
    disk.make_room()?;
    agent.settled(FULL, 0)?;
    assert_eq!(agent.lost(FULL)?, 0);

    // More than waits: the oldest are lost, and counted to the last.
    disk.fill()?;
    decide(&mut client, &server, MANY)?;
    eventually(
        "what does not fit to be counted",
        Duration::from_secs(120),
        || Ok(agent.lost(FULL)? > 0),
    )?;
    disk.make_room()?;
    agent.settled(FULL, 0)?;
    decide(&mut client, &server, SOME)?;
    agent.settled(FULL, 0)?;

    // Full again when the agent dies: what it has not stored is in the ring buffer for the next one.
    disk.fill()?;
    let failures =
        || Ok::<f64, anyhow::Error>(agent.metrics()?.sum("zt_audit_store_failures_total", &[]) as f64);
    let failed = failures()?;
    // The log that is there has room for some.
    eventually("the store to fail again", Duration::from_secs(120), || {
        decide(&mut client, &server, 10 * SOME)?;
        Ok(failures()? > failed)
    })?;
    let before = agent.lost(FULL)?;
    agent.kill()?;
    decide(&mut client, &server, SOME)?;
    disk.make_room()?;
    agent.restart()?;
    agent.settled(FULL, before)?;
    assert!(agent.terminate()?.success());
    let verify = disk.output(&agent, &["audit", "verify"])?;
    let said = String::from_utf8_lossy(&verify.stdout);
    ensure!(
        verify.status.success() && said.contains("nothing was changed"),
        "{said}{}",
        String::from_utf8_lossy(&verify.stderr)
    );
    Ok(())
}

#[test]
fn a_disk_that_is_only_to_be_read_keeps_an_agent_from_starting_and_moves_nothing() -> Result<()> {
    let (scene, server, mut client) = pair("read-only-disk")?;
    let disk = Disk::new(scene.sandbox())?;
    let mut agent = disk.agent(scene.agent(&policy())?).start()?;
    decide(&mut client, &server, SOME)?;
    agent.settled(FULL, 0)?;
    assert!(agent.terminate()?.success());
    let names = || -> Result<BTreeSet<String>> {
        let directory = fs::read_dir(disk.mounts.seen(&disk.directory))?;
        let names = directory.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    };
    let before = names()?;

    disk.remount("ro")?;
    // Whoever sees to it that an agent runs tries again and again.
    for _ in 0..2 {
        assert!(agent.restart().is_err());
        assert_eq!(agent.wait_exit()?.code(), Some(1));
        // What was in force stays in force meanwhile.
        decide(&mut client, &server, SOME)?;
    }
    let log = agent.log()?;
    assert!(log.contains("Read-only file system"), "{log}");
    assert_eq!(names()?, before);
    disk.remount("rw")?;
    agent.restart()?;
    agent.settled(FULL, 0)?;
    Ok(())
}
