// SPDX-License-Identifier: Apache-2.0
//! An agent that may take less memory than it needs is killed, and nothing else comes of it.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use zt_tests::pair::{decide, pair, policy};
use zt_tests::{Policy, Sandbox, TCP, eventually};

/// Joins the cgroup that is its first word, and becomes the rest.
const JOIN: &str = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
/// Policies that together take more memory than there is, and the rules of each.
const POLICIES: usize = 40;
const RULES: usize = 1000;
/// Why decisions would be lost that find no room in the trail: none is.
const FULL: &str = "store_failed";
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

    /// Lets it have this much more than it has in use.
    fn leave(&self, bytes: u64) -> Result<()> {
        let usage = if self.limit == "memory.max" {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        let used: u64 = fs::read_to_string(self.directory.join(usage))?.trim().parse()?;
        ensure!(used > 0, "nobody is in {}", self.directory.display());
        // What is written to a swap takes no memory.
        for (file, none) in [("memory.swap.max", "0"), ("memory.swappiness", "0")] {
            let path = self.directory.join(file);
            if path.exists() {
                fs::write(&path, none).with_context(|| path.display().to_string())?;
            }
        }
        let limit = used + bytes;
        fs::write(self.directory.join(self.limit), limit.to_string())
            .with_context(|| format!("{} of {limit}, of which {used} are used", self.limit))
    }

    fn unlimited(&self) -> Result<()> {
        let none = if self.limit == "memory.max" { "max" } else { "-1" };
        Ok(fs::write(self.directory.join(self.limit), none)?)
    }
}

/// One of many policies that are about nobody here.
fn large(number: usize) -> Policy {
    let each = |policy: Policy, rule: usize| {
        let (from, to) = (
            format!("source-{number}-{rule}"),
            format!("destination-{number}-{rule}"),
        );
        policy.allow(&from, &to, TCP, "80")
    };
    (0..RULES).fold(Policy::new(&format!("large-{number}")), each)
}

#[test]
fn an_agent_that_is_killed_for_its_memory_leaves_all_in_force_and_nothing_uncounted() -> Result<()> {
    let (scene, server, mut client) = pair("memory")?;
    let memory = Memory::new(scene.sandbox())?;
    let mut agent = scene.agent(&policy())?.through(memory.through()).start()?;
    decide(&mut client, &server, 1000)?;
    agent.settled(FULL, 0)?;

    memory.leave(8 << 20)?;
    // Within what it has, it goes on as ever.
    decide(&mut client, &server, 1000)?;
    agent.settled(FULL, 0)?;
    for number in 0..POLICIES {
        agent
            .files
            .write_policy(&format!("large-{number}.yaml"), &large(number).text())?;
    }
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
    agent.settled(FULL, 0)?;
    Ok(())
}
