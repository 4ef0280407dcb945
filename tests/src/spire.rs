// SPDX-License-Identifier: Apache-2.0
//! Real SPIRE for a test: a server and an agent in a directory of their own, on Unix sockets and one loopback port, gone
//! with the test however that ends.

mod settings;
mod unprivileged;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub use self::unprivileged::USER;
use crate::obtained::newest;
use crate::ports;
use crate::wait::{eventually, wait_for};

/// The trust domain.
pub const DOMAIN: &str = "hanzo.ai";
/// The identity of the node that the agent is on.
pub const NODE: &str = "spiffe://hanzo.ai/spire-node";
/// How long either may take to start, and for a change to come through.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends both programs and removes the directory when its standard input ends, which is when the test does.
const WATCH: &str = "cat >/dev/null; for file in \"$0\"/*.pid; do kill -9 \"$(cat \"$file\")\" 2>/dev/null; done; rm -rf \"$0\"";

/// A running SPIRE server and agent. The caller of the agent's admin API must have the identity
/// [`Spire::delegate`].
#[derive(Debug)]
pub struct Spire {
    directory: PathBuf,
    programs: PathBuf,
    port: u16,
    /// The read-only port of the kubelet that its `k8s` attestor asks, if it has one.
    kubelet: Option<u16>,
    server: Option<Child>,
    agent: Option<Child>,
    watch: Child,
    // Dropped first of all in `Drop`: its end is what the watch waits for.
    alive: Option<ChildStdin>,
}

/// One more node of a [`Spire`], with an agent of its own.
#[derive(Debug)]
pub struct Node {
    /// Its identity, below which its workloads are registered.
    pub id: String,
    /// Where its agent serves the Workload API.
    pub socket: PathBuf,
    /// Where it serves the Delegated Identity API.
    pub admin_socket: PathBuf,
    agent: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            let _ = end(agent);
        }
    }
}

impl Spire {
    /// Starts both, joined with a token. SVIDs are valid for `ttl` unless an entry says otherwise.
    pub fn start(ttl: Duration) -> Result<Self> {
        Self::beside(ttl, None)
    }

    /// The same, on a node of Kubernetes: its agent asks the kubelet on this read-only port about pods.
    pub fn beside(ttl: Duration, kubelet: Option<u16>) -> Result<Self> {
        let programs = programs()?;
        let directory = tempfile::Builder::new()
            .prefix("zt-spire-")
            .tempdir_in("/tmp")?
            .keep();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        let mut watch = Command::new("setsid")
            .arg("sh")
            .args(["-c", WATCH])
            .arg(&directory)
            .stdin(Stdio::piped())
            .current_dir("/")
            .spawn()
            .context("cannot run setsid")?;
        let alive = watch.stdin.take();
        let port = ports::free()?.port();
        let mut spire = Self {
            directory,
            programs,
            port,
            kubelet,
            server: None,
            agent: None,
            watch,
            alive,
        };
        fs::write(spire.directory.join("server.conf"), spire.server_settings(ttl))?;
        let settings = spire.agent_settings("agent", &spire.socket(), &spire.admin_socket());
        fs::write(spire.directory.join("agent.conf"), settings)?;
        spire.start_server()?;
        let token = spire.token(NODE)?;
        spire.launch_agent(&["-joinToken", &token])?;
        spire.wait_agent()?;
        Ok(spire)
    }

    /// One more node, with an agent of its own.
    pub fn join(&self, name: &str) -> Result<Node> {
        self.join_with(name, &[], &self.program("spire-agent"))
    }

    /// The same, with a program that is run by this command.
    fn join_with(&self, name: &str, through: &[&str], program: &Path) -> Result<Node> {
        let who = format!("agent-{name}");
        let mut node = Node {
            id: format!("{NODE}-{name}"),
            socket: self.directory.join(format!("{who}-public/agent.sock")),
            admin_socket: self.directory.join(format!("{who}-admin/admin.sock")),
            agent: None,
        };
        let settings = self.agent_settings(&who, &node.socket, &node.admin_socket);
        fs::write(self.directory.join(format!("{who}.conf")), settings)?;
        let token = self.token(&node.id)?;
        let mut words: Vec<&OsStr> = through.iter().map(OsStr::new).collect();
        words.push(program.as_os_str());
        node.agent = Some(self.launch(&words, &who, &["-joinToken", &token])?);
        self.wait_for(&who, &node.socket, &node.admin_socket)?;
        Ok(node)
    }

    /// What an agent of a node joins with.
    fn token(&self, node: &str) -> Result<String> {
        let answer = self.server(&["token", "generate", "-spiffeID", node, "-output", "json"])?;
        let answer: Value = serde_json::from_str(&answer).context("a token in JSON")?;
        Ok(answer["value"].as_str().context("a token")?.to_owned())
    }

    /// The identity that whoever asks about others must have.
    pub fn delegate() -> String {
        format!("spiffe://{DOMAIN}/zt-agent")
    }

    /// Where the agent serves the Workload API.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("public/agent.sock")
    }

    /// Where the agent serves the Delegated Identity API.
    pub fn admin_socket(&self) -> PathBuf {
        self.directory.join("admin/admin.sock")
    }

    /// Registers a workload for whoever has all these selectors, such as `unix:path:/bin/cat`. Returns the entry's id.
    pub fn register(&self, id: &str, selectors: &[&str], more: &[&str]) -> Result<String> {
        self.register_on(NODE, id, selectors, more)
    }

    /// The same, on a node by its identity.
    pub fn register_on(&self, node: &str, id: &str, selectors: &[&str], more: &[&str]) -> Result<String> {
        let mut arguments = vec!["entry", "create", "-parentID", node, "-spiffeID", id];
        for selector in selectors {
            arguments.extend(["-selector", selector]);
        }
        arguments.extend(more);
        arguments.extend(["-output", "json"]);
        let answer: Value = serde_json::from_str(&self.server(&arguments)?)?;
        let result = &answer["results"][0];
        ensure!(result["status"]["code"] == 0, "{answer}");
        let id = result["entry"]["id"].as_str();
        Ok(id.context("the entry has an id")?.to_owned())
    }

    /// Deletes an entry.
    pub fn unregister(&self, entry: &str) -> Result<()> {
        self.server(&["entry", "delete", "-entryID", entry]).map(drop)
    }

    /// The entries of an identity.
    pub fn entries(&self, id: &str) -> Result<Vec<String>> {
        let answer = self.server(&["entry", "show", "-spiffeID", id, "-output", "json"])?;
        let answer: Value = serde_json::from_str(&answer)?;
        let entries = answer["entries"].as_array().cloned().unwrap_or_default();
        Ok(entries
            .iter()
            .filter_map(|entry| entry["id"].as_str().map(str::to_owned))
            .collect())
    }

    /// Where one of SPIRE's programs is.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Writes the SVID that SPIRE gives `spire-agent` itself into a directory: `svid.0.pem`, `svid.0.key` and
    /// `bundle.0.pem`. It has to be registered by that program's path, and is waited for.
    pub fn fetch(&self, directory: &Path) -> Result<()> {
        wait_for("SPIRE to issue an SVID", PATIENCE, || {
            let fetched = Command::new(self.program("spire-agent"))
                .args(["api", "fetch", "x509", "-socketPath"])
                .arg(self.socket())
                .arg("-write")
                .arg(directory)
                .output()?;
            Ok(fetched.status.success().then_some(()))
        })
    }

    /// Has the server issue from a new authority.
    pub fn rotate_authority(&self) -> Result<()> {
        let answer = self.server(&["localauthority", "x509", "prepare", "-output", "json"])?;
        let answer: Value = serde_json::from_str(&answer)?;
        let authority = answer["prepared_authority"]["authority_id"]
            .as_str()
            .with_context(|| format!("an authority in {answer}"))?;
        self.server(&["localauthority", "x509", "activate", "-authorityID", authority])
            .map(drop)
    }

    /// Ends the agent, at once.
    pub fn stop_agent(&mut self) -> Result<()> {
        end(self.agent.take().context("the agent runs")?)
    }

    /// Starts the agent again, with what it knew.
    pub fn restart_agent(&mut self) -> Result<()> {
        self.launch_agent(&[])?;
        self.wait_agent()
    }

    /// Stops the agent in its tracks, or has it go on.
    pub fn freeze_agent(&self, frozen: bool) -> Result<()> {
        let agent = self.agent.as_ref().context("the agent runs")?;
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        Ok(kill(Pid::from_raw(agent.id().try_into()?), signal)?)
    }

    /// Ends the server, at once.
    pub fn stop_server(&mut self) -> Result<()> {
        end(self.server.take().context("the server runs")?)
    }

    /// Starts the server, again or for the first time, and waits until it answers.
    pub fn start_server(&mut self) -> Result<()> {
        let program = self.program("spire-server");
        self.server = Some(self.launch(&[program.as_os_str()], "server", &[])?);
        let healthy = eventually("the SPIRE server to answer", PATIENCE, || {
            self.alive("server")?;
            Ok(self.server(&["healthcheck"]).is_ok())
        });
        healthy.with_context(|| self.log("server"))
    }

    /// The last lines of the log of `server` or `agent`.
    pub fn log(&self, who: &str) -> String {
        let log = fs::read_to_string(self.directory.join(format!("{who}.log"))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn launch_agent(&mut self, more: &[&str]) -> Result<()> {
        let program = self.program("spire-agent");
        self.agent = Some(self.launch(&[program.as_os_str()], "agent", more)?);
        Ok(())
    }

    fn wait_agent(&self) -> Result<()> {
        self.wait_for("agent", &self.socket(), &self.admin_socket())
    }

    fn wait_for(&self, who: &str, socket: &Path, admin_socket: &Path) -> Result<()> {
        let healthy = wait_for("the SPIRE agent to answer", PATIENCE, || {
            self.alive(who)?;
            let check = Command::new(self.programs.join("spire-agent"))
                .args(["healthcheck", "-socketPath"])
                .arg(socket)
                .output()?;
            Ok((check.status.success() && admin_socket.exists()).then_some(()))
        });
        healthy.with_context(|| self.log(who))
    }

    fn alive(&self, who: &str) -> Result<()> {
        let pid = fs::read_to_string(self.directory.join(format!("{who}.pid")))?;
        if kill(Pid::from_raw(pid.parse()?), None).is_err() {
            bail!("the SPIRE {who} has ended");
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        ensure!(!stat.contains(") Z "), "the SPIRE {who} has ended");
        Ok(())
    }

    /// Starts a command, which becomes one of the two programs.
    fn launch(&self, command: &[&OsStr], who: &str, more: &[&str]) -> Result<Child> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join(format!("{who}.log")))?;
        let (program, words) = command.split_first().context("a command")?;
        let child = Command::new(program)
            .args(words)
            .args(["run", "-config"])
            .arg(self.directory.join(format!("{who}.conf")))
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .current_dir(&self.directory)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        fs::write(self.directory.join(format!("{who}.pid")), child.id().to_string())?;
        Ok(child)
    }

    /// Runs `spire-server` with these arguments, and returns what it prints.
    fn server(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.programs.join("spire-server"))
            .args(arguments)
            .arg("-socketPath")
            .arg(self.directory.join("server.sock"))
            .output()
            .context("cannot run spire-server")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "spire-server {}: {said}{errors}",
            arguments.join(" ")
        );
        Ok(said)
    }
}

impl Drop for Spire {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "SPIRE server:\n{}\nSPIRE agent:\n{}",
                self.log("server"),
                self.log("agent")
            );
        }
        for child in [self.agent.take(), self.server.take()].into_iter().flatten() {
            // A frozen one ends by this as well.
            let _ = end(child);
        }
        drop(self.alive.take());
        // It has nothing to say, and ends when the directory is gone.
        let _ = self.watch.wait();
    }
}

fn end(mut child: Child) -> Result<()> {
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Where `cargo xtask setup` puts the programs; `ZT_SPIRE` names another directory.
fn programs() -> Result<PathBuf> {
    let directory = match std::env::var_os("ZT_SPIRE") {
        Some(directory) => PathBuf::from(directory),
        None => newest("spire-agent").context("SPIRE is not there: run `cargo xtask setup`")?,
    };
    ensure!(
        directory.join("spire-server").is_file() && directory.join("spire-agent").is_file(),
        "SPIRE is not in {}: run `cargo xtask setup`",
        directory.display()
    );
    Ok(directory)
}
