// SPDX-License-Identifier: Apache-2.0
//! The machine that was measured.

use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::Serialize;

/// What a reader of the numbers must know of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    cpus: usize,
    memory_gib: f64,
    /// Load averages when the run began: high ones make numbers noisy.
    load: String,
    /// Megabytes that one core hashes in a second (SipHash-1-3): what another run's figures are compared by, as a shared
    /// machine may be three times slower on another day.
    speed: u64,
    version: &'static str,
}

impl Machine {
    /// This one, now. What cannot be read stays empty.
    pub(crate) fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line
                .and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned());
            value.unwrap_or_default()
        };
        let kibibytes = field(&read("/proc/meminfo"), "MemTotal");
        let kibibytes: f64 = kibibytes
            .split(' ')
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or(0.0);
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kibibytes / 1024.0 / 1024.0,
            load: load(),
            speed: speed(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// Whether others work on it: within the last minute a quarter of a CPU was asked for.
    pub(crate) fn is_busy(&self) -> bool {
        let last = self
            .load
            .split(' ')
            .next()
            .and_then(|load| load.parse::<f64>().ok());
        last.is_none_or(|last| last > 0.25)
    }

    /// The CPU for what is measured, and the one for the agent.
    pub(crate) fn places(&self) -> (usize, usize) {
        (self.cpus - 1, 0)
    }
}

/// The best of a few attempts, in megabytes a second.
fn speed() -> u64 {
    let bytes = vec![0x5A; 4_000_000];
    let attempt = || {
        let begun = Instant::now();
        let mut hasher = DefaultHasher::new();
        hasher.write(black_box(&bytes));
        black_box(hasher.finish());
        begun.elapsed()
    };
    let best = (0..10).map(|_| attempt()).min().unwrap_or(Duration::MAX);
    (bytes.len() as f64 / best.as_secs_f64() / 1e6) as u64
}

/// Load averages of one, five and fifteen minutes, now.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "zt {} on Linux {}, {} × {}, {:.0} GiB, load {}; one core hashes {} MB/s",
            self.version, self.kernel, self.cpus, self.processor, self.memory_gib, self.load, self.speed
        )
    }
}
