// SPDX-License-Identifier: Apache-2.0
//! What was measured beside zt and of it: as a table for people, and as JSON, of which `zt-peers plot` makes a picture.

use std::fmt::Write as _;

use serde::Serialize;

use crate::machine::Machine;
use crate::report::number;
use crate::samples::{Summary, ratio};

/// What is measured, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Measure {
    Call,
    Processor,
    RoundTrip,
    Bulk,
    Change,
    Memory,
}

impl Measure {
    const ALL: [Self; 6] = [
        Self::Call,
        Self::Processor,
        Self::RoundTrip,
        Self::Bulk,
        Self::Change,
        Self::Memory,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Call => "A connection: opened, a byte through it, closed",
            Self::Processor => "Processor time of a connection, all processes",
            Self::RoundTrip => "A byte there and back",
            Self::Bulk => "Bulk over one connection",
            Self::Change => "One rule changed → another verdict",
            Self::Memory => "Memory of the rules and who enforces them",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Call | Self::Processor | Self::RoundTrip => "µs",
            Self::Bulk => "GB/s",
            Self::Change => "ms",
            Self::Memory => "MiB",
        }
    }
}

/// One contender.
#[derive(Clone, Debug, Serialize)]
struct About {
    name: &'static str,
    /// Which it is, where it is here.
    version: Option<String>,
    /// Why it was not measured, or no further.
    lacks: Option<String>,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
struct Figure {
    measure: Measure,
    rules: usize,
    contender: &'static str,
    summary: Summary,
    /// To unmanaged, the median of the rounds' ratios.
    ratio: Option<f64>,
}

/// What a measure is called.
#[derive(Clone, Debug, Serialize)]
struct Title {
    measure: Measure,
    #[serde(rename = "title")]
    words: &'static str,
    unit: &'static str,
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    machine: Machine,
    quick: bool,
    rules: Vec<usize>,
    measures: Vec<Title>,
    contenders: Vec<About>,
    #[serde(rename = "figures")]
    taken: Vec<Figure>,
    /// What could not be measured, and why.
    failures: Vec<String>,
}

impl Figures {
    pub(super) fn new(machine: Machine, quick: bool, rules: Vec<usize>) -> Self {
        let title = |measure: Measure| Title {
            measure,
            words: measure.title(),
            unit: measure.unit(),
        };
        Self {
            machine,
            quick,
            rules,
            measures: Measure::ALL.map(title).into(),
            contenders: Vec::new(),
            taken: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// A contender that is here.
    pub(super) fn introduce(&mut self, name: &'static str, version: &str) {
        self.contenders.push(About {
            name,
            version: Some(version.to_owned()),
            lacks: None,
        });
    }

    /// One that is not, which is no failure.
    pub(super) fn absent(&mut self, name: &'static str, reason: &str) {
        self.contenders.push(About {
            name,
            version: None,
            lacks: Some(reason.to_owned()),
        });
    }

    /// One that should have been measured, and was not, or is not any more.
    pub(super) fn fail(&mut self, name: &'static str, reason: &str) {
        self.failures.push(format!("{name}: {reason}"));
        if let Some(about) = self.contenders.iter_mut().find(|about| about.name == name) {
            about.lacks = Some(reason.to_owned());
        } else {
            self.absent(name, reason);
        }
    }

    /// Figures of one thing by round, and of the same without anything that decides.
    pub(super) fn add(
        &mut self,
        measure: Measure,
        rules: usize,
        contender: &'static str,
        samples: &[f64],
        unmanaged: Option<&[f64]>,
    ) {
        if let Some(summary) = Summary::of(samples) {
            let ratio = unmanaged.and_then(|unmanaged| ratio(samples, unmanaged));
            self.taken.push(Figure {
                measure,
                rules,
                contender,
                summary,
                ratio,
            });
        }
    }

    /// What could not be measured, and why.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// A block for each measure, a line for each contender, a column for each number of rules.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("{}\n", self.machine);
        if self.machine.is_busy() {
            text.push_str("Others were at work on the machine when this began: the figures are noisy.\n");
        }
        for about in &self.contenders {
            let known = about.version.as_deref().unwrap_or("not measured");
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{}: {known}", about.name);
        }
        for measure in Measure::ALL {
            let mut rows = vec![self.head(measure)];
            rows.extend(self.contenders.iter().map(|about| self.row(measure, about)));
            text.push('\n');
            text.push_str(&aligned(&rows));
        }
        for about in &self.contenders {
            if let Some(reason) = &about.lacks {
                let _ = writeln!(text, "\n{}: {reason}", about.name);
            }
        }
        text
    }

    fn head(&self, measure: Measure) -> Vec<String> {
        let name = format!("{}, {}", measure.title(), measure.unit());
        let sizes = self.rules.iter();
        std::iter::once(name)
            .chain(sizes.map(|rules| format!("{} rules", number(*rules as f64))))
            .collect()
    }

    fn row(&self, measure: Measure, about: &About) -> Vec<String> {
        let cell = |rules: &usize| {
            let figure = self.taken.iter().find(|figure| {
                figure.measure == measure && figure.rules == *rules && figure.contender == about.name
            });
            // A cell is never just empty.
            figure.map_or_else(|| self.gap(about, *rules), Figure::cell)
        };
        std::iter::once(format!("  {}", about.name))
            .chain(self.rules.iter().map(cell))
            .collect()
    }

    /// What stands where there is no figure.
    fn gap(&self, about: &About, rules: usize) -> String {
        let begun = self.taken.iter().any(|figure| figure.rules >= rules);
        match &about.lacks {
            Some(reason) if reason.starts_with("not on this kernel") => "not on this kernel".to_owned(),
            Some(_) => "not measured".to_owned(),
            None if begun => "–".to_owned(),
            None => "not yet".to_owned(),
        }
    }
}

impl Figure {
    fn cell(&self) -> String {
        let Summary {
            median,
            min,
            max,
            samples,
        } = self.summary;
        let mut text = number(median);
        if samples > 1 {
            // Writing into a String cannot fail.
            let _ = write!(text, " ({}–{})", number(min), number(max));
        }
        if let Some(ratio) = self.ratio {
            let _ = write!(text, " {ratio:.3}×");
        }
        text
    }
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            let (before, after) = if column == 0 {
                ("", pad.as_str())
            } else {
                (pad.as_str(), "")
            };
            // Writing into a String cannot fail.
            let _ = write!(line, "{before}{cell}{after}   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_its_ratio_and_a_gap_its_reason() {
        let mut figures = Figures::new(Machine::here(), true, vec![10, 100]);
        figures.introduce("one", "1");
        figures.absent("two", "not on this kernel: no such file");
        figures.add(
            Measure::Call,
            10,
            "one",
            &[30.0, 20.0, 22.0],
            Some(&[10.0, 10.0, 11.0]),
        );
        figures.fail("one", "with 100 rules: a wrong verdict");
        let table = figures.table();
        assert!(table.contains("22 (20–30) 2.000×"), "{table}");
        assert!(table.contains("not measured"), "{table}");
        assert!(table.contains("two: not on this kernel: no such file"), "{table}");
        assert_eq!(figures.failures().len(), 1);
        let row = figures.row(Measure::Call, &figures.contenders[1]);
        assert_eq!(row[1..], ["not on this kernel", "not on this kernel"]);
    }
}
