// SPDX-License-Identifier: Apache-2.0
//! What a test and a probe say to each other: one JSON object a line, one reply for each operation, in order.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{Handle, TIMEOUT};

/// How long an operation may take that opens many connections.
const LONG: Duration = Duration::from_mins(2);

/// Something for a probe to do. A `socket` is a handle from an earlier reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[expect(
    missing_docs,
    reason = "a field is what its name says; what is not obvious is said at the operation"
)]
pub enum Operation {
    /// Nothing: a sign of life.
    Hello,
    /// Opens a TCP connection.
    TcpConnect { to: SocketAddr, options: ConnectOptions },
    /// Opens a listening TCP socket.
    TcpListen { at: SocketAddr, options: ListenOptions },
    /// Takes a connection from a listener.
    Accept { socket: Handle, timeout: Duration },
    /// Sends `data`, `repeat` times over; `bytes` counts what the kernel took.
    Send {
        socket: Handle,
        data: String,
        repeat: u32,
        timeout: Duration,
    },
    /// Sends `size` bytes to who echoes them and waits for as many, `count` times over.
    RoundTrips {
        socket: Handle,
        count: u64,
        size: usize,
        timeout: Duration,
    },
    /// Receives once, at most `max` bytes.
    Recv {
        socket: Handle,
        max: usize,
        timeout: Duration,
    },
    /// Looks at what is queued and leaves it there (`MSG_PEEK`).
    Peek {
        socket: Handle,
        max: usize,
        timeout: Duration,
    },
    /// Reads through a pipe with `splice()`, which sees queued data without `recv`.
    SpliceRead {
        socket: Handle,
        max: usize,
        timeout: Duration,
    },
    /// Waits until the kernel reports the connection's end; `data` says how: `eof` or the name of an error.
    WaitEnd { socket: Handle, timeout: Duration },
    /// Opens a bound UDP socket.
    UdpBind { at: SocketAddr, options: ListenOptions },
    /// Connects a UDP socket, a new one if there is no handle.
    UdpConnect { socket: Option<Handle>, to: SocketAddr },
    /// Sends one datagram, from a new socket if there is no handle.
    UdpSendTo {
        socket: Option<Handle>,
        to: SocketAddr,
        data: String,
    },
    /// Receives one datagram; `peer` is its sender.
    UdpRecvFrom { socket: Handle, timeout: Duration },
    /// Makes a socket from the numbers of its family, type and protocol, and nothing more.
    Socket { family: i32, kind: i32, protocol: i32 },
    /// Binds a socket made by `Socket` or received.
    Bind { socket: Handle, at: SocketAddr },
    /// Listens on a bound socket.
    Listen { socket: Handle, backlog: i32 },
    /// Connects a socket made by `Socket` or received.
    Connect {
        socket: Handle,
        to: SocketAddr,
        timeout: Duration,
    },
    /// Connects to nothing (`AF_UNSPEC`), after which the socket can connect anew.
    Disconnect { socket: Handle },
    /// Starts to connect and, before that is decided, blocks in `send()`.
    SendWhileConnecting {
        to: SocketAddr,
        data: String,
        timeout: Duration,
    },
    /// Joins a multicast group, on `eth0` for IPv6.
    JoinGroup { socket: Handle, group: IpAddr },
    /// `SO_BROADCAST`.
    AllowBroadcast { socket: Handle },
    /// Ends one or both directions.
    Shutdown { socket: Handle, how: How },
    /// Forgets a handle, and closes or stops what it stood for.
    Close { socket: Handle },
    /// Closes a TCP connection with a reset, so that its port is free at once.
    Reset { socket: Handle },
    /// Binds a Unix datagram socket at `path`, into which other probes drop file descriptors.
    FdMailbox { path: PathBuf },
    /// Passes a socket to the mailbox at `path`.
    SendFd { path: PathBuf, socket: Handle },
    /// Takes a socket from a mailbox.
    RecvFd { socket: Handle, timeout: Duration },
    /// Moves the whole process to a cgroup, given by its absolute path.
    MoveTo { cgroup: PathBuf },
    /// Starts another probe as a child, in the same cgroup or another; the reply's handle stands for it.
    Spawn { cgroup: Option<PathBuf> },
    /// Has a child do something. Its reply becomes this one's.
    Child {
        socket: Handle,
        operation: Box<Operation>,
    },
    /// Makes `count` cgroups below `parent`, one after the other; the first process of each is born in it, and its
    /// first act is to connect. `counts` says how that came out.
    Birth {
        parent: PathBuf,
        count: u32,
        to: SocketAddr,
    },
    /// Accepts and echoes in the background, for any number of connections.
    Serve { at: SocketAddr, options: ListenOptions },
    /// How a `Serve` stands: `count` accepted in all, `open` now, `bytes` received in all.
    ServeState { socket: Handle },
    /// Connects again and again; see [`Flood`].
    ConnectMany(Flood),
    /// Sends datagrams from one unconnected socket again and again; connection options do not apply.
    SendMany(Flood),
    /// Opens `count` connections and keeps them under one handle.
    OpenMany {
        to: SocketAddr,
        count: u32,
        options: ConnectOptions,
    },
    /// Waits until `count` connections of a group have ended; `count` in the reply is how many had, at the last look.
    WaitGroupEnd {
        socket: Handle,
        count: u32,
        timeout: Duration,
    },
}

impl Operation {
    /// How long it may take by its own timeouts.
    pub(crate) fn timeout(&self) -> Duration {
        match self {
            Self::TcpConnect { options, .. } => options.timeout,
            Self::Accept { timeout, .. }
            | Self::Send { timeout, .. }
            | Self::RoundTrips { timeout, .. }
            | Self::Recv { timeout, .. }
            | Self::Peek { timeout, .. }
            | Self::SpliceRead { timeout, .. }
            | Self::SendWhileConnecting { timeout, .. }
            | Self::WaitEnd { timeout, .. }
            | Self::UdpRecvFrom { timeout, .. }
            | Self::Connect { timeout, .. }
            | Self::RecvFd { timeout, .. }
            | Self::WaitGroupEnd { timeout, .. } => *timeout,
            Self::Child { operation, .. } => operation.timeout(),
            Self::ConnectMany(flood) | Self::SendMany(flood) => {
                flood.duration.unwrap_or(LONG) + flood.options.timeout
            }
            Self::OpenMany { .. } | Self::Birth { .. } => LONG,
            _ => TIMEOUT,
        }
    }
}

/// How to open a connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConnectOptions {
    /// The source address; port 0 takes a free one.
    pub bind: Option<SocketAddr>,
    /// `SO_BINDTODEVICE`.
    pub device: Option<String>,
    /// `IPPROTO_MPTCP`.
    pub mptcp: bool,
    /// Data to send in the SYN (`MSG_FASTOPEN`).
    pub fast_open: Option<String>,
    /// `TCP_FASTOPEN_CONNECT`: what is sent first goes with the SYN.
    pub fast_open_connect: bool,
    /// `TCP_MAXSEG`: the largest segment that this end takes and sends.
    pub segment: Option<u16>,
    /// How long until `ETIMEDOUT`.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            bind: None,
            device: None,
            mptcp: false,
            fast_open: None,
            fast_open_connect: false,
            segment: None,
            timeout: TIMEOUT,
        }
    }
}

/// How to open a listener or a bound UDP socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListenOptions {
    /// `SO_REUSEPORT`. (`SO_REUSEADDR` is always set for TCP.)
    pub reuse_port: bool,
    /// The queue's length.
    pub backlog: i32,
    /// `IPV6_V6ONLY`; the system's default if absent.
    pub v6_only: Option<bool>,
    /// `IPPROTO_MPTCP`.
    pub mptcp: bool,
    /// `TCP_FASTOPEN` with a queue of this length.
    pub fast_open: Option<i32>,
    /// `TCP_DEFER_ACCEPT`: for how many seconds data is waited for.
    pub defer_accept: Option<i32>,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            reuse_port: false,
            backlog: 4096,
            v6_only: None,
            mptcp: false,
            fast_open: None,
            defer_accept: None,
        }
    }
}

/// Which direction `Shutdown` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// No more receiving.
    Read,
    /// No more sending.
    Write,
    /// Neither.
    Both,
}

/// A tight loop over destinations, in turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flood {
    /// Where to, in turn.
    pub to: Vec<SocketAddr>,
    /// How many attempts at most.
    pub count: u64,
    /// How long at most.
    pub duration: Option<Duration>,
    /// Until this file is there.
    pub until: Option<PathBuf>,
    /// How often at most, so that a loop that goes on for long does not drown its own records.
    pub pace: Option<Duration>,
    /// Sends one byte over each connection and waits for it to come back, before it counts as `ok`.
    pub echo: bool,
    /// How to open each connection.
    pub options: ConnectOptions,
}

impl Flood {
    /// `count` attempts toward one destination.
    pub fn new(to: SocketAddr, count: u64) -> Self {
        Self {
            to: vec![to],
            count,
            duration: None,
            until: None,
            pace: None,
            echo: false,
            options: ConnectOptions::default(),
        }
    }
}

/// What came of a loop, for one destination.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcomes {
    /// How many attempts ended as `ok`, as `eof`, or as an error of that name.
    pub counts: BTreeMap<String, u64>,
    /// Each time an attempt ended otherwise than the one before: when (`CLOCK_MONOTONIC`, nanoseconds) and how. The
    /// first attempt is in it; at most 4,096 are kept.
    pub changes: Vec<(u64, String)>,
    /// Nanoseconds an attempt took: least, median, 90th, 99th percentile, most.
    pub latency_ns: [u64; 5],
}

impl Outcomes {
    /// How many attempts ended so.
    pub fn count(&self, outcome: &str) -> u64 {
        self.counts.get(outcome).copied().unwrap_or(0)
    }
}

/// What a probe answers. Which fields are there depends on the operation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reply {
    /// The name of the error, such as `EPERM`, if the operation failed.
    pub errno: Option<String>,
    /// How long the system call (or the operation) took, in nanoseconds.
    pub elapsed_ns: u64,
    /// The handle of what was made.
    pub socket: Option<Handle>,
    /// The socket's own address.
    pub local: Option<SocketAddr>,
    /// The other end's address.
    pub peer: Option<SocketAddr>,
    /// What was received.
    pub data: Option<String>,
    /// How many bytes went through.
    pub bytes: Option<u64>,
    /// How many things it was about: connections opened, ended, accepted.
    pub count: Option<u64>,
    /// How many of them are open now.
    pub open: Option<u64>,
    /// How a group's attempts or ends came out, by name.
    pub counts: BTreeMap<String, u64>,
    /// What came of a loop, one for each destination.
    pub outcomes: Vec<Outcomes>,
}

impl Reply {
    /// The reply itself, unless it is an errno.
    pub fn ok(self) -> Result<Self> {
        match &self.errno {
            None => Ok(self),
            Some(errno) => bail!("the probe's operation failed with {errno}"),
        }
    }

    /// The name of the error, or `ok`.
    pub fn outcome(&self) -> &str {
        self.errno.as_deref().unwrap_or("ok")
    }

    /// The handle of what was made.
    pub fn handle(&self) -> Result<Handle> {
        self.clone()
            .ok()?
            .socket
            .ok_or_else(|| anyhow::anyhow!("the reply has no handle"))
    }

    /// The socket's own address.
    pub fn local(&self) -> Result<SocketAddr> {
        self.clone()
            .ok()?
            .local
            .ok_or_else(|| anyhow::anyhow!("the reply has no address"))
    }

    /// How long it took.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.elapsed_ns)
    }
}
