// SPDX-License-Identifier: Apache-2.0
//! How long decisions take: a histogram for all time, and quantiles of the last minute or two.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Eight buckets for each power of two: a quantile is off by at most one part in sixteen.
const PER_OCTAVE_BITS: u32 = 3;
const BUCKETS: usize = (64 - PER_OCTAVE_BITS as usize + 1) << PER_OCTAVE_BITS;
/// How long quantiles look back, at least.
const WINDOW: Duration = Duration::from_mins(1);
/// The histogram's bounds are powers of two, from 128 ns to 16.8 ms.
const BOUNDS: std::ops::RangeInclusive<u32> = 7..=24;

/// Latencies in nanoseconds. Observing is two relaxed additions and takes no lock.
#[derive(Debug)]
pub(super) struct Latencies {
    ever: Buckets,
    sum: AtomicU64,
    /// Two windows: the one being filled and the one before.
    recent: [Buckets; 2],
    filling: AtomicUsize,
    since: Mutex<Instant>,
}

#[derive(Debug)]
struct Buckets(Box<[AtomicU64]>);

impl Default for Buckets {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            ever: Buckets::default(),
            sum: AtomicU64::new(0),
            recent: [Buckets::default(), Buckets::default()],
            filling: AtomicUsize::new(0),
            since: Mutex::new(Instant::now()),
        }
    }
}

/// The bucket of a value: its highest bit and the three bits behind it.
fn bucket(value: u64) -> usize {
    let Some(octave) = value.checked_ilog2().filter(|octave| *octave >= PER_OCTAVE_BITS) else {
        return value as usize;
    };
    let within = (value >> (octave - PER_OCTAVE_BITS)) & ((1 << PER_OCTAVE_BITS) - 1);
    ((octave - PER_OCTAVE_BITS + 1) as usize) << PER_OCTAVE_BITS | within as usize
}

/// The middle of a bucket.
fn middle(bucket: usize) -> f64 {
    let (octave, within) = (bucket >> PER_OCTAVE_BITS, bucket & ((1 << PER_OCTAVE_BITS) - 1));
    if octave == 0 {
        return within as f64;
    }
    let width = (1_u64 << (octave - 1)) as f64;
    let low = ((1 << PER_OCTAVE_BITS) + within) as f64 * width;
    low + (width - 1.0) / 2.0
}

impl Buckets {
    fn add(&self, bucket: usize) {
        if let Some(counter) = self.0.get(bucket) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn clear(&self) {
        self.0
            .iter()
            .for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    fn counts(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// The histogram at one moment.
pub(super) struct Histogram {
    pub(super) sum_seconds: f64,
    pub(super) count: u64,
    /// Upper bound in seconds, and how many are in that bucket alone.
    pub(super) buckets: Vec<(f64, u64)>,
}

impl Latencies {
    pub(super) fn observe(&self, nanoseconds: u64) {
        let bucket = bucket(nanoseconds);
        self.ever.add(bucket);
        self.sum.fetch_add(nanoseconds, Ordering::Relaxed);
        if let Some(recent) = self.recent.get(self.filling.load(Ordering::Relaxed)) {
            recent.add(bucket);
        }
    }

    pub(super) fn histogram(&self) -> Histogram {
        let counts: Vec<u64> = self.ever.counts().collect();
        let below = |bits: u32| -> u64 { counts.iter().take(bucket(1 << bits)).sum() };
        let mut before = 0;
        let mut buckets: Vec<(f64, u64)> = BOUNDS
            .map(|bits| {
                let (all, previous) = (below(bits), before);
                before = all;
                ((1_u64 << bits) as f64 / 1e9, all - previous)
            })
            .collect();
        let count = counts.iter().sum();
        buckets.push((f64::INFINITY, count - before));
        Histogram {
            sum_seconds: self.sum.load(Ordering::Relaxed) as f64 / 1e9,
            count,
            buckets,
        }
    }

    /// The given quantiles of the last one to two minutes, in seconds; not a number while there is nothing.
    pub(super) fn quantiles<const N: usize>(&self, quantiles: [f64; N]) -> [f64; N] {
        self.turn();
        let [one, other] = &self.recent;
        let counts: Vec<u64> = one.counts().zip(other.counts()).map(|(a, b)| a + b).collect();
        let total: u64 = counts.iter().sum();
        quantiles.map(|quantile| {
            let rank = (quantile * total as f64).ceil() as u64;
            let mut seen = 0;
            let found = counts.iter().position(|count| {
                seen += count;
                seen >= rank.max(1)
            });
            found.map_or(f64::NAN, |bucket| middle(bucket) / 1e9)
        })
    }

    /// Starts a new window when the one being filled is old enough.
    fn turn(&self) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let age = since.elapsed();
        if age < WINDOW {
            return;
        }
        let next = 1 - self.filling.load(Ordering::Relaxed);
        if age >= 2 * WINDOW {
            // Nobody asked for so long that what is being filled is old as well.
            self.recent.iter().for_each(Buckets::clear);
        } else if let Some(oldest) = self.recent.get(next) {
            oldest.clear();
        }
        self.filling.store(next, Ordering::Relaxed);
        *since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_a_sixteenth_of_its_bucket_s_middle() {
        for value in
            (0..5000_u64).chain((12..64).flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + 1]))
        {
            let (index, value) = (bucket(value), value as f64);
            assert!(index < BUCKETS);
            assert!(
                (middle(index) - value).abs() <= value / 16.0,
                "{value} is in a bucket around {}",
                middle(index)
            );
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn quantiles_and_histogram_count_the_same() {
        let latencies = Latencies::default();
        assert!(
            latencies
                .quantiles([0.5])
                .iter()
                .all(|quantile| quantile.is_nan())
        );
        (1..=1000).for_each(|n| latencies.observe(n * 1000));
        let [median, high] = latencies.quantiles([0.5, 0.99]);
        assert!((median / 500e-6 - 1.0).abs() < 0.07, "{median}");
        assert!((high / 990e-6 - 1.0).abs() < 0.07, "{high}");
        let histogram = latencies.histogram();
        assert_eq!(histogram.count, 1000);
        assert_eq!(
            histogram.buckets.iter().map(|(_, count)| count).sum::<u64>(),
            1000
        );
        assert!((histogram.sum_seconds - 0.5005).abs() < 1e-9);
        let below_131_us: u64 = histogram
            .buckets
            .iter()
            .take_while(|(bound, _)| *bound < 132e-6)
            .map(|(_, n)| n)
            .sum();
        assert_eq!(below_131_us, 131);
    }
}
