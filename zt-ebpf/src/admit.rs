// SPDX-License-Identifier: Apache-2.0
//! What an admission leaves behind: the connection for a later sweep, and the source for the other end to find.

use aya_ebpf::bindings::BPF_ANY;
use zt_common::abi::{Connection, Source, SourceKey};
use zt_common::address::Address;
use zt_common::counter::Counter;

use crate::emit;
use crate::maps;

/// Files a connection under its socket's cookie.
#[inline(always)]
pub fn connection(cookie: u64, connection: &Connection) {
    if maps::zt_connections
        .insert(cookie, connection, u64::from(BPF_ANY))
        .is_err()
    {
        emit::count(Counter::ConnectionsFull);
    }
}

/// Forgets a connection.
#[inline(always)]
pub fn gone(cookie: u64) {
    // Absent for what was never admitted: nothing to forget.
    let _ = maps::zt_connections.remove(cookie);
}

/// Where the other end will look for whose connection this is.
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
