// SPDX-License-Identifier: Apache-2.0
//! A running agent with a sandbox around it, and the policies that it is given.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::Pid;
use serde_json::Value;
use zt_common::ABI_VERSION;
use zt_tests::agent_files::Workload;
use zt_tests::{Agent, AgentBuilder, Cgroup, Sandbox, wait_for};

use crate::worker::pin;

/// How long a large policy may take to be in force.
const PATIENCE: Duration = Duration::from_secs(60);

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

    /// Pinned maps.
    pub(crate) fn maps(&self) -> Result<PathBuf> {
        Ok(self.sandbox.pins()?.join(format!("v{ABI_VERSION}")).join("maps"))
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

/// So many rules about workloads that are elsewhere, each its own entry of the table; others for another `generation`.
pub(crate) fn filler(count: usize, generation: u16) -> String {
    let mut text = String::with_capacity(count * 120);
    for number in 0..count {
        let (source, destination) = (number % 1000, number / 1000);
        let port = 1 + generation;
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "    - {{from: {{spiffe: '{}'}}, to: [{{spiffe: '{}', ports: [{port}]}}]}}",
            id(&format!("a/{source}")),
            id(&format!("b/{destination}")),
        );
    }
    policy("filler", &text)
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
