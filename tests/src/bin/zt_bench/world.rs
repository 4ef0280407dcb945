// SPDX-License-Identifier: Apache-2.0
//! A running agent with a sandbox around it, and the policies that it is given.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::unistd::Pid;
use serde_json::Value;
use zt_tests::agent_files::Workload;
use zt_tests::{Agent, AgentBuilder, Cgroup, Sandbox, wait_for};

use crate::worker::pin;

/// How long a large policy may take to be in force.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent whose revision stays for so long has nothing more to take in.
const QUIET: Duration = Duration::from_secs(1);

/// Lines of its log that a dead agent is remembered by.
const LAST_WORDS: usize = 20;

/// An agent and the sandbox that it manages.
#[derive(Debug)]
pub(crate) struct World {
    /// Dropped first, so that it does not see its world go.
    pub(crate) agent: Agent,
    /// Everything else.
    pub(crate) sandbox: Sandbox,
}

impl World {
    /// Starts an agent that enforces. `prepare` gives it its workloads and policies.
    pub(crate) fn start(
        label: &str,
        prepare: impl FnOnce(&Sandbox, AgentBuilder) -> Result<AgentBuilder>,
    ) -> Result<Self> {
        let sandbox = Sandbox::new(label)?;
        let agent = prepare(&sandbox, sandbox.agent()?.mode("enforce"))?.start()?;
        Ok(Self { agent, sandbox })
    }

    /// Lets the agent run on one CPU only, so that it does not get into the way of what is measured.
    pub(crate) fn confine_agent(&self, cpu: usize) -> Result<()> {
        let pid = self.agent.pid().context("the agent is running")?;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            if let Some(thread) = task?.file_name().to_str().and_then(|name| name.parse().ok()) {
                pin(Pid::from_raw(thread), cpu)?;
            }
        }
        Ok(())
    }

    /// Replaces a policy file and waits until it is in force.
    pub(crate) fn policy(&self, file: &str, text: &str) -> Result<()> {
        let before = self.agent.revision()?;
        self.agent.files.write_policy(file, text)?;
        wait_for("the new policy to be in force", PATIENCE, || {
            Ok((self.agent.revision()? > before).then_some(()))
        })
    }

    /// Puts so many rules of filler in force. Only ever more of them.
    pub(crate) fn fill(&self, count: usize) -> Result<()> {
        for (file, text) in filler(count) {
            self.agent.files.write_policy(&file, &text)?;
        }
        self.wait_entries(count)
    }

    /// Waits until the table in force has at least so many entries.
    pub(crate) fn wait_entries(&self, count: usize) -> Result<()> {
        wait_for(&format!("{count} entries to be in force"), PATIENCE, || {
            let status = self.agent.get("/v1/status")?;
            Ok((status["policy"]["entries"].as_u64() >= Some(count as u64)).then_some(()))
        })
    }

    /// Waits until the agent has taken in every change of its files.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut last = (self.agent.revision()?, Instant::now());
        wait_for("the revision to stay", PATIENCE, || {
            let revision = self.agent.revision()?;
            if revision != last.0 {
                last = (revision, Instant::now());
            }
            Ok((last.1.elapsed() > QUIET).then_some(()))
        })
    }

    /// Pinned maps.
    pub(crate) fn maps(&self) -> Result<PathBuf> {
        self.sandbox.maps()
    }

    /// Attached programs by name, with their numbers in the kernel.
    pub(crate) fn programs(&self) -> Result<BTreeMap<String, u32>> {
        let status = self.agent.get("/v1/status")?;
        let hooks = status["hooks"].as_array().context("the status names the hooks")?;
        let number = |hook: &Value| {
            Some((
                hook["program"].as_str()?.to_owned(),
                hook["program_id"].as_u64()? as u32,
            ))
        };
        Ok(hooks.iter().filter_map(number).collect())
    }

    /// A managed cgroup and the workload that it is.
    pub(crate) fn member(sandbox: &Sandbox, name: &str) -> Result<(Cgroup, Workload)> {
        let cgroup = sandbox.cgroup(name)?;
        let workload = Workload::new(&id(name), &cgroup);
        Ok((cgroup, workload))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Its log goes with the sandbox: what it says of its end must be told now.
        if self.agent.get("/v1/status").is_err() {
            let log = self.agent.log().unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines.len().saturating_sub(LAST_WORDS);
            eprintln!(
                "the agent does not answer; its last words:\n{}",
                lines[last..].join("\n")
            );
        }
    }
}

/// Gives an agent so many rules of filler to start with.
pub(crate) fn filled(mut builder: AgentBuilder, count: usize) -> Result<AgentBuilder> {
    for (file, text) in filler(count) {
        builder = builder.policy(&file, &text)?;
    }
    Ok(builder)
}

/// A field of every line of the agent's log about a policy that was put in force.
pub(crate) fn logged(log: &str, field: &str) -> Vec<f64> {
    let value = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let found = line.get(field)?;
        // A number too wide for JSON is written as text.
        found.as_f64().or_else(|| found.as_str()?.parse().ok())
    };
    log.lines().filter_map(value).collect()
}

/// The identity of a workload of the benchmarks.
pub(crate) fn id(name: &str) -> String {
    format!("spiffe://hanzo.ai/bench/{name}")
}

/// A policy document.
pub(crate) fn policy(name: &str, rules: &str) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata:\n  name: {name}\nspec:\n  rules:\n{rules}"
    )
}

/// One rule: `source` may reach `destination`, each an endpoint such as `spiffe: …`, at `port`.
pub(crate) fn rule(source: &str, destination: &str, port: u16) -> String {
    format!("    - {{from: {{{source}}}, to: [{{{destination}, ports: [{port}]}}]}}\n")
}

/// Policy files with so many rules about workloads that are elsewhere, each its own entry of the table.
pub(crate) fn filler(count: usize) -> Vec<(String, String)> {
    // The agent takes files of up to a megabyte.
    const EACH: usize = 5000;
    let document = |first: usize| {
        let mut rules = String::with_capacity(EACH * 120);
        for number in first..count.min(first + EACH) {
            let from = format!("spiffe: '{}'", id(&format!("a/{}", number % 1000)));
            let to = format!("spiffe: '{}'", id(&format!("b/{}", number / 1000)));
            rules.push_str(&rule(&from, &to, 1));
        }
        let name = format!("filler-{}", first / EACH);
        (format!("{name}.yaml"), policy(&name, &rules))
    };
    (0..count).step_by(EACH).map(document).collect()
}

/// One policy file with so many entries, all of them others for another `generation`, and `also` this rule.
pub(crate) fn compact(entries: usize, generation: u16, also: &str) -> String {
    // Ports that no range joins.
    const PORTS: usize = 100;
    let ports: Vec<String> = (0..PORTS)
        .map(|port| (20_000 + 2 * port as u16 + generation).to_string())
        .collect();
    let ports = ports.join(", ");
    let mut rules = String::new();
    for number in 0..entries / PORTS {
        let (from, to) = (id(&format!("a/{number}")), id(&format!("b/{}", number % 100)));
        // Writing into a String cannot fail.
        let _ = writeln!(
            rules,
            "    - {{from: {{spiffe: '{from}'}}, to: [{{spiffe: '{to}', ports: [{ports}]}}]}}"
        );
    }
    rules.push_str(also);
    policy("compact", &rules)
}

/// Few rules that stand for `side` × `side` entries.
pub(crate) fn wide(side: usize) -> String {
    let mut text = String::new();
    // A pattern stands for the identities that are named somewhere.
    for number in 0..side {
        for family in ["wa", "wb"] {
            let named = format!("spiffe: '{}'", id(&format!("{family}/{number}")));
            text.push_str(&rule(&named, "entity: host", 1));
        }
    }
    let [from, to] = ["wa", "wb"].map(|family| format!("spiffe: '{}'", id(&format!("{family}/*"))));
    text.push_str(&rule(&from, &to, 2));
    policy("filler", &text)
}
