// SPDX-License-Identifier: Apache-2.0
//! What somebody may have this agent do: so much at once, and so much in a second from then on.

use tokio::time::Instant;

/// Lines of the log about one node at once, and in a second.
const LINES: (f64, f64) = (12.0, 0.1);

/// So much at once, and so much in a second.
#[derive(Debug)]
pub(super) struct Allowance {
    left: f64,
    most: f64,
    per_second: f64,
    counted: Instant,
}

impl Allowance {
    /// All of it is there.
    pub(super) fn new(most: f64, per_second: f64, now: Instant) -> Self {
        Self {
            left: most,
            most,
            per_second,
            counted: now,
        }
    }

    /// Takes that much, if it is there.
    pub(super) fn take(&mut self, much: f64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.counted = now;
        self.left = (self.left + passed * self.per_second).min(self.most);
        let there = self.left >= much;
        if there {
            self.left -= much;
        }
        there
    }
}

/// Keeps the log readable, whatever somebody does.
#[derive(Debug)]
pub(super) struct Words {
    allowance: Allowance,
    unsaid: u64,
}

impl Words {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            allowance: Allowance::new(LINES.0, LINES.1, now),
            unsaid: 0,
        }
    }

    /// Whether another line may be written, and how many were not since the last one.
    pub(super) fn may_say(&mut self, now: Instant) -> Option<u64> {
        if self.allowance.take(1.0, now) {
            return Some(std::mem::take(&mut self.unsaid));
        }
        self.unsaid += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_taken_comes_back_with_time_and_never_more_of_it() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut allowance = Allowance::new(10.0, 2.0, start);
        assert!(allowance.take(10.0, start));
        assert!(!allowance.take(1.0, start));
        assert!(allowance.take(4.0, at(2)) && !allowance.take(1.0, at(2)));
        assert!(allowance.take(10.0, at(1000)) && !allowance.take(1.0, at(1000)));
        assert!(!allowance.take(1.0, start), "a clock that is read out of order");
    }

    #[test]
    fn lines_that_are_left_out_are_told_of() {
        let start = Instant::now();
        let mut words = Words::new(start);
        let said = (0..100).filter(|_| words.may_say(start).is_some()).count();
        assert_eq!(said, 12);
        assert_eq!(words.may_say(start + Duration::from_secs(11)), Some(88));
    }
}
