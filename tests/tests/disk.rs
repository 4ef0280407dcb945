// SPDX-License-Identifier: Apache-2.0
//! The disk that the trail is on is only to be read: an agent does not start, what was in force stays in force, and nothing is moved.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use zt_tests::mounts::Mounts;
use zt_tests::pair::{pair, policy};
use zt_tests::probe::{Flood, Operation};
use zt_tests::trail::RECORDED;
use zt_tests::trail::decided;
use zt_tests::{Agent, AgentBuilder, Party, Sandbox, eventually};

/// Of the file system: room for what all of this records.
const SIZE: &str = "size=96m";
const SOME: u64 = 300;

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

    fn remount(&self, how: &str) -> Result<()> {
        let options = format!("remount,{how}");
        let path = self.directory.display().to_string();
        self.mounts.run(&["mount", "-o", &options, &path])
    }
}

/// Tries as often as that, half of it allowed, and looks that policy decides all of it.
fn decide(client: &mut Party, server: &Party, count: u64) -> Result<()> {
    let flood = Flood {
        to: vec![server.v4(80), server.v6(81)],
        ..Flood::new(server.v4(80), count)
    };
    let reply = client.call(Operation::ConnectMany(flood))?.ok()?;
    let outcomes = (reply.outcomes[0].count("ok"), reply.outcomes[1].count("EPERM"));
    ensure!(outcomes == (count / 2, count / 2), "{outcomes:?} of {count}");
    Ok(())
}

/// Waits until every decision is a record, once, or was lost in the ring.
fn settled(agent: &Agent) -> Result<()> {
    let mut accounts = (0, 0, 0);
    let all = eventually("all to be settled", RECORDED, || {
        let records = agent.all_records("type=decision")?;
        let ids: BTreeSet<String> = records.iter().map(|record| record["id"].to_string()).collect();
        ensure!(ids.len() == records.len(), "a record is there twice");
        let ring = agent.counter("events_lost")?;
        accounts = (agent.decisions()?, decided(&records), ring);
        Ok(accounts.1 + accounts.2 == accounts.0)
    });
    all.with_context(|| format!("decisions, records, lost in the ring: {accounts:?}"))
}

#[test]
fn a_disk_that_is_only_to_be_read_keeps_an_agent_from_starting_and_moves_nothing() -> Result<()> {
    let (scene, server, mut client) = pair("read-only-disk")?;
    let disk = Disk::new(scene.sandbox())?;
    let mut agent = disk.agent(scene.agent(&policy())?).start()?;
    decide(&mut client, &server, SOME)?;
    settled(&agent)?;
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
    settled(&agent)?;
    Ok(())
}
