// SPDX-License-Identifier: Apache-2.0
//! What somebody may have this agent do: so much at once, and so much in a second from then on.

use std::time::Duration;

use tokio::time::Instant;

/// Lines of the log about one node at once, and in a second.
const LINES: (f64, f64) = (12.0, 0.1);
/// What changes again and again within that time is told of together.
const TOGETHER: Duration = Duration::from_millis(20);
/// How often in a row something is told of at once all the same: a pod is there, has its name, has another address.
const AT_ONCE: u32 = 4;

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

/// When what changes is told of: at once, a few times in a row, and no later than after a pause, together with what has changed by
/// then.
#[derive(Debug)]
pub(super) struct Pace {
    next: Instant,
}

impl Pace {
    /// Something may be told at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now }
    }

    /// When something may be told.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Something is.
    pub(super) fn told(&mut self, now: Instant) {
        // What was not used for long does not add up.
        let least = now.checked_sub(TOGETHER * (AT_ONCE - 1)).unwrap_or(now);
        self.next = self.next.max(least) + TOGETHER;
    }
}

#[cfg(test)]
mod tests {
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
    fn the_first_changes_are_told_of_at_once_and_a_storm_of_them_together() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        // After a quiet time, however long it was.
        let later = start + Duration::from_secs(60);
        for _ in 0..AT_ONCE {
            assert!(pace.next() <= later);
            pace.told(later);
        }
        assert_eq!(pace.next(), later + TOGETHER);
        // Something changes all the time for a second: each is told of after a pause at most, and few times in all.
        let (mut now, end) = (later, later + Duration::from_secs(1));
        let mut told = 0;
        while now < end {
            if pace.next() <= now {
                pace.told(now);
                assert!(pace.next() <= now + TOGETHER);
                told += 1;
            }
            now += Duration::from_millis(1);
        }
        assert!((45..=50).contains(&told), "{told}");
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
