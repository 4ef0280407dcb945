// SPDX-License-Identifier: Apache-2.0
//! Moments at which things are killed: other ones each time, and the same again for who asks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::entries::spread;

/// Moments, other ones each time; `ZT_SEED` has the same again.
#[derive(Debug)]
pub struct Moments {
    seed: u64,
    taken: u64,
}

impl Moments {
    /// Begins, and prints the seed.
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let given = std::env::var("ZT_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or(u64::from(now.subsec_nanos()));
        eprintln!("ZT_SEED={seed}");
        Self { seed, taken: 0 }
    }

    /// A moment within that time.
    pub fn within(&mut self, time: Duration) -> Duration {
        let part = self.below(1000);
        time * u32::try_from(part).expect("small") / 1000
    }

    /// These, in another order.
    pub fn shuffled<T>(&mut self, mut all: Vec<T>) -> Vec<T> {
        for at in (1..all.len()).rev() {
            let other = self.below(at as u64 + 1);
            all.swap(at, usize::try_from(other).expect("small"));
        }
        all
    }

    fn below(&mut self, end: u64) -> u64 {
        self.taken += 1;
        spread(self.seed.wrapping_add(self.taken)) % end
    }
}

impl Default for Moments {
    fn default() -> Self {
        Self::new()
    }
}
