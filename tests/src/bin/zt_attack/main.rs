// SPDX-License-Identifier: Apache-2.0
//! `zt-attack`: a workload that tries one way round a decision, and says how far it came.
//!
//! It enters a cgroup and a network namespace first, becomes an ordinary user if it is told to, tries, and prints one line: an
//! [`Attempt`].

mod borrow;
mod family;
mod frame;
mod repair;
mod ring;
mod route;
mod source;
mod spaces;
mod system;

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use socket2::Domain;
use zt_tests::attack::Attempt;

use crate::family::Family;
use crate::ring::Ask;
use crate::source::How;

#[derive(Parser)]
struct Arguments {
    /// The cgroup to try from
    #[arg(long)]
    cgroup: PathBuf,
    /// The network namespace to try from
    #[arg(long)]
    netns: PathBuf,
    /// The user to be, without any capability
    #[arg(long)]
    user: Option<u32>,
    #[command(subcommand)]
    way: Way,
}

#[derive(Subcommand)]
enum Way {
    /// Asks a ring of `io_uring` to connect, or to send a datagram
    Ring {
        to: SocketAddr,
        #[command(flatten)]
        ask: Ask,
    },
    /// Calls from an address that is not its own
    Source { how: How, from: IpAddr, to: SocketAddr },
    /// Makes a connection without a handshake (`TCP_REPAIR`)
    Repair { to: SocketAddr },
    /// Calls one address, and has the packets go to another by a routing header or a source route
    Route {
        to: SocketAddr,
        via: IpAddr,
        #[arg(long)]
        datagram: bool,
    },
    /// Takes a socket out of another process
    Borrow { pid: i32, descriptor: i32 },
    /// Sends a datagram as a frame of its own making
    Frame {
        from: SocketAddr,
        to: SocketAddr,
        /// The hardware address of the destination
        hardware: String,
        /// By a ring of `AF_XDP`, not by a packet socket
        #[arg(long)]
        xdp: bool,
    },
    /// Makes a socket of another kind, and tries to reach somebody with it
    Family { family: Family, to: SocketAddr },
    /// Calls from a user and network namespace of its own making
    Apart { to: SocketAddr },
    /// Calls from within the namespace of another process
    Inside { netns: PathBuf, to: SocketAddr },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    fs::write(arguments.cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("cannot enter {}", arguments.cgroup.display()))?;
    enter(&arguments.netns)?;
    if let Some(user) = arguments.user {
        setgroups(&[])?;
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    let attempt = match arguments.way {
        Way::Ring { to, ask } => ring::attempt(to, &ask),
        Way::Source { how, from, to } => source::attempt(how, from, to),
        Way::Repair { to } => repair::attempt(to),
        Way::Route { to, via, datagram } => route::attempt(to, via, datagram),
        Way::Borrow { pid, descriptor } => borrow::attempt(pid, descriptor),
        Way::Frame {
            from,
            to,
            hardware,
            xdp,
        } => frame::attempt(from, to, &hardware, xdp)?,
        Way::Family { family, to } => family::attempt(family, to),
        Way::Apart { to } => spaces::apart(to),
        Way::Inside { netns, to } => spaces::inside(&netns, to),
    };
    println!("{}", serde_json::to_string(&attempt)?);
    Ok(())
}

fn enter(netns: &Path) -> Result<()> {
    let namespace = File::open(netns).with_context(|| format!("cannot open {}", netns.display()))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", netns.display()))
}

/// A socket, by numbers.
fn opened(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, (&'static str, std::io::Error)> {
    system::socket(family, kind, protocol).at("socket")
}

/// The number of an address's family.
fn family_of(address: SocketAddr) -> i32 {
    Domain::for_address(address).into()
}

/// Whether what was tried came through, or at which step it ended and why.
fn told(outcome: Result<String, (&'static str, std::io::Error)>) -> Attempt {
    match outcome {
        Ok(said) => Attempt::through(said),
        Err((step, error)) => Attempt::ended(step, &error),
    }
}

/// Says at which step an operation failed.
trait At<T> {
    fn at(self, step: &'static str) -> Result<T, (&'static str, std::io::Error)>;
}

impl<T, E: Into<std::io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &'static str) -> Result<T, (&'static str, std::io::Error)> {
        self.map_err(|error| (step, error.into()))
    }
}
