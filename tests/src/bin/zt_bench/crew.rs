// SPDX-License-Identifier: Apache-2.0
//! The driver's side of a worker.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use zt_tests::{Cgroup, Host};

use crate::order::{Done, Order};

/// A running worker. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one in a cgroup and, if any is given, in a host's network namespace and on one CPU only.
    pub(crate) fn start(cgroup: &Cgroup, host: Option<&Host>, cpu: Option<usize>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").arg("--cgroup").arg(cgroup.path());
        if let Some(host) = host {
            command.arg("--netns").arg(host.namespace_file());
        }
        if let Some(cpu) = cpu {
            command.args(["--cpu", &cpu.to_string()]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("the worker's input is piped")?;
        let stdout = child.stdout.take().context("the worker's output is piped")?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has an order carried out.
    pub(crate) fn ask(&mut self, order: &Order) -> Result<Done> {
        self.send(order)?;
        self.wait()
    }

    /// Starts an order; [`Self::wait`] says what came of it.
    pub(crate) fn send(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.stdin.write_all(&line).context("a worker has died")
    }

    /// What came of the oldest order that was not waited for.
    pub(crate) fn wait(&mut self) -> Result<Done> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!(
                "a worker has died, or did not carry out its order in time: {:?}",
                self.child.wait()?
            );
        }
        let done: Done = serde_json::from_str(&line)?;
        match done.error {
            Some(error) => bail!("{error}"),
            None => Ok(done),
        }
    }

    /// Listens, and gives where.
    pub(crate) fn listen(&mut self, at: SocketAddr) -> Result<SocketAddr> {
        self.ask(&Order::Listen { at })?
            .address
            .context("a listener has an address")
    }

    /// Moves to a cgroup.
    pub(crate) fn enter(&mut self, cgroup: &Cgroup) -> Result<()> {
        self.ask(&Order::Enter {
            cgroup: cgroup.path().to_owned(),
        })
        .map(drop)
    }

    /// Microseconds for each of what an order does many of.
    pub(crate) fn micros(&mut self, order: &Order) -> Result<f64> {
        let done = self.ask(order)?;
        Ok(done.nanoseconds as f64 / done.count.max(1) as f64 / 1000.0)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be in the middle of an order that nobody waits for any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
