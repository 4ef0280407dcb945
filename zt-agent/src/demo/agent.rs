// SPDX-License-Identifier: Apache-2.0
//! The demo's agent: this very program with `run`, started, killed and asked.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use super::cast::Who;
use super::error::DemoError;
use super::files::{Files, Setup};
use super::names::Names;
use super::{network, process};
use crate::cli::Exit;
use crate::cli::client::{ApiArgs, Client, ClientError};
use crate::kernel::netns;

/// How long an agent may take to be ready: where the kernel is slow, its verifier takes most of that.
const READY: Duration = Duration::from_secs(180);
/// How long what is asked of it may take to be true.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// How much of its log a failure shows.
const LOG_LINES: usize = 30;

/// The agent.
#[derive(Debug)]
pub(super) struct Agent {
    names: Names,
    pub(super) files: Files,
    /// Its network namespace; `None`: the machine's.
    namespace: Option<File>,
    api: SocketAddr,
    client: Client,
    health: Client,
    runtime: Runtime,
    child: Option<Child>,
}

impl Agent {
    /// One that was not started, with its files.
    pub(super) fn new(names: &Names, setup: &Setup) -> Result<Self, DemoError> {
        let [api, health] = free_ports().map_err(DemoError::io("find free ports"))?;
        let files = Files::new(names);
        files.write(names, setup, api, health)?;
        let bridge = setup
            .at_the_bridge
            .then(|| network::open_namespace(&names.bridge()));
        let client = |address| {
            Client::new(&ApiArgs {
                api: format!("http://{address}"),
                ..ApiArgs::default()
            })
        };
        Ok(Self {
            names: names.clone(),
            files,
            namespace: bridge.transpose()?,
            api,
            client: client(api)?,
            health: client(health)?,
            runtime: Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(DemoError::io("have a runtime"))?,
            child: None,
        })
    }

    /// The URL of its API.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// Its process id while it runs.
    pub(super) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Starts it and waits until it is ready; how long that took.
    pub(super) fn start(&mut self) -> Result<Duration, DemoError> {
        let begin = Instant::now();
        let log = process::log(&self.files.agent_log())?;
        let mut command = process::hidden("become")?;
        command.arg("--cgroup").arg(self.names.agent_cgroup());
        if self.namespace.is_some() {
            command.arg("--netns").arg(self.names.namespace_file(Who::Host));
        }
        command
            .arg("--")
            .arg(process::program()?)
            .args(["run", "--config"])
            .arg(self.files.config());
        command
            .stdout(log.try_clone().map_err(DemoError::io("share a log"))?)
            .stderr(log)
            .stdin(Stdio::null());
        self.child = Some(command.spawn().map_err(DemoError::io("start the agent"))?);
        loop {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().transpose());
            if let Some(status) = ended {
                let status = status.map_err(DemoError::io("wait for the agent"))?;
                let unavailable = status.code() == Some(Exit::Unavailable as i32);
                return Err(self.failed(format!("ended at once, with {status}"), unavailable));
            }
            match self.where_it_is(|| self.runtime.block_on(self.health.get("/readyz", &[])))? {
                Ok(_) | Err(ClientError::NotJson { .. }) => return Ok(begin.elapsed()),
                Err(error) if begin.elapsed() > READY => {
                    return Err(self.failed(format!("is not ready after {READY:?} ({error})"), false));
                }
                Err(_) => thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Kills it as a crash would, with no chance to do anything.
    pub(super) fn kill(&mut self) -> Result<(), DemoError> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        child
            .kill()
            .and_then(|()| child.wait())
            .map(drop)
            .map_err(DemoError::io("kill the agent"))
    }

    /// `GET` from its API.
    pub(super) fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, DemoError> {
        Ok(self.where_it_is(|| self.runtime.block_on(self.client.get(path, query)))??)
    }

    /// `POST` to its API.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, DemoError> {
        Ok(self.where_it_is(|| self.runtime.block_on(self.client.post(path, body)))??)
    }

    /// Does something in its network namespace: its listeners are reached from there.
    fn where_it_is<T: Send>(&self, ask: impl FnOnce() -> T + Send) -> Result<T, DemoError> {
        match &self.namespace {
            Some(namespace) => netns::inside(namespace, ask)
                .map_err(DemoError::io("enter the network namespace of the agent")),
            None => Ok(ask()),
        }
    }

    /// Asks until the answer is as wanted; `None` if it never is.
    pub(super) fn get_until(
        &self,
        path: &str,
        query: &[(&str, String)],
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Option<Value>, DemoError> {
        let begin = Instant::now();
        loop {
            let answer = self.get(path, query)?;
            if wanted(&answer) {
                return Ok(Some(answer));
            }
            if begin.elapsed() > DEADLINE {
                return Ok(None);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn failed(&self, message: String, unavailable: bool) -> DemoError {
        let log = std::fs::read_to_string(self.files.agent_log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        DemoError::Agent {
            message,
            unavailable,
            log: lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"),
        }
    }
}

/// Two loopback addresses that were free a moment ago.
fn free_ports() -> std::io::Result<[SocketAddr; 2]> {
    let [first, second] = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    Ok([first?.local_addr()?, second?.local_addr()?])
}
