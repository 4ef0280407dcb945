// SPDX-License-Identifier: Apache-2.0
//! Who fills the ring buffer, and what is told of it all the same.

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

/// How many words a denial is ([`denial_part`]), each with a seed of its own.
pub const DENIAL_WORDS: usize = 6;

/// One word's part of the key of `zt_denials` (LRU), whose value is the window in which it was told: one number for all that a denial
/// says, without what differs from one try to the next. The words are the workload (cgroup id) at the end that decided, the source
/// identity, the destination identity, the two halves of the other end's address, and what [`way`] makes of the rest; their parts are
/// added up. Looked at only where a workload has had its share.
///
/// The kernel programs have no stack for more than a number, nor for the words at once. It is NH (the hash of UMAC, RFC 4418): of two
/// denials, whoever chooses them and does not know the seeds, one in four thousand million pairs has the same.
#[inline(always)]
pub const fn denial_part(word: u64, seed: u64) -> u64 {
    let low = (word as u32).wrapping_add(seed as u32) as u64;
    let high = ((word >> 32) as u32).wrapping_add((seed >> 32) as u32) as u64;
    low.wrapping_mul(high)
}

/// Port, protocol, reason and end of a denial in one word.
#[inline(always)]
pub const fn way(port: u16, protocol: u8, reason: u8, inbound: bool) -> u64 {
    port as u64 | (protocol as u64) << 16 | (reason as u64) << 24 | (inbound as u64) << 32
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
    use crate::address::Address;

    /// The number of a denial.
    fn denial(seed: impl Fn(usize) -> u64, parts: [u64; 4], remote: &Address) -> u64 {
        let [a, b, c, d] = remote.words().map(u64::from);
        let [workload, source, destination, way] = parts;
        let words: [u64; DENIAL_WORDS] = [workload, source, destination, a << 32 | b, c << 32 | d, way];
        let parts = words
            .iter()
            .enumerate()
            .map(|(place, word)| denial_part(*word, seed(place)));
        parts.fold(0, u64::wrapping_add)
    }

    /// Seeds as good as any: `SplitMix64` of a number.
    fn seeds(number: u64) -> impl Fn(usize) -> u64 {
        move |place| {
            let mut mixed = (number * 64 + place as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }
    }

    /// Of denials that differ in one thing, and of many that differ little.
    #[test]
    fn denials_that_differ_have_other_numbers() {
        let remote = Address::from_v4([10, 0, 0, 1]);
        let parts = [7, 100, 200, way(443, 6, 2, false)];
        let one = denial(seeds(1), parts, &remote);
        assert_eq!(one, denial(seeds(1), parts, &remote));
        let mut all: HashSet<u64> = [one, denial(seeds(2), parts, &remote)].into();
        let mut count = 2;
        for place in 0..parts.len() {
            for bit in 0..64 {
                let mut other = parts;
                other[place] ^= 1 << bit;
                all.insert(denial(seeds(1), other, &remote));
                count += 1;
            }
        }
        for bit in 0..128 {
            let mut other = remote;
            other.0[bit / 8] ^= 1 << (bit % 8);
            all.insert(denial(seeds(1), parts, &other));
            count += 1;
        }
        for port in 444..=u16::MAX {
            all.insert(denial(seeds(1), [7, 100, 200, way(port, 17, 9, false)], &remote));
            count += 1;
        }
        assert_eq!(all.len(), count);
    }

    /// Two differences in different words never cancel each other but by chance, whatever they are.
    #[test]
    fn no_two_addresses_are_the_same_whatever_the_seeds() {
        let parts = [7, 100, 200, way(443, 6, 2, false)];
        let mut same = 0;
        for (one, other) in [
            ("2001:db8::1", "2001:d38::400:80:0:1"),
            ("2001:db8::1", "a001:db8::8000:0:0:1"),
            ("::1", "8000::8000:0:0:1"),
            ("2001:db8:8000::1", "2001:db8::8000:0:1"),
        ] {
            let address = |text: &str| {
                let address: std::net::Ipv6Addr = text.parse().expect("an address");
                Address(address.octets())
            };
            let (one, other) = (address(one), address(other));
            for number in 0..10_000 {
                same += u32::from(denial(seeds(number), parts, &one) == denial(seeds(number), parts, &other));
            }
        }
        assert_eq!(same, 0);
    }
}
