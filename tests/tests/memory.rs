// SPDX-License-Identifier: Apache-2.0
//! An agent that may take less memory than it needs is killed, and nothing else comes of it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use zt_tests::pair::{pair, policy};
use zt_tests::probe::{Flood, Operation};
use zt_tests::trail::RECORDED;
use zt_tests::{Agent, Party, Policy, Sandbox, TCP, eventually};

/// Joins the cgroup that is its first word, and becomes the rest.
const JOIN: &str = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
/// Rules of a policy that takes more memory than there is.
const RULES: usize = 50_000;
/// How long it may take to read it.
const KILLED: Duration = Duration::from_secs(120);

/// Where the memory of an agent is bounded: of version 2 its cgroup in the sandbox, of version 1 one beside it, which goes with
/// the sandbox too.
struct Memory {
    directory: PathBuf,
    limit: &'static str,
}

impl Memory {
    fn new(sandbox: &Sandbox) -> Result<Self> {
        let older = Path::new("/sys/fs/cgroup/memory");
        if older.join("memory.limit_in_bytes").exists() {
            let directory = older.join(format!("{}-memory", sandbox.name()));
            fs::create_dir(&directory)?;
            let limit = "memory.limit_in_bytes";
            return Ok(Self { directory, limit });
        }
        let outside = sandbox.outside().path();
        let root = zt_tests::cgroup::mount_point()?;
        let between = outside.ancestors().take_while(|path| path.starts_with(&root));
        for path in between.collect::<Vec<_>>().into_iter().rev() {
            fs::write(path.join("cgroup.subtree_control"), "+memory")
                .with_context(|| format!("the memory controller is needed below {}", path.display()))?;
        }
        Ok(Self {
            directory: outside.join("agent"),
            limit: "memory.max",
        })
    }

    /// The words that start the agent there; of version 2 it is put there in any case.
    fn through(&self) -> Vec<String> {
        let directory = self.directory.display().to_string();
        match self.limit {
            "memory.max" => Vec::new(),
            _ => ["sh", "-c", JOIN, &directory].map(str::to_owned).into(),
        }
    }

    /// Lets it have this much more than it has in use, which is what cannot be taken back from it.
    fn leave(&self, bytes: u64) -> Result<()> {
        let stat = fs::read_to_string(self.directory.join("memory.stat"))?;
        let value = |name: &str| {
            let line = stat
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
        };
        let used = value("rss").max(value("anon"));
        ensure!(used > 0, "nobody is in {}: {stat}", self.directory.display());
        let limit = used + bytes;
        Ok(fs::write(self.directory.join(self.limit), limit.to_string())?)
    }

    fn unlimited(&self) -> Result<()> {
        let none = if self.limit == "memory.max" { "max" } else { "-1" };
        Ok(fs::write(self.directory.join(self.limit), none)?)
    }
}

/// What the pair's policy says, among so much else that reading it takes memory.
fn large() -> String {
    let each = |policy: Policy, number: usize| {
        let (from, to) = (format!("source-{number}"), format!("destination-{number}"));
        policy.allow(&from, &to, TCP, "80")
    };
    (0..RULES).fold(policy(), each).text()
}

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

/// Waits until every decision is a record, once, or was counted as lost in the ring.
fn settled(agent: &Agent) -> Result<()> {
    eventually("all to be settled", RECORDED, || {
        let records = agent.all_records("type=decision")?;
        let ids: BTreeSet<String> = records.iter().map(|record| record["id"].to_string()).collect();
        ensure!(ids.len() == records.len(), "a record is there twice");
        let lost = agent.counter("events_lost")?;
        Ok(records.len() as u64 + lost == agent.decisions()?)
    })
}

#[test]
fn an_agent_that_is_killed_for_its_memory_leaves_all_in_force_and_nothing_uncounted() -> Result<()> {
    let (scene, server, mut client) = pair("memory")?;
    let memory = Memory::new(scene.sandbox())?;
    let mut agent = scene.agent(&policy())?.through(memory.through()).start()?;
    decide(&mut client, &server, 1000)?;
    settled(&agent)?;

    memory.leave(8 << 20)?;
    // Within what it has, it goes on as ever.
    decide(&mut client, &server, 1000)?;
    settled(&agent)?;
    agent.files.write_policy("policy.yaml", &large())?;
    let ended = {
        let pid = agent.pid().context("it runs")?;
        eventually("the agent to be killed", KILLED, || {
            decide(&mut client, &server, 200)?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            Ok(stat.contains(") Z "))
        })?;
        agent.wait_exit()?
    };
    assert_eq!(ended.signal(), Some(libc::SIGKILL), "{ended:?}");
    decide(&mut client, &server, 1000)?;

    // With room again the next one takes over what the other had, and the policy that was too large for it.
    memory.unlimited()?;
    agent.restart()?;
    decide(&mut client, &server, 1000)?;
    settled(&agent)?;
    Ok(())
}
