// SPDX-License-Identifier: Apache-2.0
//! How long to wait, each node for another time.

use std::time::Duration;

use super::Timing;

/// Each further so many objects put a list off by as much again: all of a cluster's nodes read all of them.
const STEP: usize = 500;
/// A list is put off no longer, however many objects there are: meanwhile nothing is heard.
const LONGEST_SPREAD: Duration = Duration::from_secs(30);

/// The pauses between attempts.
#[derive(Debug)]
pub(super) struct Pace {
    timing: Timing,
    failures: u32,
    seed: u64,
}

impl Pace {
    pub(super) fn new(timing: Timing) -> Self {
        let clock = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        // Containers on all nodes may have the same process id.
        let seed = clock.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(32);
        Self {
            timing,
            failures: 0,
            seed,
        }
    }

    /// It went well.
    pub(super) fn calm(&mut self) {
        self.failures = 0;
    }

    /// Whether nothing has failed since.
    pub(super) fn is_calm(&self) -> bool {
        self.failures == 0
    }

    /// How long to wait after one more failure.
    pub(super) fn pause(&mut self) -> Duration {
        let doubled = self.timing.first_pause * 2_u32.pow(self.failures.min(12));
        self.failures += 1;
        let pause = doubled.min(self.timing.longest_pause);
        pause + pause.mul_f64(self.random() / 2.0)
    }

    /// Up to what all nodes are spread over.
    pub(super) fn spread(&mut self) -> Duration {
        self.timing.spread.mul_f64(self.random())
    }

    /// The same for a list of so many objects, of which every node reads all.
    pub(super) fn spread_of(&mut self, objects: usize) -> Duration {
        let steps = u32::try_from(objects / STEP).unwrap_or(u32::MAX);
        let whole = self.timing.spread.saturating_mul(steps.saturating_add(1));
        let longest = LONGEST_SPREAD.max(self.timing.spread);
        whole.min(longest).mul_f64(self.random())
    }

    /// From 0 to 1: `splitmix64`.
    fn random(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_it_went_well() {
        let timing = Timing::default();
        let mut pace = Pace::new(timing);
        let mut least = timing.first_pause;
        for _ in 0..20 {
            let pause = pace.pause();
            assert!(pause >= least && pause <= least.mul_f64(1.5), "{pause:?}");
            least = (least * 2).min(timing.longest_pause);
        }
        assert!(!pace.is_calm());
        pace.calm();
        assert!(pace.pause() <= timing.first_pause.mul_f64(1.5));
        assert!(pace.spread() <= timing.spread);
    }

    #[test]
    fn the_more_is_listed_the_longer_the_nodes_are_spread() {
        let mut pace = Pace::new(Timing::default());
        let mut longest = |objects: usize| {
            let pauses = (0..200).map(|_| pace.spread_of(objects));
            pauses.max().unwrap_or_default()
        };
        assert!(longest(499) <= Duration::from_millis(500));
        let many = longest(15_000);
        assert!(
            many > Duration::from_secs(5) && many <= Duration::from_millis(15_500),
            "{many:?}"
        );
        assert!(longest(usize::MAX) <= LONGEST_SPREAD);
    }
}
