// SPDX-License-Identifier: Apache-2.0
//! What travels through the ring buffer `zt_events`: a decision, or a notice that something needs the agent.
//!
//! Every event starts with [`EventHeader`]; a reader that does not know the version or finds another size counts it
//! as undecodable and goes on.

use crate::address::Address;

/// Start of every event.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventHeader {
    /// [`crate::ABI_VERSION`].
    pub version: u16,
    /// Size of the whole event in bytes.
    pub size: u16,
    /// [`KIND_DECISION`] or [`KIND_NOTICE`].
    pub kind: u16,
    /// Always zero.
    pub reserved: u16,
}

/// The event is a [`DecisionEvent`].
pub const KIND_DECISION: u16 = 1;
/// The event is a [`NoticeEvent`].
pub const KIND_NOTICE: u16 = 2;

/// One decision.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecisionEvent {
    /// Kind [`KIND_DECISION`].
    pub header: EventHeader,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time: u64,
    /// Source identity.
    pub source: u64,
    /// Destination identity.
    pub destination: u64,
    /// Rule that decided, or 0.
    pub rule: u64,
    /// Revision that decided.
    pub revision: u64,
    /// The workload (cgroup id) at the end that decided; 0 where nothing is known of it.
    pub workload: u64,
    /// Socket cookie, or 0.
    pub cookie: u64,
    /// Cookie of the network namespace at that end.
    pub netns: u64,
    /// Source address; unspecified where it is not chosen yet.
    pub source_address: Address,
    /// Destination address, as that end's socket sees it.
    pub destination_address: Address,
    /// Source port, or 0 where it is not chosen yet.
    pub source_port: u16,
    /// Destination port, as that end's socket sees it.
    pub destination_port: u16,
    /// The port that policy speaks about.
    pub target_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Number of a [`Hook`].
    pub hook: u8,
    /// Thread group of the task, or 0 where the hook has none.
    pub pid: u32,
    /// Time that the decision took, nanoseconds.
    pub latency: u32,
    /// Number of a [`crate::verdict::Reason`].
    pub reason: u8,
    /// Or of [`ALLOWED`], [`ENFORCED`], [`INBOUND`], [`REFUSED_SOCKET`], [`IPV6`].
    pub flags: u8,
    /// Number of a [`crate::proof::Proof`].
    pub proof: u8,
    /// 1 where the last SYN bore no identity option, because nobody had answered those that did.
    pub omitted: u8,
    /// Always zero.
    pub reserved: [u8; 4],
    /// Name of the task, NUL-padded, or zeros.
    pub comm: [u8; 16],
}

/// Policy allows.
pub const ALLOWED: u8 = 1;
/// This end enforces.
pub const ENFORCED: u8 = 2;
/// The destination's end decided.
pub const INBOUND: u8 = 4;
/// There is a fenced socket, which waits to be destroyed.
pub const REFUSED_SOCKET: u8 = 8;
/// The socket is of the IPv6 family.
pub const IPV6: u8 = 16;

/// The kernel hook at which a decision was taken. The numbers are part of the ABI.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Hook {
    /// `connect()`.
    Connect = 1,
    /// An unconnected datagram is sent.
    Sendmsg = 2,
    /// A handshake is complete.
    Established = 3,
    /// A datagram is received.
    Receive = 4,
    /// A socket is created.
    Socket = 5,
    /// A connection is judged again after a change of policy (decided in user space).
    Sweep = 6,
    /// A segment of an established connection is sent or received (`packetGuard`).
    Packet = 7,
}

impl Hook {
    /// The name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Sendmsg => "sendmsg",
            Self::Established => "established",
            Self::Receive => "receive",
            Self::Socket => "socket",
            Self::Sweep => "sweep",
            Self::Packet => "packet",
        }
    }

    /// From the number that the kernel side wrote.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Connect,
            2 => Self::Sendmsg,
            3 => Self::Established,
            4 => Self::Receive,
            5 => Self::Socket,
            6 => Self::Sweep,
            7 => Self::Packet,
            _ => return None,
        })
    }
}

/// Something that the agent should look at; never a decision.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoticeEvent {
    /// Kind [`KIND_NOTICE`].
    pub header: EventHeader,
    /// One of the `NOTICE_` constants.
    pub code: u32,
    /// Thread group of the task, or 0.
    pub pid: u32,
    /// The workload (cgroup id) concerned.
    pub workload: u64,
    /// Cookie of the network namespace concerned.
    pub netns: u64,
}

/// A workload bound a UDP port: its datagrams need the receive guard.
pub const NOTICE_UDP_BOUND: u32 = 1;
/// A socket listens whose owner no hook saw: it never called `bind`.
pub const NOTICE_UNOWNED_LISTENER: u32 = 2;

const _: () = assert!(size_of::<EventHeader>() == 8);
const _: () = assert!(size_of::<DecisionEvent>() == 144);
const _: () = assert!(size_of::<NoticeEvent>() == 32);
