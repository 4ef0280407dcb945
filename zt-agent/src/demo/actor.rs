// SPDX-License-Identifier: Apache-2.0
//! The story's end of a workload process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::cast::{Speak, Who};
use super::error::DemoError;
use super::names::Names;
use super::order::{Order, Outcome, Report};
use super::process;

/// How long a report may take beyond the deadline of what was ordered.
const PATIENCE: Duration = Duration::from_secs(20);

/// A workload process that obeys.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) who: Who,
    // Ends with its cgroup; the handle is kept so that it can be waited for.
    _child: Child,
    input: ChildStdin,
    reports: Receiver<String>,
    log: String,
}

impl Actor {
    /// Starts one, in its cgroup and namespace, and waits until it is there. `serve`: how it serves, in options.
    pub(super) fn start(names: &Names, who: Who, serve: &[&str]) -> Result<Self, DemoError> {
        let log = names.directory().join(format!("{}.log", who.name()));
        let mut command = process::hidden("play")?;
        command
            .args(process::place(names, who))
            .args(["--who", who.name()])
            .args(serve);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(process::log(&log)?);
        let mut child = command
            .spawn()
            .map_err(DemoError::io(format!("start {}", who.name())))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (input, output) =
            pipes.ok_or_else(|| DemoError::io("have pipes")(std::io::ErrorKind::BrokenPipe.into()))?;
        let (sender, reports) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let actor = Self {
            who,
            _child: child,
            input,
            reports,
            log: log.display().to_string(),
        };
        actor.begun()?;
        Ok(actor)
    }

    /// Gives an order; reports are read with [`Self::report`].
    pub(super) fn order(&mut self, order: Order) -> Result<(), DemoError> {
        let text = serde_json::to_string(&order).map_err(|error| self.strange(&error.to_string()))?;
        writeln!(self.input, "{text}").map_err(|error| self.strange(&format!("takes no orders ({error})")))
    }

    /// The next report.
    pub(super) fn report(&self) -> Result<Report, DemoError> {
        match self.reports.recv_timeout(PATIENCE) {
            Ok(line) => serde_json::from_str(&line).map_err(|_| self.strange(&format!("reported {line:?}"))),
            Err(RecvTimeoutError::Timeout) => {
                Err(self.strange(&format!("did not report within {PATIENCE:?}")))
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.strange("has ended")),
        }
    }

    /// Waits for the report that what was ordered has begun.
    pub(super) fn begun(&self) -> Result<(), DemoError> {
        let report = self.report()?;
        match report.outcome {
            Outcome::Begun => Ok(()),
            other => Err(self.strange(&format!("reported {other:?} before it had begun"))),
        }
    }

    /// Gives an order and waits for its only report.
    pub(super) fn call(&mut self, order: Order) -> Result<Report, DemoError> {
        self.order(order)?;
        self.report()
    }

    /// Connects to `to`, over IPv6 if wanted, and talks, `times` in a row.
    pub(super) fn reach(&mut self, to: Who, ipv6: bool, times: u32) -> Result<Report, DemoError> {
        let (to, speak) =
            place_of(to, ipv6).ok_or_else(|| self.strange("was sent to one who serves nothing"))?;
        self.call(Order::Reach { to, speak, times })
    }

    fn strange(&self, message: &str) -> DemoError {
        DemoError::Workload {
            who: self.who.name(),
            message: message.to_owned(),
            log: self.log.clone(),
        }
    }
}

/// Where `who` serves, and what is spoken there.
pub(super) fn place_of(who: Who, ipv6: bool) -> Option<(std::net::SocketAddr, Speak)> {
    who.places()
        .into_iter()
        .find(|(place, _)| place.is_ipv6() == ipv6)
}
