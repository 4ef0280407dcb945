// SPDX-License-Identifier: Apache-2.0
//! Keys and values of the kernel maps other than the allow table, in the order of the table in `docs/bpftool.md`.
//!
//! Ports are in host byte order everywhere; addresses are [`Address`]es; identities are the numbers of
//! [`crate::identity`]; a `workload` is the cgroup id under which `zt_workloads` knows it.

mod guarded;
mod modes;
mod nodes;
mod sources;
mod unnoted;

pub use self::guarded::Guarded;
pub use self::modes::{MODE_ENFORCE, MODE_OBSERVE, enforces, enforcing, mode_between, settled};
pub use self::nodes::{Homes, KeyId, MOST_HOMES, Node, NodeKey, ResidentKey, WITHIN};
pub use self::sources::{SOURCE_LIFE, Source, SourceKey};
pub use self::unnoted::Unnoted;
use crate::address::Address;

/// Value of `zt_workloads`, keyed by cgroup id (`u64`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Number of its identity; [`crate::identity::UNKNOWN`] once it was lost.
    pub identity: u64,
    /// [`MODE_OBSERVE`] or [`MODE_ENFORCE`]; while a policy is being swapped that changes it, [`mode_between`] the two.
    pub mode: u8,
    /// Always zero.
    pub reserved: [u8; 7],
}

/// Key of `zt_listeners`: where a socket of a managed workload accepts connections or datagrams.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ListenerKey {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// Local address; a wildcard in the form of its family.
    pub address: Address,
    /// Local port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub reserved: [u8; 5],
}

/// Value of `zt_listeners`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listener {
    /// The workload that listens.
    pub workload: u64,
    /// Sockets that share the place (`SO_REUSEPORT`).
    pub sockets: u64,
    /// 1 once two different workloads shared the place: it names nobody until all have gone.
    pub ambiguous: u32,
    /// 1 where it is not counted in `zt_shares`: the agent noted it, of a listener that is older than the hooks.
    pub uncounted: u32,
}

/// Or'd to a workload in a key of `zt_shares`: the connections that it accepted, and not those that it began.
pub const SHARE_INBOUND: u64 = 1 << 63;
/// Or'd to a workload in a key of `zt_shares`: the places that it listens at.
pub const SHARE_LISTENERS: u64 = 1 << 62;

/// Key of `zt_local`: an address that a namespace itself has.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LocalKey {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// One of its addresses.
    pub address: Address,
}

/// Value of `zt_peers`, keyed by [`Address`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Number of the identity reached at that address.
    pub identity: u64,
    /// Or of [`PEER_HERE`], [`PEER_PROVES`].
    pub flags: u32,
    /// Number of the node that it is on, see [`Node`]; 0 where that is this node, or no agent is known there.
    pub node: u32,
}

/// The address belongs to a workload of this node, so its sockets' own kernel entries can name it.
pub const PEER_HERE: u32 = 1;
/// The agent of that node has its workloads prove who they are: the address alone names nobody.
pub const PEER_PROVES: u32 = 2;

/// Key of `zt_services`: a virtual address that is translated after `connect`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ServiceKey {
    /// Virtual address.
    pub address: Address,
    /// Virtual port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub reserved: u8,
}

/// Value of `zt_services`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Service {
    /// Identity of the workloads behind it.
    pub identity: u64,
    /// Port that they listen on.
    pub target_port: u16,
    /// Or of [`SERVICE_PORTS`], [`SERVICE_WORKLOADS`].
    pub flags: u8,
    /// Always zero.
    pub reserved: [u8; 5],
}

/// Not all of a group listen on the same port: whether one of them may be reached does not show from `target_port`.
pub const SERVICE_PORTS: u8 = 1;
/// There are workloads behind it: one, or some of a group.
pub const SERVICE_WORKLOADS: u8 = 2;

/// Value of `zt_sockets` (socket storage, cloned from a listener to its children): whose socket this is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Socket {
    /// The workload, as resolved when the socket was bound.
    pub workload: u64,
    /// The cgroup of the task that bound it: the workload's own, or one nested in it.
    pub cgroup: u64,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// The place in `zt_listeners` that this socket counts for; zeros where it has none.
    pub address: Address,
    /// See `address`.
    pub port: u16,
    /// See `address`.
    pub protocol: u8,
    /// Or of the `SOCKET_` constants. At this place in every version of the layout, as [`SOCKET_WRITES`] is the same bit in
    /// every version: what an older version asked of a listener outlives it.
    pub flags: u8,
    /// The lower half of the cookie of the socket of which [`SOCKET_NOTED`] and [`SOCKET_LEFT`] are true. A listener's children
    /// inherit them with everything else, and are other sockets.
    pub holder: u32,
}

impl Socket {
    /// Whether what is noted of its listening is this socket's own, and not inherited from its listener.
    #[inline(always)]
    pub const fn is_held_by(&self, cookie: u64) -> bool {
        self.flags & (SOCKET_NOTED | SOCKET_LEFT) != 0 && self.holder == cookie as u32
    }
}

/// The socket has an entry in `zt_listeners`, if it is the [`Socket::holder`].
pub const SOCKET_NOTED: u8 = 1;
/// It has none and should, which `zt_unnoted` says of its namespace, if it is the [`Socket::holder`].
pub const SOCKET_LEFT: u8 = 4;
/// The socket calls a peer of this node, and `zt_connections` had no room to say so.
pub const SOCKET_HERE: u8 = 2;
/// It was us who asked for the callbacks that write the identity option into a listener's answers.
pub const SOCKET_WRITES: u8 = 8;
/// The listener keeps the SYNs of what it has not accepted yet: where there is none, a SYN cookie took its place.
pub const SOCKET_KEEPS: u8 = 16;
/// As [`SOCKET_HERE`], of one that calls somebody of whom it is not known where he is.
pub const SOCKET_FRONT: u8 = 32;

/// Value of `zt_connections`, keyed by socket cookie (`u64`): a live admitted connection, TCP or connected UDP.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The workload at this end.
    pub workload: u64,
    /// Source identity.
    pub source: u64,
    /// Destination identity.
    pub destination: u64,
    /// Rule that admitted it, or 0.
    pub rule: u64,
    /// Revision under which it was last judged.
    pub revision: u64,
    /// When `connect` decided, `CLOCK_MONOTONIC` nanoseconds, as long as that decision has no record: it is made when the
    /// handshake has shown who answered, or has failed. 0 where there is one. What follows `flags` is for that record.
    pub started: u64,
    /// This socket's address.
    pub local: Address,
    /// The other end's address, as this socket sees it.
    pub remote: Address,
    /// This socket's port; 0 until known.
    pub local_port: u16,
    /// The other end's port, as this socket sees it.
    pub remote_port: u16,
    /// The port that policy speaks about.
    pub target_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Number of the [`crate::verdict::Reason`] of `connect`.
    pub reason: u8,
    /// Or of the `CONNECTION_` constants.
    pub flags: u32,
    /// Time that the decision of `connect` took, nanoseconds.
    pub latency: u32,
    /// Thread group of the task that called `connect`.
    pub pid: u32,
    /// Number of the node at the other end, as in [`Peer`]; 0 where the handshake bears no identities between nodes.
    pub node: u32,
    /// Name of that task.
    pub comm: [u8; 16],
}

impl Connection {
    /// What is zero where nothing else is known.
    pub const BLANK: Self = Self {
        netns: 0,
        workload: 0,
        source: 0,
        destination: 0,
        rule: 0,
        revision: 0,
        started: 0,
        local: Address::UNSPECIFIED_V6,
        remote: Address::UNSPECIFIED_V6,
        local_port: 0,
        remote_port: 0,
        target_port: 0,
        protocol: 0,
        reason: 0,
        flags: 0,
        latency: 0,
        pid: 0,
        node: 0,
        comm: [0; 16],
    };

    /// The key in `zt_shares` of the share that it counts for.
    #[inline(always)]
    pub const fn share(&self) -> u64 {
        if self.flags & CONNECTION_INBOUND != 0 {
            self.workload | SHARE_INBOUND
        } else {
            self.workload
        }
    }
}

/// The handshake is complete.
pub const CONNECTION_ESTABLISHED: u32 = 1;
/// This socket is the destination's end.
pub const CONNECTION_INBOUND: u32 = 2;
/// The source is a managed workload of this node, and records at its own end.
pub const CONNECTION_SOURCE_MANAGED: u32 = 4;
/// The socket is of the IPv6 family, whatever form its addresses have.
pub const CONNECTION_IPV6: u32 = 8;
/// The other end is on this node.
pub const CONNECTION_HERE: u32 = 16;
/// The other end is in the same network namespace.
pub const CONNECTION_LOCAL: u32 = 32;
/// This end enforced when it was last judged.
pub const CONNECTION_ENFORCED: u32 = 64;
/// Policy denied it when it was last judged, and the end observed: judged again when its handshake completes.
pub const CONNECTION_DENIED: u32 = 128;
/// The SYN bears the identity option.
pub const CONNECTION_OFFERS: u32 = 256;
/// It was us who asked for the callbacks that write options.
pub const CONNECTION_WRITES: u32 = 512;
/// The SYN-ACK asked for the option: what is sent until the other end is known to have one bears it.
pub const CONNECTION_RESENDS: u32 = 1024;
/// The destination is behind a virtual address: who answers is known from the SYN-ACK, and the proof comes after it.
pub const CONNECTION_FRONT: u32 = 2048;
/// As [`CONNECTION_FRONT`], with [`SERVICE_PORTS`].
pub const CONNECTION_PORTS: u32 = 4096;
/// The rule that admitted it asks for proof.
pub const CONNECTION_REQUIRES: u32 = 8192;
/// The other end proved in the handshake who it is.
pub const CONNECTION_PROVEN: u32 = 16_384;
/// As [`CONNECTION_PORTS`], because the destination is a node's address, of which nobody says where it may lead (a port of the
/// host, `hostPort`, `NodePort`): who answers is not judged by his own name.
pub const CONNECTION_TRANSLATED: u32 = 32_768;
/// The other end is a workload of another node: its SYN leads back here in no case.
pub const CONNECTION_ELSEWHERE: u32 = 65_536;
/// It is not counted in `zt_shares`: the agent filed it.
pub const CONNECTION_UNCOUNTED: u32 = 131_072;
/// Its SYN is noted in `zt_sources`.
pub const CONNECTION_NOTED: u32 = 262_144;
/// Its SYN was repeated without the identity option, because nobody had answered those that bore it.
pub const CONNECTION_OMITTED: u32 = 524_288;

/// Key of `zt_flows` and `zt_denied_flows` (LRU): a UDP flow as one workload sees it.
///
/// Two maps of one kind, so that what is allowed is never displaced by what is denied, of which a workload can make as
/// much as it likes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// The workload.
    pub workload: u64,
    /// The other party's address.
    pub remote: Address,
    /// The other party's port.
    pub remote_port: u16,
    /// The workload's port.
    pub local_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub reserved: [u8; 3],
}

/// Value of `zt_flows` and `zt_denied_flows`: what was decided, so that replies pass and a flow is one decision a revision.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowState {
    /// Revision of the policy that decided.
    pub revision: u64,
    /// [`crate::control::Control::directory`] at the time: a change there means asking again.
    pub directory: u64,
    /// Source identity.
    pub source: u64,
    /// Destination identity.
    pub destination: u64,
    /// The port that policy speaks about.
    pub target_port: u16,
    /// 1 where policy allowed.
    pub allowed: u8,
    /// 1 where the remote party began the flow.
    pub inbound: u8,
    /// Always zero.
    pub reserved: u32,
    /// When a datagram last passed, `CLOCK_MONOTONIC` nanoseconds: a flow idle for [`FLOW_IDLE`] is over.
    pub last_seen: u64,
}

/// How long a UDP flow admits replies after its last datagram, nanoseconds.
pub const FLOW_IDLE: u64 = 120_000_000_000;

const _: () = assert!(size_of::<Workload>() == 16);
const _: () = assert!(size_of::<ListenerKey>() == 32);
const _: () = assert!(size_of::<Listener>() == 24);
const _: () = assert!(size_of::<LocalKey>() == 24);
const _: () = assert!(size_of::<Peer>() == 16);
const _: () = assert!(size_of::<ServiceKey>() == 20);
const _: () = assert!(size_of::<Service>() == 16);
const _: () = assert!(size_of::<Socket>() == 48);
const _: () = assert!(core::mem::offset_of!(Socket, flags) == 43 && SOCKET_WRITES == 8);
const _: () = assert!(size_of::<Connection>() == 128);
const _: () = assert!(size_of::<FlowKey>() == 32);
const _: () = assert!(size_of::<FlowState>() == 48);
