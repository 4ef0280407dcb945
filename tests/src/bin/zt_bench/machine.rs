// SPDX-License-Identifier: Apache-2.0
//! The machine that was measured.

use std::fmt;
use std::fs;

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

/// Load averages of one, five and fifteen minutes, now.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "zt {} on Linux {}, {} × {}, {:.0} GiB, load {}",
            self.version, self.kernel, self.cpus, self.processor, self.memory_gib, self.load
        )
    }
}
