// SPDX-License-Identifier: Apache-2.0
//! How a service obeys the story's orders.

use std::io::{self, BufRead as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::cast::{Speak, Who};
use super::super::error::DemoError;
use super::super::order::{Order, Outcome, Report, now};
use super::super::wire::{self, Conversation};
use super::{tcp, udp};

/// Between two attempts.
const INTERVAL: Duration = Duration::from_micros(500);

/// Serves in the background.
pub(super) fn serve(at: SocketAddr, speak: Speak, who: Who) -> Result<(), DemoError> {
    let listener = TcpListener::bind(at).map_err(DemoError::io(format!("listen at {at}")))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A connection that fails concerns nobody else.
            thread::spawn(move || wire::serve(stream, speak, who.name()));
        }
    });
    Ok(())
}

/// Does what standard input says until it ends, and then serves on: what is kept after the story ends with its cgroup.
pub(super) fn obey() -> Result<(), DemoError> {
    let mut kept = None;
    say(&Report::now(Outcome::Begun))?;
    for line in io::stdin().lock().lines() {
        let line = line.map_err(DemoError::io("read an order"))?;
        let order = serde_json::from_str(&line)
            .map_err(|error| DemoError::io(format!("understand the order {line:?}"))(error.into()))?;
        let report = carry_out(order, &mut kept)?;
        say(&report)?;
    }
    loop {
        thread::park();
    }
}

fn say(report: &Report) -> Result<(), DemoError> {
    let mut output = io::stdout().lock();
    let text =
        serde_json::to_string(report).map_err(|error| DemoError::io("write a report")(error.into()))?;
    writeln!(output, "{text}")
        .and_then(|()| output.flush())
        .map_err(DemoError::io("report"))
}

fn carry_out(order: Order, kept: &mut Option<Conversation>) -> Result<Report, DemoError> {
    Ok(match order {
        Order::Reach { to, speak, times } => {
            let mut tries = Tries::new(to, speak);
            let first = std::mem::discriminant(&tries.once());
            for _ in 1..times {
                if std::mem::discriminant(&tries.once()) != first {
                    break;
                }
            }
            tries.report()
        }
        Order::ReachFrom { from, to, speak } => {
            let mut tries = Tries {
                from,
                ..Tries::new(to, speak)
            };
            tries.once();
            tries.report()
        }
        Order::Datagram { to, deadline } => Report {
            attempts: 1,
            ..Report::now(udp::ask(to, Duration::from_millis(deadline)))
        },
        Order::Keep { to, speak } => {
            let mut tries = Tries::new(to, speak);
            tries.once();
            *kept = tries.conversation.take();
            tries.report()
        }
        Order::Stop => Report::now(Outcome::Gone),
        Order::Ask => Report::now(match kept.as_mut().map(Conversation::ask) {
            None => broken(&io::ErrorKind::NotConnected.into()),
            Some(Ok(said)) => Outcome::Reached { said },
            Some(Err(error)) => broken(&error),
        }),
        Order::Hold { deadline } => {
            say(&Report::now(Outcome::Begun))?;
            hold(kept.take(), Deadline::new(deadline))
        }
        Order::UntilReached { to, speak, deadline } => until(to, speak, deadline, |outcome| {
            matches!(outcome, Outcome::Reached { .. })
        })?,
        Order::UntilRefused { to, speak, deadline } => until(to, speak, deadline, |outcome| {
            matches!(outcome, Outcome::Refused { .. })
        })?,
        Order::UntilGone {
            local,
            peer,
            deadline,
        } => {
            say(&Report::now(Outcome::Begun))?;
            until_gone(local, peer, Deadline::new(deadline)).map_err(DemoError::io("list connections"))?
        }
    })
}

#[derive(Clone, Copy)]
struct Deadline {
    begin: Instant,
    allowed: Duration,
}

impl Deadline {
    fn new(milliseconds: u64) -> Self {
        Self {
            begin: Instant::now(),
            allowed: Duration::from_millis(milliseconds),
        }
    }

    fn passed(&self) -> bool {
        self.begin.elapsed() >= self.allowed
    }
}

/// Tries until it comes out as `wanted`. The first report, after the first attempt, says that it has begun.
fn until(
    to: SocketAddr,
    speak: Speak,
    deadline: u64,
    wanted: fn(&Outcome) -> bool,
) -> Result<Report, DemoError> {
    let deadline = Deadline::new(deadline);
    let mut tries = Tries::new(to, speak);
    loop {
        let done = wanted(&tries.once());
        if tries.attempts == 1 {
            say(&Report::now(Outcome::Begun))?;
        }
        if done {
            return Ok(tries.report());
        }
        if deadline.passed() || next_order_waits() {
            tries.last = Outcome::Late;
            return Ok(tries.report());
        }
        thread::sleep(INTERVAL);
    }
}

/// Whether the story wants something else by now. It never sends two orders at once, so none can be in a buffer.
fn next_order_waits() -> bool {
    let input = io::stdin();
    let mut polled = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut polled, PollTimeout::ZERO), Ok(ready) if ready > 0)
}

fn hold(kept: Option<Conversation>, deadline: Deadline) -> Report {
    let Some(mut conversation) = kept else {
        return Report::now(broken(&io::ErrorKind::NotConnected.into()));
    };
    let mut attempts = 0;
    let outcome = loop {
        match conversation.ask() {
            Err(error) => break broken(&error),
            Ok(_) if deadline.passed() => break Outcome::Late,
            Ok(_) => attempts += 1,
        }
        thread::sleep(INTERVAL);
    };
    Report {
        attempts,
        local: conversation.stream().local_addr().ok(),
        ..Report::now(outcome)
    }
}

fn until_gone(local: SocketAddr, peer: SocketAddr, deadline: Deadline) -> io::Result<Report> {
    while tcp::established(local, peer)? {
        if deadline.passed() {
            return Ok(Report::now(Outcome::Late));
        }
        thread::sleep(INTERVAL / 2);
    }
    Ok(Report::now(Outcome::Gone))
}

fn broken(error: &io::Error) -> Outcome {
    Outcome::Broken {
        errno: error.raw_os_error().unwrap_or(0),
        message: error.to_string(),
    }
}

/// Attempts at one place.
struct Tries {
    from: Option<IpAddr>,
    to: SocketAddr,
    speak: Speak,
    attempts: u32,
    refused: u32,
    /// What each `connect()` took, with whether it was refused.
    times: Vec<(bool, u64)>,
    last: Outcome,
    conversation: Option<Conversation>,
    at: u64,
    local: Option<SocketAddr>,
}

impl Tries {
    fn new(to: SocketAddr, speak: Speak) -> Self {
        Self {
            from: None,
            to,
            speak,
            attempts: 0,
            refused: 0,
            times: Vec::new(),
            last: Outcome::Late,
            conversation: None,
            at: 0,
            local: None,
        }
    }

    /// One attempt; the connection of the one before is closed.
    fn once(&mut self) -> Outcome {
        self.conversation = None;
        self.attempts += 1;
        let (took, connected) = tcp::timed_connect(self.from, self.to);
        self.times.push((connected.is_err(), took));
        self.last = match connected {
            Err(error) => {
                self.refused += 1;
                Outcome::Refused {
                    errno: error.raw_os_error().unwrap_or(0),
                }
            }
            Ok(stream) => {
                self.local = stream.local_addr().ok();
                match Conversation::begin(stream, self.speak) {
                    Ok((conversation, said)) => {
                        self.conversation = Some(conversation);
                        Outcome::Reached { said }
                    }
                    Err(error) => broken(&error),
                }
            }
        };
        self.at = now();
        self.last.clone()
    }

    fn report(self) -> Report {
        let refused = matches!(self.last, Outcome::Refused { .. });
        let mut times: Vec<u64> = self
            .times
            .iter()
            .filter(|(was, _)| *was == refused)
            .map(|(_, took)| *took)
            .collect();
        times.sort_unstable();
        Report {
            outcome: self.last,
            attempts: self.attempts,
            refused: self.refused,
            connect_ns: times.get(times.len() / 2).copied().unwrap_or(0),
            at: self.at,
            local: self.local,
        }
    }
}
