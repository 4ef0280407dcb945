// SPDX-License-Identifier: Apache-2.0
//! Identities from a real SPIRE, which each test starts for itself: real processes in cgroups, attested by the `unix`
//! attestor, and enforced in the kernel by who SPIRE says they are.

#[path = "spire/database.rs"]
mod database;
#[path = "spire/life.rs"]
mod life;
#[path = "spire/node.rs"]
mod node;
#[path = "spire/nodes.rs"]
mod nodes;
#[path = "spire/outage.rs"]
mod outage;
#[path = "spire/own.rs"]
mod own;
#[path = "spire/sources.rs"]
mod sources;
#[path = "spire/unprivileged.rs"]
mod unprivileged;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use zt_tests::probe;
use zt_tests::spire::Spire;
use zt_tests::{Agent, AgentBuilder, Cgroup, Host, Policy, Probe, Sandbox, TCP, http, wait_for};

/// How long anything may take on a machine that has much else to do.
const LATER: Duration = Duration::from_secs(90);
/// The one port that the policy allows.
const OPEN: u16 = 8000;
const SHUT: u16 = 8001;
/// In the layout of the specification.
const CLIENT: &str = "spiffe://hanzo.ai/hanzo-k8s/test/client";
/// In the layout that SPIRE's own tools prefer.
const SERVER: &str = "spiffe://hanzo.ai/ns/test/sa/server";

/// A SPIRE, a client and a server that it can tell apart by their programs, in one namespace.
struct World {
    spire: Spire,
    sandbox: Sandbox,
    host: Host,
    client: Probe,
    server: Probe,
}

impl World {
    /// The server serves on both ports. Nothing is registered but the agent, if `delegate` says so.
    fn new(label: &str, ttl: Duration, delegate: bool) -> Result<Self> {
        let sandbox = Sandbox::new(label)?;
        let host = sandbox.host("one")?;
        let spire = Spire::start(ttl)?;
        if delegate {
            let agent = format!("unix:path:{}", zt_tests::agent::binary()?.display());
            spire.register(&Spire::delegate(), &[&agent], &["-x509SVIDTTL", "3600"])?;
        }
        let client = start(&sandbox, &host, "client")?;
        let mut server = start(&sandbox, &host, "server")?;
        for port in [OPEN, SHUT] {
            let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            server.serve(any)?.ok()?;
        }
        Ok(Self {
            spire,
            sandbox,
            host,
            client,
            server,
        })
    }

    /// Registers a program of this world. The entry's id.
    fn register(&self, id: &str, name: &str) -> Result<String> {
        let selector = format!("unix:path:{}", program(&self.sandbox, name).display());
        self.spire.register(id, &[&selector], &[])
    }

    /// An agent that has its identities from here, not started yet.
    fn agent(&self) -> Result<AgentBuilder> {
        let policy = Policy::new("spire").allow(CLIENT, SERVER, TCP, &OPEN.to_string());
        self.sandbox
            .agent()?
            .mode("enforce")
            .config("identity", self.identity(&json!("spire")))
            .policy("spire.yaml", &policy.text())
    }

    fn identity(&self, source: &Value) -> Value {
        json!({ "source": source, "spireAdminSocket": self.spire.admin_socket(), "spireSocket": self.spire.socket() })
    }

    fn cgroup(&self, name: &str) -> Result<Cgroup> {
        self.sandbox.cgroup(name)
    }

    /// A connection of the client to the server: `ok`, or the name of the error.
    fn connect(&mut self, port: u16) -> Result<String> {
        let reply = self
            .client
            .connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        if let Some(socket) = reply.socket {
            self.client.close(socket)?;
        }
        Ok(reply.outcome().to_owned())
    }

    /// Connects until it comes out so.
    fn connects(&mut self, port: u16, outcome: &str) -> Result<()> {
        let mut last = String::new();
        let done = wait_for(&format!("port {port} to be {outcome}"), LATER, || {
            last = self.connect(port)?;
            Ok((last == outcome).then_some(()))
        });
        done.with_context(|| format!("the last attempt was {last}"))
    }
}

/// A copy of the probe for each workload: its path is what SPIRE knows it by.
fn program(sandbox: &Sandbox, name: &str) -> PathBuf {
    sandbox.directory().join(format!("program-{name}"))
}

/// Starts a workload in the cgroup of its name.
fn start(sandbox: &Sandbox, host: &Host, name: &str) -> Result<Probe> {
    let program = program(sandbox, name);
    if !program.exists() {
        // No copy where that can be had: a process that is just being started elsewhere would inherit the descriptor that it
        // is written through, and nobody may run a file that is open for writing.
        let from = probe::binary()?;
        fs::hard_link(&from, &program).or_else(|_| fs::copy(&from, &program).map(drop))?;
    }
    Probe::start_as(&program, &sandbox.cgroup(name)?, Some(host))
}

/// Waits until the cgroup has this identity, or none.
fn wait_identity(agent: &Agent, cgroup: &Cgroup, identity: Option<&str>) -> Result<()> {
    let wanted = cgroup.relative().display().to_string();
    let mut last = Value::Null;
    let done = wait_for(&format!("{wanted} to be {identity:?}"), LATER, || {
        last = agent.get("/v1/identities")?;
        let identities = last["identities"].as_array().context("a list")?;
        let found = identities.iter().find(|found| found["cgroup"] == wanted.as_str());
        let found = found.and_then(|found| found["spiffe_id"].as_str());
        Ok((found == identity).then_some(()))
    });
    done.with_context(|| format!("last: {last}"))
}

/// Waits until `/v1/status` stands so with SPIRE.
fn wait_spire(agent: &Agent, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    let done = wait_for(what, LATER, || {
        last = agent.get("/v1/status")?["spire"].clone();
        Ok(holds(&last).then(|| last.clone()))
    });
    done.with_context(|| format!("last: {last}"))
}

/// Waits for a metric.
fn wait_metric(agent: &Agent, name: &str, labels: &[(&str, &str)], least: u64) -> Result<()> {
    let mut last = 0;
    let done = wait_for(&format!("{name}{labels:?} to reach {least}"), LATER, || {
        last = agent.metrics()?.sum(name, labels);
        Ok((last >= least).then_some(()))
    });
    done.with_context(|| format!("it was {last}"))
}

/// `zt-agent status` of the agent at a URL.
fn ask(url: &str) -> Result<Command> {
    let mut command = Command::new(zt_tests::agent::binary()?);
    command.args(["status", "--api", url]);
    Ok(command)
}

/// Whether an answer is a text with these words.
fn says(answer: &Value, words: &str) -> bool {
    answer.as_str().is_some_and(|text| text.contains(words))
}

/// What `/readyz` answers.
fn ready(agent: &Agent) -> Result<Value> {
    http::get(agent.health(), "/readyz")?.success()?.json()
}
