// SPDX-License-Identifier: Apache-2.0
//! Shows which step runs and how long it took, and adds up what the test binaries report.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::instructions::{self, Measured};

/// What has passed and failed so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: u64,
    failed: u64,
    /// What to show in the end: steps and binaries that failed, and tests that did, by name.
    failures: Vec<String>,
    measured: Vec<Measured>,
    records_instructions: bool,
}

impl Report {
    /// An empty one. Whether tests are to report instructions that are taken down in the end, rather than compare them.
    pub(crate) fn new(records_instructions: bool) -> Self {
        Self {
            records_instructions,
            ..Self::default()
        }
    }

    /// See [`Self::new`].
    pub(crate) fn records_instructions(&self) -> bool {
        self.records_instructions
    }

    /// Notes a failure that no test reports.
    pub(crate) fn fail(&mut self, what: String) {
        println!("error: {what}");
        self.failed += 1;
        self.failures.push(what);
    }

    /// Takes down what the verifier walked, where that was asked for.
    pub(crate) fn record(&mut self) -> Result<()> {
        if self.records_instructions {
            instructions::record(&self.measured)?;
        }
        Ok(())
    }

    /// Runs a step between its heading and its time. A step that fails counts as one failure, and the next one follows.
    pub(crate) fn step(&mut self, name: &str, run: impl FnOnce(&mut Self) -> Result<()>) {
        println!("\n== {name}");
        let start = Instant::now();
        let before = self.failed;
        if let Err(error) = run(self) {
            println!("error: {error:#}");
            self.failed += 1;
            self.failures.push(format!("{name}: {error:#}"));
        }
        let outcome = if self.failed == before { "ok" } else { "FAILED" };
        println!("== {name}: {outcome}, {:.1} s", start.elapsed().as_secs_f64());
    }

    /// Runs a command whose output is that of test binaries, and shows and counts it.
    pub(crate) fn tests(&mut self, mut command: Command, name: &str) -> Result<()> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        let stdout = child.stdout.take().context("the output is piped")?;
        let before = self.failed;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            self.read("", &line);
        }
        let status = child.wait()?;
        // A crash, or a compile error: no test says that it failed.
        if !status.success() && self.failed == before {
            bail!("{name} ended with {status}");
        }
        Ok(())
    }

    /// Counts what a line of a test binary says; `place` is where it ran.
    pub(crate) fn read(&mut self, place: &str, line: &str) {
        if let Some((passed, failed)) = totals(line) {
            self.passed += passed;
            self.failed += failed;
        } else if let Some(measured) = Measured::read(line) {
            self.measured.push(measured);
        } else if let Some(test) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(format!("{place}{test}"));
        }
    }

    /// Prints what failed, then the closing line; whether all is well.
    pub(crate) fn finish(self) -> bool {
        println!();
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0
    }
}

/// The counts in a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
fn totals(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| {
        counts
            .split("; ")
            .find_map(|part| part.strip_suffix(word)?.trim().parse().ok())
    };
    Some((count("passed")?, count("failed")?))
}

#[cfg(test)]
mod tests {
    use super::totals;

    #[test]
    fn reads_the_counts_of_a_result_line() {
        let line =
            "test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 2s";
        assert_eq!(totals(line), Some((10, 2)));
        assert_eq!(totals("test a_test ... ok"), None);
        assert_eq!(totals("test result: "), None);
    }
}
