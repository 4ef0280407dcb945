// SPDX-License-Identifier: Apache-2.0
//! When records are too old. A clock that is set far ahead would have all of them gone within a minute, so what it says is
//! believed once it has said so for a day: that is long enough to set it right.

use std::time::{Duration, Instant};

use crate::audit::clock;

const DAY: Duration = Duration::from_secs(86_400);

/// Follows the clock, from when the file was opened.
#[derive(Debug)]
pub(super) struct Age {
    /// The time of day, and how long ago that was.
    believed: (i64, Instant),
    /// Since when the clock is ahead of that.
    ahead: Option<Instant>,
}

impl Age {
    /// The clock is right.
    pub(super) fn new() -> Self {
        Self {
            believed: (clock::now(), Instant::now()),
            ahead: None,
        }
    }

    /// Before which time records are too old that are to be kept for so many days; `None` while that cannot be said.
    pub(super) fn cutoff(&mut self, days: u32) -> Option<i64> {
        self.cutoff_at(days, clock::now(), Instant::now())
    }

    fn cutoff_at(&mut self, days: u32, now: i64, moment: Instant) -> Option<i64> {
        let (time, since) = self.believed;
        let expected = time.saturating_add(nanoseconds(moment.saturating_duration_since(since)));
        if now.saturating_sub(expected) > nanoseconds(DAY) {
            let first = self.ahead.is_none();
            let ahead = *self.ahead.get_or_insert(moment);
            if moment.saturating_duration_since(ahead) < DAY {
                if first {
                    tracing::error!(
                        hours = now.saturating_sub(expected) / 3_600_000_000_000,
                        "the clock was set ahead: no record is removed for its age until the clock is right, or a day has passed"
                    );
                }
                return None;
            }
        }
        (self.believed, self.ahead) = ((now, moment), None);
        Some(now.saturating_sub(i64::from(days).saturating_mul(nanoseconds(DAY))))
    }
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const NOON: i64 = 1_771_857_000_000_000_000;

    /// A clock that showed noon when the file was opened, and what it says some hours later if it was set by some hours.
    struct World {
        age: Age,
        opened: Instant,
    }

    impl World {
        fn new() -> Self {
            let opened = Instant::now();
            let age = Age {
                believed: (NOON, opened),
                ahead: None,
            };
            Self { age, opened }
        }

        /// Hours since noon before which all may go.
        fn cutoff(&mut self, hours: u32, set_by: i64) -> Option<i64> {
            let now = NOON + (i64::from(hours) + set_by) * nanoseconds(HOUR);
            let cutoff = self.age.cutoff_at(1, now, self.opened + HOUR * hours)?;
            Some((cutoff - NOON) / nanoseconds(HOUR))
        }
    }

    #[test]
    fn a_clock_that_is_kept_is_believed_for_ever() {
        let mut world = World::new();
        for hours in [0, 1, 30, 31, 24 * 365] {
            assert_eq!(world.cutoff(hours, 0), Some(i64::from(hours) - 24));
        }
        // As is one that is set by a little, or back.
        for set_by in [23, -1, -24 * 365] {
            assert_eq!(World::new().cutoff(2, set_by), Some(2 + set_by - 24));
        }
    }

    #[test]
    fn a_clock_that_was_set_a_year_ahead_is_believed_after_a_day() {
        const YEAR: i64 = 24 * 365;
        let mut world = World::new();
        assert_eq!(world.cutoff(1, 0), Some(-23));
        for hours in [2, 3, 25] {
            assert_eq!(world.cutoff(hours, YEAR), None, "{hours}");
        }
        assert_eq!(world.cutoff(26, YEAR), Some(YEAR + 2));
        assert_eq!(world.cutoff(27, YEAR), Some(YEAR + 3));
        // Set right in time, nothing has come of it, and the next time counts anew.
        let mut world = World::new();
        assert_eq!(world.cutoff(2, YEAR), None);
        assert_eq!(world.cutoff(3, 0), Some(-21));
        assert_eq!(world.cutoff(30, YEAR), None);
        assert_eq!(world.cutoff(53, YEAR), None);
    }
}
