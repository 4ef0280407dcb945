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

/// Value of `zt_account`, one for each processor: the key and the value of `zt_floods` that a program has at hand. The programs
/// have no stack for them.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Account {
    /// Whose it is.
    pub key: u64,
    /// What is counted of it.
    pub flood: Flood,
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

/// Key of `zt_denials` (LRU), whose value is the window in which it was told: one number for all that a denial says, without what
/// differs from one try to the next. `parts` are the workload (cgroup id) at the end that decided, the source identity, the destination
/// identity and what [`way`] makes of the rest. Looked at only where a workload has had its share.
///
/// The kernel programs have no stack for more than a number. Who does not know `seed` cannot choose two denials that have the same.
#[inline(always)]
pub const fn denial(seed: u64, parts: [u64; 4], remote: &Address) -> u64 {
    let [a, b, c, d] = remote.words();
    let high = (a as u64) << 32 | b as u64;
    let low = (c as u64) << 32 | d as u64;
    let [workload, source, destination, way] = parts;
    let sum = fold(fold(fold(seed, workload), source), destination);
    // Twice at the end: the last word has to reach every bit as well.
    fold(fold(fold(fold(sum, high), low), way), seed)
}

/// Port, protocol, reason and end of a denial in one word.
#[inline(always)]
pub const fn way(port: u16, protocol: u8, reason: u8, inbound: bool) -> u64 {
    port as u64 | (protocol as u64) << 16 | (reason as u64) << 24 | (inbound as u64) << 32
}

/// One more word.
#[inline(always)]
const fn fold(sum: u64, word: u64) -> u64 {
    let mixed = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// A denial that was not told in so many windows (a second) is the first of its kind again.
pub const FIRST_AFTER: u64 = 8;
/// How many firsts a workload that has had its share may put into the ring in one window: who tries all ports makes nothing else.
pub const FIRST_SHARE: u64 = 64;

const _: () = assert!(size_of::<Flood>() == 16);
const _: () = assert!(size_of::<Account>() == 24);

#[cfg(all(test, feature = "user"))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Of denials that differ in one thing, and of many that differ little.
    #[test]
    fn denials_that_differ_have_other_numbers() {
        let remote = Address::from_v4([10, 0, 0, 1]);
        let parts = [7, 100, 200, way(443, 6, 2, false)];
        let one = denial(1, parts, &remote);
        assert_eq!(one, denial(1, parts, &remote));
        let mut all: HashSet<u64> = [one, denial(2, parts, &remote)].into();
        let mut count = 2;
        for place in 0..parts.len() {
            let mut other = parts;
            other[place] += 1;
            all.insert(denial(1, other, &remote));
            count += 1;
        }
        for byte in 0..16 {
            let mut other = remote;
            other.0[byte] ^= 1;
            all.insert(denial(1, parts, &other));
            count += 1;
        }
        for (protocol, reason, inbound) in [(17, 2, false), (6, 3, false), (6, 2, true)] {
            let other = way(443, protocol, reason, inbound);
            all.insert(denial(1, [7, 100, 200, other], &remote));
            count += 1;
        }
        for port in 444..=u16::MAX {
            all.insert(denial(1, [7, 100, 200, way(port, 17, 9, false)], &remote));
            count += 1;
        }
        assert_eq!(all.len(), count);
    }
}
