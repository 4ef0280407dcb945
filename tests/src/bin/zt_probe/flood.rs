// SPDX-License-Identifier: Apache-2.0
//! Tight loops: the same attempt again and again, and what came of it.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use socket2::Socket;
use zt_tests::probe::{ConnectOptions, Flood, Outcomes, Reply};

use crate::held::errno_name;
use crate::{stream, udp};

/// How many changes of outcome are kept for each destination.
const CHANGES: usize = 4096;

/// Connects to each destination in turn. Connections end with a reset, so that no port waits in `TIME_WAIT`.
pub(crate) fn connect(flood: &Flood) -> Reply {
    repeat(flood, |to| attempt(to, &flood.options, flood.echo))
}

/// Sends a datagram to each destination in turn, all from one unconnected socket for each family.
pub(crate) fn send(flood: &Flood) -> io::Result<Reply> {
    let sockets: Vec<Socket> = flood
        .to
        .iter()
        .map(|to| udp::socket(*to))
        .collect::<io::Result<_>>()?;
    Ok(repeat(flood, |to| {
        let sender = flood
            .to
            .iter()
            .position(|known| *known == to)
            .map_or(&sockets[0], |at| &sockets[at]);
        let start = Instant::now();
        let sent = sender.send_to(b"zt", &to.into());
        (start.elapsed(), sent.map(|_| "ok".into()))
    }))
}

fn repeat(flood: &Flood, mut once: impl FnMut(SocketAddr) -> (Duration, io::Result<String>)) -> Reply {
    let start = Instant::now();
    let mut runs: Vec<Run> = flood.to.iter().map(|_| Run::default()).collect();
    let mut done = 0;
    let goes_on = |done: u64| {
        done < flood.count
            && flood.duration.is_none_or(|limit| start.elapsed() < limit)
            && !flood.until.as_ref().is_some_and(|file| file.exists())
    };
    while goes_on(done) {
        if let Some(pace) = flood.pace {
            let due = pace.saturating_mul(u32::try_from(done).unwrap_or(u32::MAX));
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
        let turn = (done % flood.to.len() as u64) as usize;
        let (took, outcome) = once(flood.to[turn]);
        let outcome = outcome.unwrap_or_else(|error| errno_name(&error));
        runs[turn].note(took, outcome);
        done += 1;
    }
    Reply {
        elapsed_ns: start.elapsed().as_nanos() as u64,
        count: Some(done),
        outcomes: runs.into_iter().map(Run::finish).collect(),
        ..Reply::default()
    }
}

/// One blocking connection. What is timed is `connect()` alone, and the echo's round trip where it is asked for.
fn attempt(to: SocketAddr, options: &ConnectOptions, echo: bool) -> (Duration, io::Result<String>) {
    let prepared = stream::socket_for(to, options).and_then(|socket| {
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_write_timeout(Some(options.timeout))?;
        socket.set_read_timeout(Some(options.timeout))?;
        Ok(socket)
    });
    let start = Instant::now();
    let outcome = prepared.and_then(|socket| {
        socket
            .connect(&to.into())
            .map_err(|error| match error.raw_os_error() {
                // How a blocking connect reports its send timeout.
                Some(libc::EINPROGRESS) => nix::errno::Errno::ETIMEDOUT.into(),
                _ => error,
            })?;
        let ended = echo && !comes_back(&socket)?;
        Ok((socket, if ended { "eof" } else { "ok" }))
    });
    let took = start.elapsed();
    // Closed only here, after the clock.
    (took, outcome.map(|(_socket, outcome)| outcome.to_owned()))
}

/// Sends a byte and waits for it; false at the end of the stream.
fn comes_back(mut socket: &Socket) -> io::Result<bool> {
    socket.write_all(b"z")?;
    Ok(socket.read(&mut [0; 1])? > 0)
}

/// What has come of one destination so far.
#[derive(Default)]
struct Run {
    outcomes: Outcomes,
    latencies: Vec<u64>,
}

impl Run {
    fn note(&mut self, took: Duration, outcome: String) {
        self.latencies.push(took.as_nanos() as u64);
        let changed = self
            .outcomes
            .changes
            .last()
            .is_none_or(|(_, last)| *last != outcome);
        if changed && self.outcomes.changes.len() < CHANGES {
            self.outcomes.changes.push((now_ns(), outcome.clone()));
        }
        *self.outcomes.counts.entry(outcome).or_default() += 1;
    }

    fn finish(mut self) -> Outcomes {
        self.latencies.sort_unstable();
        let at = |per_cent: usize| {
            let last = self.latencies.len().saturating_sub(1);
            self.latencies.get(last * per_cent / 100).copied().unwrap_or(0)
        };
        self.outcomes.latency_ns = [at(0), at(50), at(90), at(99), at(100)];
        self.outcomes
    }
}

/// `CLOCK_MONOTONIC`, which every process of the machine shares.
fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    })
}
