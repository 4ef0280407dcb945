// SPDX-License-Identifier: Apache-2.0
//! What an admission leaves behind: the connection for a later sweep, and the source for the other end to find.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST, bpf_sock};
use zt_common::abi::{Connection, Socket, Source, SourceKey};
use zt_common::address::Address;
use zt_common::counter::Counter;
use zt_common::event::Hook;
use zt_common::proof::Proof;

use crate::call::TCP;
use crate::emit::Told;
use crate::{context, emit, maps};

/// Files a connection under its socket's cookie; whether there was room for it.
#[inline(always)]
pub fn connection(cookie: u64, connection: &Connection) -> bool {
    if maps::zt_connections
        .insert(cookie, connection, u64::from(BPF_NOEXIST))
        .is_ok()
    {
        return true;
    }
    // What an earlier call on this socket left, which failed before it sent anything, and has no record yet.
    tell(cookie, Proof::Unanswered);
    let filed = maps::zt_connections
        .insert(cookie, connection, u64::from(BPF_ANY))
        .is_ok();
    if !filed {
        emit::count(Counter::ConnectionsFull);
    }
    filed
}

/// Keeps with the socket itself whose connection it is, where `zt_connections` was full: the other end on this node
/// must find out even then, or would take it for the host's.
#[inline(never)]
pub fn unfiled(sock: *mut bpf_sock, workload: u64, netns: u64, flags: u8) {
    let mut socket = match context::stored(sock) {
        // It was bound, and keeps what that noted.
        Some(socket) => socket,
        None => Socket {
            workload,
            cgroup: workload,
            netns,
            address: Address::UNSPECIFIED_V6,
            port: 0,
            protocol: TCP,
            flags: 0,
            reserved: 0,
        },
    };
    socket.flags |= flags;
    context::store(sock, &socket);
}

/// Makes the record of a connection that has none yet.
#[inline(never)]
pub fn tell(cookie: u64, proof: Proof) {
    let Some(place) = maps::zt_connections.get_ptr_mut(cookie) else {
        return;
    };
    // SAFETY: a live entry, which is removed by who closes its socket. That may be at the same time as the handshake
    // ends: one of the two makes the record.
    unsafe {
        let started = context::take(&raw mut (*place).started);
        if started != 0 {
            let told = Told {
                hook: Hook::Connect,
                flags: 0,
                proof,
            };
            emit::told(cookie, started, &*place, told);
        }
    }
}

/// A connection is over; if it has no record yet, nobody answered.
#[inline(always)]
pub fn closed(cookie: u64) {
    tell(cookie, Proof::Unanswered);
    gone(cookie);
}

/// Forgets a connection.
#[inline(always)]
pub fn gone(cookie: u64) {
    // Absent for what was never admitted: nothing to forget.
    let _ = maps::zt_connections.remove(cookie);
}

/// Where the other end will look for whose connection this is. Zeros for the destination of one to a virtual address, as
/// nobody knows what becomes of that.
pub struct Begun {
    pub netns: u64,
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
}

impl Begun {
    /// Its key in `zt_sources`.
    #[inline(always)]
    pub fn key(&self) -> SourceKey {
        SourceKey {
            netns: self.netns,
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: self.protocol,
            reserved: [0; 3],
        }
    }
}

/// Says whose connection this is, whose SYN has this sequence number.
#[inline(always)]
pub fn source(begun: &Begun, workload: u64, identity: u64, sequence: u32) {
    let source = Source {
        workload,
        identity,
        sequence,
        reserved: 0,
    };
    // An LRU map evicts rather than fails; a lost entry means naming the source by its address.
    let _ = maps::zt_sources.insert(begun.key(), source, u64::from(BPF_ANY));
}
