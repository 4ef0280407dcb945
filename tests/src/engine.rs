// SPDX-License-Identifier: Apache-2.0
//! A real policy engine, started, killed and asked.

use std::fs::{self, OpenOptions};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use crate::agent::{Metrics, binary};
use crate::cgroup::Cgroup;
use crate::http::{self, Answer};
use crate::ports;
use crate::rules::{Policy, TCP, spiffe};
use crate::sandbox::Sandbox;
use crate::wait::{eventually, wait_for};

/// How long an engine may take to be ready, and to end.
const DEADLINE: Duration = Duration::from_secs(60);

/// An engine: killed when this is dropped; after a failure, its output is shown.
#[derive(Debug)]
pub struct Engine {
    name: String,
    home: PathBuf,
    cgroup: Cgroup,
    config: Map<String, Value>,
    program: Option<PathBuf>,
    api: SocketAddr,
    health: SocketAddr,
    child: Option<Child>,
}

impl Engine {
    /// One that is not started yet, on a directory of policies, with a trail of its own in a file and files below the
    /// sandbox's directory.
    pub fn new(sandbox: &Sandbox, name: &str, policies: &Path) -> Result<Self> {
        let home = sandbox.directory().join(name);
        fs::create_dir_all(&home)?;
        let (api, health) = ports::two()?;
        let config = json!({
            "node": name,
            "policyPath": policies,
            "identity": { "file": home.join("workloads.yaml") },
            "audit": { "dsn": format!("sqlite://{}", home.join("audit.db").display()) },
            "api": { "listen": api, "health": health, "socket": home.join("agent.sock"), "drain": "0s" },
        });
        let Value::Object(config) = config else {
            bail!("the configuration is an object")
        };
        Ok(Self {
            name: name.to_owned(),
            // So that it is swept up when this process is killed.
            cgroup: sandbox.outside().child(name)?,
            home,
            config,
            program: None,
            api,
            health,
            child: None,
        })
    }

    /// The same on a directory of its own, in which there is this policy.
    pub fn with_policy(sandbox: &Sandbox, name: &str, policy: &Policy) -> Result<Self> {
        let policies = sandbox.directory().join("policies");
        fs::create_dir_all(&policies)?;
        fs::write(policies.join("core.yaml"), policy.text())?;
        Self::new(sandbox, name, &policies)
    }

    /// Sets a key of the configuration file, replacing what was there.
    #[must_use]
    pub fn config(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// Has another copy of the program run.
    #[must_use]
    pub fn program(mut self, path: PathBuf) -> Self {
        self.program = Some(path);
        self
    }

    /// Has its trail on a `PostgreSQL` server.
    #[must_use]
    pub fn on_server(self, dsn: &str, retention_days: u32) -> Self {
        let (spool, keys) = (self.spool(), self.home.join("keys"));
        let audit = json!({ "dsn": dsn, "spool": spool, "keys": keys, "retentionDays": retention_days });
        self.config("audit", audit)
    }

    /// Its name in records.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its records wait for the server.
    pub fn spool(&self) -> PathBuf {
        self.home.join("spool.db")
    }

    /// Where its API listens.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// The URL of its API.
    pub fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// Where `/healthz`, `/readyz` and `/metrics` are.
    pub fn health(&self) -> SocketAddr {
        self.health
    }

    /// Starts it, without waiting.
    pub fn launch(&mut self) -> Result<()> {
        let config = self.config_file();
        // JSON is YAML.
        fs::write(&config, format!("{:#}\n", Value::Object(self.config.clone())))?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let program = self.program.clone().map_or_else(binary, Ok)?;
        let child = Command::new(program)
            .env_clear()
            .arg("engine")
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.cgroup.add(child.id())?;
        self.child = Some(child);
        Ok(())
    }

    /// Starts it and waits until it is ready.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Waits until `/readyz` says 200.
    pub fn wait_ready(&mut self) -> Result<()> {
        let health = self.health;
        let ready = wait_for("the engine to be ready", DEADLINE, || {
            let child = self.child.as_mut().context("the engine is not running")?;
            if let Some(status) = child.try_wait()? {
                bail!("the engine ended with {status}");
            }
            // Nobody listens in the beginning.
            let ready = http::get(health, "/readyz").ok();
            Ok(ready.filter(|answer| answer.status == 200).map(drop))
        });
        ready.with_context(|| self.log().unwrap_or_default())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the engine is not running")?;
        Ok(kill(Pid::from_raw(child.id().try_into()?), signal)?)
    }

    /// Its configuration file, which each start writes anew.
    pub fn config_file(&self) -> PathBuf {
        self.home.join("agent.yaml")
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the engine is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks it to end and waits until it has.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let mut child = self.child.take().context("the engine is not running")?;
        Ok(child.wait()?)
    }

    /// `GET`s JSON from the API; anything but 2xx is an error.
    pub fn get(&self, path: &str) -> Result<Value> {
        http::get(self.api, path)?.success()?.json()
    }

    /// Puts a policy in force; the status is the caller's to judge.
    pub fn put(&self, name: &str, text: &str) -> Result<Answer> {
        http::request(self.api, "PUT", &format!("/v1/policies/{name}"), Some(text))
    }

    /// The digest of what is in force there.
    pub fn digest(&self) -> Result<String> {
        let answer = self.get("/v1/policies")?;
        let digest = answer["digest"].as_str();
        Ok(digest.context("a digest")?.to_owned())
    }

    /// Asks whether `client` may reach `server` at a port, and returns what it answers.
    pub fn evaluate(&self, port: u16) -> Result<Value> {
        let question = json!({
            "source": { "spiffe_id": spiffe("client") },
            "destination": { "spiffe_id": spiffe("server"), "port": port, "protocol": TCP },
        });
        http::post(self.api, "/v1/evaluate", &question)?.success()?.json()
    }

    /// Waits until so many of its records are on the server.
    pub fn wait_shipped(&self, count: u64) -> Result<()> {
        eventually("records to be shipped", 2 * DEADLINE, || {
            Ok(self.metrics()?.sum("zt_audit_shipped_total", &[]) >= count)
        })
    }

    /// Everything `/metrics` says now.
    pub fn metrics(&self) -> Result<Metrics> {
        let text = http::get(self.health, "/metrics")?.success()?.body;
        Ok(Metrics { text })
    }

    /// What it has written so far, in all its runs.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.log_file())?)
    }

    fn log_file(&self) -> PathBuf {
        self.home.join("log")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill();
        }
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.name, self.log().unwrap_or_default());
        }
    }
}
