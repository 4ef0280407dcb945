// SPDX-License-Identifier: Apache-2.0
//! How long new cgroups are nobody, by the source that named them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;

use super::Metrics;
use super::exposition::Writer;

/// Upper bounds in seconds. File and Kubernetes are to be within 20 ms of what they are told, SPIRE within a round trip to its agent.
const BOUNDS: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

#[derive(Clone, Debug, Default)]
struct Histogram {
    sum: f64,
    /// How many are in each bucket alone, and beyond the last one.
    counts: [u64; BOUNDS.len() + 1],
}

/// Histograms by source.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<BTreeMap<&'static str, Histogram>>);

impl Waits {
    /// There is such a source: it has a sample from now on.
    pub(super) fn expect(&self, source: &'static str) {
        self.lock().entry(source).or_default();
    }

    pub(super) fn observe(&self, source: &'static str, seconds: f64) {
        let mut all = self.lock();
        let histogram = all.entry(source).or_default();
        histogram.sum += seconds;
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(count) = histogram.counts.get_mut(bucket) {
            *count += 1;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Histogram>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn waits(writer: &mut Writer<'_>, metrics: &Metrics) -> fmt::Result {
    let all = metrics.waits.lock().clone();
    if all.is_empty() {
        return Ok(());
    }
    let mut encoder = writer.0.encode_descriptor(
        "zt_identity_wait_seconds",
        "Time from a new cgroup to the kernel's knowing who is in it, by the source that said so; who is in another one that is known is not counted",
        None,
        MetricType::Histogram,
    )?;
    for (source, histogram) in all {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(histogram.counts).collect();
        let count = histogram.counts.iter().sum();
        encoder
            .encode_family(&[("source", source)])?
            .encode_histogram::<NoLabelSet>(histogram.sum, count, &buckets, None)?;
    }
    Ok(())
}
