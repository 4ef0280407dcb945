// SPDX-License-Identifier: Apache-2.0
//! Who fills the ring buffer, and what is told of it all the same.

use crate::address::Address;

/// Value of `zt_floods` (LRU), keyed by workload: what it has put into the ring buffer in one window of time. Looked at
/// only while the ring is filling up.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flood {
    /// `CLOCK_MONOTONIC` nanoseconds, shifted right by [`FLOOD_WINDOW`].
    pub window: u64,
    /// Its decisions in that window.
    pub records: u64,
}

/// A window is 2 to this power nanoseconds long: 134 ms.
pub const FLOOD_WINDOW: u32 = 27;

/// How many records one workload may put into the ring in one window, by how many eighths of the ring are full.
///
/// A workload that is refused in a tight loop makes more records than can be stored. Its share shrinks as the ring
/// fills, so that there is room for everyone else's, and for the notices that the agent acts on.
#[inline(always)]
pub const fn flood_share(eighths: u64) -> u64 {
    match eighths {
        0..=3 => u64::MAX,
        4 | 5 => 4096,
        6 => 512,
        _ => 64,
    }
}

/// Key of `zt_denials` (LRU), whose value is the window in which it was told: a denial, without what differs from one try to the
/// next. Looked at only where a workload has had its share.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Denial {
    /// The workload (cgroup id) at the end that decided.
    pub workload: u64,
    /// Source identity.
    pub source: u64,
    /// Destination identity.
    pub destination: u64,
    /// Address of the other end.
    pub remote: Address,
    /// The port that policy speaks about.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Number of a [`crate::verdict::Reason`].
    pub reason: u8,
    /// 1 where the destination's end decided.
    pub inbound: u8,
    /// Always zero.
    pub reserved: [u8; 3],
}

/// A denial that was not told in so many windows (a second) is the first of its kind again.
pub const FIRST_AFTER: u64 = 8;
/// How many firsts a workload that has had its share may put into the ring in one window: who tries all ports makes nothing else.
pub const FIRST_SHARE: u64 = 64;

const _: () = assert!(size_of::<Flood>() == 16);
const _: () = assert!(size_of::<Denial>() == 48);
