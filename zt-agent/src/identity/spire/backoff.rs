// SPDX-License-Identifier: Apache-2.0
//! Waiting ever longer between tries, and not all at the same moment.

use std::time::Duration;

/// The pauses between tries that fail in a row.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    /// Tells those who began together apart.
    seed: u64,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration, seed: u64) -> Self {
        Self {
            first,
            longest,
            next: first,
            seed,
        }
    }

    /// How long to wait now.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        self.seed = mixed(self.seed);
        // Up to a quarter longer.
        pause + pause.mul_f64((self.seed >> 40) as f64 / (1_u64 << 26) as f64)
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// `splitmix64`.
fn mixed(seed: u64) -> u64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_differ() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut one = Backoff::new(first, longest, 1);
        let mut other = Backoff::new(first, longest, 2);
        let mut differ = false;
        for at_least in [100, 200, 400, 800, 1000, 1000] {
            let at_least = Duration::from_millis(at_least);
            let (a, b) = (one.pause(), other.pause());
            for pause in [a, b] {
                assert!(pause >= at_least && pause <= at_least.mul_f64(1.25), "{pause:?}");
            }
            differ |= a != b;
        }
        assert!(differ);
        one.reset();
        assert!(one.pause() < Duration::from_millis(126));
    }
}
