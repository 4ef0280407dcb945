// SPDX-License-Identifier: Apache-2.0
//! How long to wait before the next attempt: longer each time, and never the same for two nodes.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// Back-off with jitter.
#[derive(Debug, Default)]
pub(super) struct Pace {
    attempts: u32,
}

impl Pace {
    /// The time until the next attempt: between half of a time that doubles and all of it.
    pub(super) fn next(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.attempts.min(7)).min(LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        // Seeded by the system; a thousand nodes that lost one engine must not come back at once.
        let random = RandomState::new().hash_one(self.attempts);
        let share = (random % 1024) as u32;
        whole / 2 + whole / 2 * share / 1024
    }

    /// All is well: the next attempt would be a first one.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_a_bound_and_varies() {
        let mut pace = Pace::default();
        let first = pace.next();
        assert!(first >= FIRST / 2 && first <= FIRST, "{first:?}");
        let later: Vec<Duration> = (0..30).map(|_| pace.next()).collect();
        assert!(
            later[10..]
                .iter()
                .all(|wait| *wait >= LONGEST / 2 && *wait <= LONGEST),
            "{later:?}"
        );
        assert!(later[10..].windows(2).any(|pair| pair[0] != pair[1]));
        pace.reset();
        assert!(pace.next() <= FIRST);
    }
}
