// SPDX-License-Identifier: Apache-2.0
//! A worker: a process that opens the connections. It enters the cgroup and the network namespace that it is told
//! to, and carries out orders.

use std::fs::{self, File};
use std::io::{BufRead as _, Write as _};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, alarm};

use crate::order::{Done, Order};
use crate::{calls, load};

/// An order that takes longer ends the worker.
const LIMIT: u32 = 60;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// How a worker starts.
#[derive(Debug, clap::Args)]
pub(crate) struct Start {
    /// Cgroup directory to enter
    #[arg(long)]
    pub(crate) cgroup: PathBuf,
    /// Network namespace to enter
    #[arg(long)]
    pub(crate) netns: Option<PathBuf>,
    /// The only CPU to run on
    #[arg(long)]
    pub(crate) cpu: Option<usize>,
}

/// Runs until the driver hangs up.
pub(crate) fn run(start: &Start) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if let Some(netns) = &start.netns {
        setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
        // A closed connection must leave no TIME_WAIT behind: tens of thousands would use up the ports. Of this namespace.
        fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0").context("tcp_max_tw_buckets")?;
    }
    if let Some(cpu) = start.cpu {
        pin(Pid::from_raw(0), cpu)?;
    }
    enter(&start.cgroup)?;
    // As many connections as one may have.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;

    let mut worker = Worker::default();
    let mut output = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        alarm::set(LIMIT);
        let done = worker.carry_out(&order).unwrap_or_else(|error| Done {
            error: Some(format!("{order:?}: {error:#}")),
            ..Done::default()
        });
        alarm::cancel();
        serde_json::to_writer(&mut output, &done)?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
    Ok(())
}

/// Lets a process or thread run on one CPU only.
pub(crate) fn pin(pid: Pid, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(pid, &cpus).with_context(|| format!("cannot pin {pid} to CPU {cpu}"))
}

fn enter(cgroup: &std::path::Path) -> Result<()> {
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("{}", procs.display()))
}

#[derive(Default)]
struct Worker {
    listener: Option<TcpListener>,
    kept: Vec<OwnedFd>,
}

impl Worker {
    fn carry_out(&mut self, order: &Order) -> Result<Done> {
        let listener = || self.listener.as_ref().context("nothing listens");
        match *order {
            Order::Enter { ref cgroup } => {
                enter(cgroup)?;
                Ok(Done::default())
            }
            Order::Urgent => urgent(),
            Order::Listen { at } => {
                self.listener = None;
                let socket =
                    socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.bind(&at.into()).with_context(|| format!("bind {at}"))?;
                socket.listen(BACKLOG)?;
                let listener = TcpListener::from(socket);
                let address = Some(listener.local_addr()?);
                self.listener = Some(listener);
                Ok(Done {
                    address,
                    ..Done::default()
                })
            }
            Order::Connects { to, count } => load::connects(listener()?, to, count),
            Order::Failures { to, count } => load::failures(to, count),
            Order::RoundTrips { to, count } => load::round_trips(listener()?, to, count),
            Order::Bulk { to, chunks } => load::bulk(listener()?, to, chunks),
            Order::Calls { to, count } => calls::calls(listener()?, to, count),
            Order::Reach { to, from } => calls::reach(listener()?, to, from),
            Order::Turn { to } => calls::turn(listener()?, to),
            Order::Flip { to } => load::flip(self.listener.as_ref(), to),
            Order::Storm {
                to,
                per_millisecond,
                milliseconds,
            } => load::storm(to, per_millisecond, milliseconds),
            Order::Dial { to, count } => Ok(self.keep(load::dial(to, count)?)),
            Order::Accept { count } => {
                let accepted = load::accept_all(listener()?, count)?;
                Ok(self.keep(accepted))
            }
            Order::Deaths => {
                let done = load::deaths(&self.kept)?;
                self.kept.clear();
                Ok(done)
            }
        }
    }

    fn keep(&mut self, connections: Vec<OwnedFd>) -> Done {
        let count = connections.len() as u64;
        self.kept.extend(connections);
        Done {
            count,
            ..Done::default()
        }
    }
}

/// Real-time scheduling: the rest of the machine cannot interrupt a batch. Batches are far shorter than what the
/// kernel lets a real-time process have of a second.
#[expect(unsafe_code, reason = "no crate of ours wraps sched_setscheduler")]
fn urgent() -> Result<Done> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: a valid structure, which the kernel copies; this thread.
    let answer = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if answer != 0 {
        bail!("sched_setscheduler: {}", std::io::Error::last_os_error());
    }
    Ok(Done::default())
}
