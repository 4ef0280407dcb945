// SPDX-License-Identifier: Apache-2.0
//! How often something may be done that a workload can set off again and again.

use std::time::{Duration, Instant};

/// Of the time that passes, at most one part in so many goes into it.
const PARTS: u32 = 20;
/// The longest rest: what was lost is found in a bounded time, however long a look takes.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// Rests after each turn of some work, nineteen times as long as the turn took, at most 30 s. The first turn, and one
/// after a quiet time, begins at once.
#[derive(Debug, Default)]
pub(super) struct Restraint {
    until: Option<Instant>,
}

impl Restraint {
    /// How long the next turn has to wait; nothing, for one that may begin.
    pub(super) fn remaining(&self, now: Instant) -> Duration {
        let until = self.until.unwrap_or(now);
        until.saturating_duration_since(now)
    }

    /// A turn has ended.
    pub(super) fn worked(&mut self, begun: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(begun);
        self.until = Some(ended + took.saturating_mul(PARTS - 1).min(LONGEST_REST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_secs(1);

    /// A flood of ten minutes, looked after at each tick: the share of the time that looks take, and the longest time
    /// between a loss and the begin of the look that makes up for it.
    fn flood(look: Duration) -> (f64, Duration) {
        let start = Instant::now();
        let (mut now, mut restraint) = (start, Restraint::default());
        let (mut worked, mut lost_at, mut longest) = (Duration::ZERO, None, Duration::ZERO);
        while now < start + Duration::from_secs(600) {
            let lost = *lost_at.get_or_insert(now);
            if restraint.remaining(now).is_zero() {
                longest = longest.max(now - lost);
                let begun = now;
                now += look;
                restraint.worked(begun, now);
                worked += look;
                // What is lost while it looks is lost anew.
                lost_at = Some(begun);
            }
            now += TICK;
        }
        (worked.as_secs_f64() / (now - start).as_secs_f64(), longest)
    }

    #[test]
    fn a_flood_costs_a_small_share_and_what_it_lost_is_found_in_time() {
        for millis in [1, 10, 100, 500, 1000, 1500] {
            let look = Duration::from_millis(millis);
            let (share, longest) = flood(look);
            assert!(share <= 0.06, "{look:?}: {share}");
            assert!(longest <= look + LONGEST_REST + TICK, "{look:?}: {longest:?}");
        }
        // With few sockets it is found by the next tick.
        assert!(flood(Duration::from_millis(10)).1 <= Duration::from_millis(1010));
        // However long a look takes, it comes.
        let endless = Duration::from_secs(20);
        assert!(flood(endless).1 <= endless + LONGEST_REST + TICK);
    }

    #[test]
    fn after_a_quiet_time_a_turn_begins_at_once() {
        let (mut restraint, now) = (Restraint::default(), Instant::now());
        assert_eq!(restraint.remaining(now), Duration::ZERO);
        let ended = now + Duration::from_millis(100);
        restraint.worked(now, ended);
        assert_eq!(restraint.remaining(ended), Duration::from_millis(1900));
        assert_eq!(
            restraint.remaining(ended + Duration::from_secs(2)),
            Duration::ZERO
        );
    }
}
