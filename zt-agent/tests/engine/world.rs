// SPDX-License-Identifier: Apache-2.0
//! Policy engines as real processes, and followers as nodes have them.

use std::fs::{self, File};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use zt_agent::cli::client::{ApiArgs, Client, ClientError, Sent};

/// How long anything here may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A policy of this name with these ports open from `iam` to `postgres`.
pub(crate) fn policy(name: &str, ports: &[u16]) -> String {
    let rules: Vec<String> = ports
        .iter()
        .map(|port| {
            format!(
                "    - from: {{spiffe: spiffe://hanzo.ai/k8s/iam}}\n      to:\n        - {{spiffe: spiffe://hanzo.ai/k8s/postgres, ports: [{port}]}}\n      action: ALLOW\n"
            )
        })
        .collect();
    let rules = if rules.is_empty() {
        " []\n".to_owned()
    } else {
        format!("\n{}", rules.concat())
    };
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata:\n  name: {name}\nspec:\n  defaultAction: DENY\n  rules:{rules}"
    )
}

/// Waits for a condition.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut holds: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = holds().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A directory of policies that engines share.
pub(crate) struct Shared {
    pub(crate) directory: tempfile::TempDir,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        fs::create_dir(directory.path().join("policies")).expect("mkdir");
        let shared = Self { directory };
        shared.write("core", &policy("core", &[5432]));
        shared
    }

    pub(crate) fn policies(&self) -> PathBuf {
        self.directory.path().join("policies")
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.policies().join(format!("{name}.yaml")), text).expect("write");
    }

    pub(crate) fn below(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir_all(&path).expect("mkdir");
        path
    }

    /// An engine that runs and is ready.
    pub(crate) async fn engine(&self, name: &str) -> Engine {
        self.start(name, None, &[]).await
    }

    /// The same with more in its environment.
    pub(crate) async fn engine_with(&self, name: &str, environment: &[(&str, &str)]) -> Engine {
        self.start(name, None, environment).await
    }

    /// The same as another user.
    pub(crate) async fn engine_as(&self, name: &str, user: u32) -> Engine {
        self.start(name, Some(user), &[]).await
    }

    async fn start(&self, name: &str, user: Option<u32>, environment: &[(&str, &str)]) -> Engine {
        let ports = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port"));
        let [api, health] = ports.map(|port| port.local_addr().expect("address"));
        let mut binary = PathBuf::from(env!("CARGO_BIN_EXE_zt-agent"));
        if user.is_some() {
            // Where another user may run it.
            let copy = self.directory.path().join("zt-agent");
            fs::copy(&binary, &copy).expect("copy");
            binary = copy;
        }
        let mut engine = Engine {
            api,
            health,
            binary,
            user,
            home: self.below(name),
            policies: self.policies(),
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            child: None,
        };
        engine.start().await;
        engine
    }
}

/// One engine.
pub(crate) struct Engine {
    pub(crate) api: SocketAddr,
    pub(crate) health: SocketAddr,
    binary: PathBuf,
    user: Option<u32>,
    home: PathBuf,
    policies: PathBuf,
    environment: Vec<(String, String)>,
    child: Option<Child>,
}

impl Engine {
    pub(crate) fn command(&self) -> Command {
        self.command_of("engine")
    }

    /// A command of the program with the settings of this engine.
    pub(crate) fn command_of(&self, name: &str) -> Command {
        let mut command = Command::new(&self.binary);
        let home = self.home.display();
        command
            .env_clear()
            // Before what is in the environment of this one.
            .env("ZT_AUDIT_DSN", format!("sqlite://{home}/audit.db"))
            .envs(self.environment.clone())
            .arg(name)
            .args(["--config", &self.config().display().to_string()])
            .args(["--policy-path", &self.policies.display().to_string()])
            .args([
                "--node",
                &self.home.file_name().unwrap_or_default().to_string_lossy(),
            ])
            .args(["--identity-file", &format!("{home}/workloads.yaml")])
            .args(["--audit-spool", &format!("{home}/spool.db")])
            .args(["--api-socket", &format!("{home}/agent.sock")])
            .args(["--api-listen", &self.api.to_string()])
            .args(["--api-health", &self.health.to_string()])
            .stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Has its policy from there from its next start on.
    pub(crate) fn follow(&mut self, policies: &Path) {
        self.policies = policies.to_path_buf();
    }

    fn config(&self) -> PathBuf {
        let config = self.home.join("agent.yaml");
        if !config.exists() {
            fs::write(&config, "api: {rateLimit: 100000, drain: 0s}\n").expect("write");
        }
        config
    }

    pub(crate) async fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.home.join("log"));
        let child = self
            .command()
            .stdout(Stdio::null())
            .stderr(log.expect("log"))
            .spawn();
        self.child = Some(child.expect("starts"));
        let health = client(&format!("http://{}", self.health));
        eventually("the engine to be ready", || async {
            assert!(!self.has_ended(), "the engine ended:\n{}", self.log());
            health.get("/readyz", &[]).await.ok()
        })
        .await;
    }

    /// Whether the process has ended: it is a zombie until it is waited for.
    fn has_ended(&self) -> bool {
        let stat = |child: &Child| fs::read_to_string(format!("/proc/{}/stat", child.id()));
        self.child
            .as_ref()
            .is_none_or(|child| stat(child).is_ok_and(|stat| stat.contains(") Z ")))
    }

    /// Where its own files are.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    pub(crate) fn client(&self) -> Client {
        client(&self.url())
    }

    /// As the operator of the machine, whatever TLS asks of others.
    pub(crate) fn client_on_socket(&self) -> Client {
        client(&format!("unix://{}/agent.sock", self.home.display()))
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("runs");
        child.kill().expect("killed");
        child.wait().expect("waited");
    }

    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// A file of the process below `/proc`.
    pub(crate) fn proc(&self, name: &str) -> PathBuf {
        let child = self.child.as_ref().expect("runs");
        PathBuf::from(format!("/proc/{}/{name}", child.id()))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("runs");
        kill(Pid::from_raw(child.id() as i32), signal).expect("signal");
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("runs");
        child.wait().expect("waited")
    }

    pub(crate) async fn digest(&self) -> Option<String> {
        let answer = self.client().get("/v1/policies", &[]).await.ok()?;
        Some(answer["digest"].as_str()?.to_owned())
    }

    pub(crate) async fn put(
        &self,
        name: &str,
        text: &str,
        if_match: Option<&str>,
    ) -> Result<Value, ClientError> {
        let sent = Sent {
            method: hyper::Method::PUT,
            target: format!("/v1/policies/{name}"),
            if_match: if_match.map(|tag| format!("\"{tag}\"")),
            if_none_match: None,
            document: Some(text.to_owned()),
        };
        self.client().send_document(sent).await
    }

    /// Waits until this digest is in force.
    pub(crate) async fn has(&self, digest: &str) {
        eventually("the engine to converge", || async {
            (self.digest().await.as_deref() == Some(digest)).then_some(())
        })
        .await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.home.display(), self.log());
        }
    }
}

pub(crate) fn client(url: &str) -> Client {
    Client::new(&ApiArgs {
        api: url.to_owned(),
        ..ApiArgs::default()
    })
    .expect("a URL")
}
