// SPDX-License-Identifier: Apache-2.0
//! What was measured, as a table for people and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::machine::Machine;
use crate::samples::{Summary, ratio};

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Metric {
    /// What was measured.
    pub(crate) name: String,
    /// Of the values.
    pub(crate) unit: &'static str,
    /// Without zt, where that can be measured.
    pub(crate) unmanaged: Option<Summary>,
    /// With it.
    pub(crate) managed: Option<Summary>,
    /// Managed ÷ unmanaged, the median over rounds.
    pub(crate) ratio: Option<f64>,
    /// What it shall be.
    pub(crate) target: Option<Target>,
    /// Whether it is.
    pub(crate) met: Option<bool>,
}

/// A bound for a ratio or a value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// The ratio is at most this.
    RatioAtMost(f64),
    /// The ratio is at least this.
    RatioAtLeast(f64),
    /// The managed value's median is at most this.
    AtMost(f64),
    /// The managed value's median is at least this.
    AtLeast(f64),
}

impl Target {
    fn holds(self, metric: &Metric) -> Option<bool> {
        let median = metric.managed.map(|summary| summary.median);
        Some(match self {
            Self::RatioAtMost(limit) => metric.ratio? <= limit,
            Self::RatioAtLeast(limit) => metric.ratio? >= limit,
            Self::AtMost(limit) => median? <= limit,
            Self::AtLeast(limit) => median? >= limit,
        })
    }

    fn text(self) -> String {
        match self {
            Self::RatioAtMost(limit) => format!("≤ {limit:.2}×"),
            Self::RatioAtLeast(limit) => format!("≥ {limit:.2}×"),
            Self::AtMost(limit) => format!("≤ {}", number(limit)),
            Self::AtLeast(limit) => format!("≥ {}", number(limit)),
        }
    }
}

impl Metric {
    /// A value that has no counterpart without zt.
    pub(crate) fn value(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self::summed(name, unit, Some(Summary::one(value)))
    }

    /// Many measurements that have no counterpart without zt.
    pub(crate) fn summed(name: impl Into<String>, unit: &'static str, managed: Option<Summary>) -> Self {
        Self {
            name: name.into(),
            unit,
            unmanaged: None,
            managed,
            ratio: None,
            target: None,
            met: None,
        }
    }

    /// Two things that were measured in turn, of which each round gave one measurement.
    pub(crate) fn compared(
        name: impl Into<String>,
        unit: &'static str,
        unmanaged: &[f64],
        managed: &[f64],
    ) -> Self {
        Self {
            unmanaged: Summary::of(unmanaged),
            ratio: ratio(managed, unmanaged),
            ..Self::summed(name, unit, Summary::of(managed))
        }
    }

    /// Adds what it shall be.
    #[must_use]
    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self.met = target.holds(&self);
        self
    }

    fn cells(&self) -> [String; 6] {
        let value = |summary: Option<Summary>| {
            summary.map_or_else(String::new, |summary| {
                let median = number(summary.median);
                if summary.samples == 1 {
                    format!("{median} {}", self.unit)
                } else {
                    format!(
                        "{median} ({}–{}) {}",
                        number(summary.min),
                        number(summary.max),
                        self.unit
                    )
                }
            })
        };
        [
            self.name.clone(),
            value(self.unmanaged),
            value(self.managed),
            self.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}")),
            self.target.map_or_else(String::new, Target::text),
            self.met
                .map_or("", |met| if met { "yes" } else { "NO" })
                .to_owned(),
        ]
    }
}

/// One of the benchmarks.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Part {
    /// As on the command line.
    pub(crate) name: String,
    /// Load averages when it began.
    pub(crate) load: String,
    /// How long it took.
    pub(crate) seconds: f64,
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Where it ran.
    pub(crate) machine: Machine,
    /// Whether it was a short run.
    pub(crate) quick: bool,
    /// What was run, in order.
    pub(crate) parts: Vec<Part>,
    /// What was measured.
    pub(crate) metrics: Vec<Metric>,
    /// What could not be measured, and why.
    pub(crate) failures: Vec<String>,
}

impl Report {
    /// The table.
    pub(crate) fn table(&self) -> String {
        const HEAD: [&str; 6] = ["metric", "unmanaged", "managed", "ratio", "target", "met?"];
        let mut rows = vec![HEAD.map(str::to_owned)];
        rows.extend(self.metrics.iter().map(Metric::cells));
        let width = |column: usize| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: [usize; 6] = std::array::from_fn(width);
        let mut text = format!("{}\n", self.machine);
        if self.machine.is_busy() {
            text.push_str("Others were at work on the machine when this began: the figures are noisy.\n");
        }
        text.push('\n');
        for row in &rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                let pad = " ".repeat(width - cell.chars().count());
                let numeric = (1..=3).contains(&column);
                let (before, after) = if numeric {
                    (pad.as_str(), "")
                } else {
                    ("", pad.as_str())
                };
                // Writing into a String cannot fail.
                let _ = write!(line, "{before}{cell}{after}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        for failure in &self.failures {
            let _ = writeln!(text, "not measured: {failure}");
        }
        text
    }
}

/// Three significant digits, with separators from a thousand on.
pub(crate) fn number(value: f64) -> String {
    if value.abs() >= 1000.0 {
        let digits = format!("{value:.0}");
        let mut text = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) && !text.ends_with('-') {
                text.push(',');
            }
            text.push(digit);
        }
        text
    } else if value.abs() >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// Figures as JSON.
pub(crate) fn json(figures: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(figures)?)
}

/// Writes figures to a file, if there is one.
pub(crate) fn write(figures: &impl Serialize, path: Option<&Path>) -> Result<()> {
    match path {
        Some(path) => {
            fs::write(path, json(figures)?).with_context(|| format!("cannot write {}", path.display()))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let texts = [1_234_567.0, 999.6, 45.67, 1.234, 0.5, 20.0].map(number);
        assert_eq!(texts, ["1,234,567", "1000", "45.7", "1.23", "0.50", "20"]);
    }

    #[test]
    fn targets_are_of_the_ratio_or_of_the_value() {
        let metric = Metric::compared("x", "µs", &[10.0], &[10.2]);
        assert_eq!(metric.clone().target(Target::RatioAtMost(1.03)).met, Some(true));
        assert_eq!(metric.clone().target(Target::AtMost(10.0)).met, Some(false));
        assert_eq!(
            Metric::value("x", "µs", 1.0)
                .target(Target::RatioAtLeast(1.0))
                .met,
            None
        );
    }
}
