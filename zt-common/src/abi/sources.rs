// SPDX-License-Identifier: Apache-2.0
//! What this node's kernel knows of the SYNs that its own workloads have sent.

use crate::address::Address;

/// Key of `zt_sources` and `zt_strays` (LRU): a SYN that a managed socket of this node has sent, so that the receiving end knows whose
/// it is. Written before the SYN leaves; good for [`SOURCE_LIFE`], and gone before that where the other end has proven who it is.
///
/// Two maps of one kind, so that who calls strangers, of whom there are as many as he likes, displaces nothing of those who call
/// somebody here.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SourceKey {
    /// Source address, as the source's socket has it and [`Address::within`] says it: a loopback address is that of one namespace.
    pub source: Address,
    /// The SYN's sequence number: another connection from the same port begins with another.
    pub sequence: u32,
    /// Source port.
    pub source_port: u16,
    /// Always zero.
    pub reserved: u16,
}

/// Value of `zt_sources` and `zt_strays`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The workload whose socket it is.
    pub workload: u64,
    /// Its identity at the time.
    pub identity: u64,
    /// Cookie of the source's namespace: a namespace's own address is this source's only there.
    pub netns: u64,
    /// Cookie of the socket: no other one changes what is noted here.
    pub cookie: u64,
    /// [`Source::answer`] with the sequence number of the SYN-ACK that the source has taken, or 0: whoever repeats the SYN gets another
    /// answer, which the source does not take.
    pub answered: u64,
    /// Destination address, as the source's socket has it.
    pub destination: Address,
    /// When it was noted, `CLOCK_MONOTONIC` seconds.
    pub noted: u32,
    /// Destination port. 0: what becomes of the destination on the way is not known, and `destination` is zeros.
    pub destination_port: u16,
    /// Always zero.
    pub reserved: u16,
}

/// How long what was noted of a SYN counts, seconds: as long as Linux goes on repeating one, and then some.
pub const SOURCE_LIFE: u32 = 180;

impl Source {
    /// What [`Source::answered`] is once a SYN-ACK with this sequence number has come.
    #[inline(always)]
    pub const fn answer(sequence: u32) -> u64 {
        1 << 32 | sequence as u64
    }
}

const _: () = assert!(size_of::<SourceKey>() == 24);
const _: () = assert!(size_of::<Source>() == 64);
