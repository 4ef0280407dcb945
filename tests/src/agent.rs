// SPDX-License-Identifier: Apache-2.0
//! The real `zt-agent`, started, killed and asked.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use crate::agent_files::{AgentFiles, Workload};
use crate::cgroup::Cgroup;
use crate::http::{self, Answer};
pub use crate::metrics::Metrics;
use crate::network::Host;
use crate::ports;
use crate::probe::built_binary;
use crate::sandbox::Sandbox;
use crate::wait::wait_for;

/// How long an agent may take to be ready, and to end.
pub const DEADLINE: Duration = Duration::from_secs(180);
/// How much of its output a failure shows.
const LOG_LINES: usize = 60;

/// An agent that has not been started.
#[derive(Debug)]
pub struct AgentBuilder {
    files: AgentFiles,
    cgroup: Cgroup,
    config: Map<String, Value>,
    workloads: Vec<Workload>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    through: Vec<String>,
    host: Option<Host>,
    api: SocketAddr,
    health: SocketAddr,
}

impl AgentBuilder {
    /// One that manages the sandbox's tree, pins in its own directory, and listens on free loopback ports. Its files
    /// are in `directory`.
    pub(crate) fn new(sandbox: &Sandbox, directory: PathBuf) -> Result<Self> {
        let files = AgentFiles::create(directory)?;
        let (api, health) = ports::two()?;
        let config = json!({
            "node": "test-node",
            "policyPath": files.policies(),
            "managedCgroup": sandbox.managed().relative(),
            "bpffs": sandbox.pins()?,
            "identity": { "source": "file", "file": files.workloads() },
            "audit": { "dsn": format!("sqlite://{}", files.audit().display()) },
            "api": { "listen": api, "health": health, "socket": files.socket() },
        });
        let Value::Object(config) = config else {
            bail!("the configuration is an object")
        };
        Ok(Self {
            files,
            cgroup: sandbox.outside().child("agent")?,
            config,
            workloads: Vec::new(),
            environment: Vec::new(),
            arguments: Vec::new(),
            through: Vec::new(),
            host: None,
            api,
            health,
        })
    }

    /// Sets a key of the configuration file, replacing what was there.
    #[must_use]
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// Says where it listens, for a configuration that says so itself.
    #[must_use]
    pub fn listens(mut self, api: SocketAddr, health: SocketAddr) -> Self {
        (self.api, self.health) = (api, health);
        self
    }

    /// Sets `mode` for workloads that name none.
    #[must_use]
    pub fn mode(self, mode: &str) -> Self {
        self.config("mode", json!(mode))
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds an argument of `zt-agent run`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Has it started by this command, which becomes it: the words that come before the program and its arguments.
    #[must_use]
    pub fn through(mut self, command: Vec<String>) -> Self {
        self.through = command;
        self
    }

    /// Has it run in a network namespace, where it listens as well. Its API is asked at its socket.
    #[must_use]
    pub fn inside(mut self, host: &Host) -> Self {
        self.host = Some(host.clone());
        let namespace = format!("--net={}", host.namespace_file().display());
        self.through(vec!["nsenter".to_owned(), namespace, "--".to_owned()])
    }

    /// Adds a workload to `workloads.yaml`.
    #[must_use]
    pub fn workload(mut self, workload: Workload) -> Self {
        self.workloads.push(workload);
        self
    }

    /// Adds a policy file.
    pub fn policy(self, file: &str, text: &str) -> Result<Self> {
        self.files.write_policy(file, text)?;
        Ok(self)
    }

    /// Starts it and waits until it is ready.
    pub fn start(self) -> Result<Agent> {
        let mut agent = self.launch()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts it without waiting, for agents that must refuse to run.
    pub fn launch(self) -> Result<Agent> {
        self.files.write_config(&self.config)?;
        self.files.write_workloads(&self.workloads)?;
        let has_tls = self.config.get("api").is_some_and(|api| !api["tls"].is_null());
        let at_socket = has_tls || self.host.is_some();
        let mut agent = Agent {
            binary: binary()?,
            files: self.files,
            cgroup: self.cgroup,
            environment: self.environment,
            arguments: self.arguments,
            through: self.through,
            host: self.host,
            api: self.api,
            health: self.health,
            at_socket,
            child: None,
        };
        agent.spawn()?;
        Ok(agent)
    }
}

/// An agent that was started. It is killed when this is dropped; after a failure, its last output is shown.
#[derive(Debug)]
pub struct Agent {
    binary: PathBuf,
    /// The files that it reads, to be changed under it.
    pub files: AgentFiles,
    cgroup: Cgroup,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    through: Vec<String>,
    host: Option<Host>,
    api: SocketAddr,
    health: SocketAddr,
    /// Its port answers over TLS alone, or elsewhere: it is asked at its socket.
    at_socket: bool,
    child: Option<Child>,
}

impl Agent {
    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where its API listens.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// The socket of its API.
    pub fn socket(&self) -> PathBuf {
        self.files.socket()
    }

    /// Where `/healthz`, `/readyz` and `/metrics` are.
    pub fn health(&self) -> SocketAddr {
        self.health
    }

    /// `GET`s JSON from the API; anything but 2xx is an error.
    pub fn get(&self, path: &str) -> Result<Value> {
        let answer = if self.at_socket {
            http::get_over(&self.socket(), path)?
        } else {
            http::get(self.api, path)?
        };
        answer.success()?.json()
    }

    /// `POST`s JSON to the API; the status is the caller's to judge.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        http::post(self.api, path, body)
    }

    /// What it answers where health and metrics are.
    pub fn health_says(&self, path: &str) -> Result<Answer> {
        let ask = || http::get(self.health, path);
        self.host.as_ref().map_or_else(ask, |host| host.within(ask))
    }

    /// Everything `/metrics` says now.
    pub fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics {
            text: self.health_says("/metrics")?.success()?.body,
        })
    }

    /// Waits until the policy in force satisfies `holds`, which is given `/v1/policies`.
    pub fn wait_policies(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(what, DEADLINE, || {
            Ok(Some(self.get("/v1/policies")?).filter(|answer| holds(answer)))
        })
    }

    /// Waits until a revision later than `revision` is in force, and returns it.
    pub fn wait_revision_after(&self, revision: u64) -> Result<u64> {
        let answer = self.wait_policies(&format!("a revision after {revision}"), |answer| {
            answer["revision"].as_u64().is_some_and(|now| now > revision)
        })?;
        answer["revision"].as_u64().context("the answer has a revision")
    }

    /// The revision in force.
    pub fn revision(&self) -> Result<u64> {
        self.get("/v1/policies")?["revision"]
            .as_u64()
            .context("/v1/policies has no revision")
    }

    /// Waits until `/readyz` says 200.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = wait_for("the agent to be ready", DEADLINE, || {
            let child = self.child.as_mut().context("the agent is not running")?;
            if let Some(status) = child.try_wait()? {
                bail!("the agent ended with {status}");
            }
            // Nobody listens in the beginning.
            Ok(self
                .health_says("/readyz")
                .ok()
                .filter(|answer| answer.status == 200)
                .map(drop))
        });
        ready.with_context(|| self.log_tail())
    }

    /// Kills it as a crash would, with no chance to do anything.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the agent is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks it to end (`SIGTERM`) and waits until it has.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_exit()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("the agent is not running")?;
        Ok(kill(Pid::from_raw(pid.try_into()?), signal)?)
    }

    /// Waits until it has ended by itself.
    pub fn wait_exit(&mut self) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("the agent is not running")?;
        let ended = wait_for("the agent to end", DEADLINE, || Ok(child.try_wait()?));
        let status = ended.with_context(|| self.log_tail())?;
        self.child = None;
        Ok(status)
    }

    /// Starts it again with the same files, after it has ended, and waits until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts it again and waits for nothing.
    pub fn begin_again(&mut self) -> Result<()> {
        self.spawn()
    }

    /// Ends it in order, and starts it with another value of a setting.
    pub fn restart_with(&mut self, setting: &str, value: Value) -> Result<()> {
        let file = self.files.config();
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        config[setting] = value;
        fs::write(&file, config.to_string())?;
        self.terminate()?;
        self.restart()
    }

    /// A `zt-agent` command that talks to this agent: `command(&["status", "-o", "json"])`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_through(&[], arguments)
    }

    /// The same, run by a command, as [`AgentBuilder::through`] has it.
    pub fn command_through(&self, through: &[String], arguments: &[&str]) -> Command {
        let mut command = match through.split_first() {
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        // Settings of whoever runs the tests are not the test's.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ZT_")) {
            command.env_remove(name);
        }
        command.args(arguments).arg("--config").arg(self.files.config());
        command
    }

    /// What it has written so far, in all its runs.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.files.log())?)
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("the agent's last output:\n{}", tail.join("\n"))
    }

    fn spawn(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("the agent is already running");
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.files.log())?;
        let child = self
            .command_through(&self.through, &["run"])
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        // In the sandbox, so that it is swept up when this process is killed.
        self.cgroup.add(child.id())?;
        self.child = Some(child);
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}

/// The `zt-agent` to test: `ZT_AGENT_BINARY`, or the one built next to the running test.
pub fn binary() -> Result<PathBuf> {
    let named = std::env::var_os("ZT_AGENT_BINARY").map(|path| Ok(path.into()));
    named.unwrap_or_else(|| built_binary("zt-agent", "cargo build -p zt-agent"))
}
