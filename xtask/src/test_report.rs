// SPDX-License-Identifier: Apache-2.0
//! Shows which step runs and how long it took, and adds up what the test binaries report.

mod failures;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use self::failures::{Failed, Said};
use crate::instructions::{self, Measured, NOT_COMPARED};

/// The exit code of `timeout` for what it stopped.
const STOPPED: i32 = 124;

/// So many failed tests of a run beside others are tried again: more are no accident.
const MOST_AGAIN: usize = 3;
/// What the line begins with in which a test says what it could not try, because the kernel has no such thing.
const NOT_HERE: &str = "not on this kernel: ";

/// What has passed and failed so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    passed: u64,
    failed: u64,
    /// Tests that were there and were not run, because they say so themselves.
    ignored: u64,
    /// Whether tests were asked for, and not checks alone.
    has_tests: bool,
    /// What to show in the end: steps and binaries that failed, and tests that did, by name.
    failures: Vec<String>,
    /// The tests among them, and how each is run alone.
    failed_tests: Vec<Failed>,
    /// What binaries said of tests that failed.
    said: Vec<Said>,
    /// What else to show in the end: what was left out or not compared, and is not counted as passed.
    notes: Vec<String>,
    measured: Vec<Measured>,
    records_instructions: bool,
    /// What begins each line of what runs beside others.
    lane: Option<&'static str>,
}

impl Report {
    /// An empty one. Whether tests are to report instructions that are taken down in the end, rather than compare them.
    pub(crate) fn new(records_instructions: bool) -> Self {
        Self {
            records_instructions,
            ..Self::default()
        }
    }

    /// Another one, of what runs beside others. It is to be [joined](Self::join).
    pub(crate) fn lane(&self, name: &'static str) -> Self {
        Self {
            lane: Some(name),
            ..Self::new(self.records_instructions)
        }
    }

    /// Adds what another one has.
    pub(crate) fn join(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.has_tests |= other.has_tests;
        self.failures.extend(other.failures);
        self.failed_tests.extend(other.failed_tests);
        self.said.extend(other.said);
        self.notes.extend(other.notes);
        self.measured.extend(other.measured);
    }

    fn say(&self, line: &str) {
        match self.lane {
            Some(lane) => println!("{lane} | {line}"),
            None => println!("{line}"),
        }
    }

    /// See [`Self::new`].
    pub(crate) fn records_instructions(&self) -> bool {
        self.records_instructions
    }

    /// Notes a failure that no test reports.
    pub(crate) fn fail(&mut self, what: String) {
        self.say(&format!("error: {what}"));
        self.failed += 1;
        self.failures.push(what);
    }

    /// Notes what was not done and counts neither way. It is said again in the end.
    pub(crate) fn note(&mut self, what: String) {
        self.say(&format!("note: {what}"));
        self.notes.push(what);
    }

    /// What the verifier of this kernel, such as `6.1`, walked in this run.
    pub(crate) fn measured(&self, kernel: &str) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.is_of(kernel))
    }

    /// Takes down what the verifier walked, where that was asked for and everything went well.
    pub(crate) fn record(&mut self) -> Result<()> {
        if self.records_instructions {
            // Half of what is measured would drop the other half.
            ensure!(
                self.is_good(),
                "nothing is recorded after a failure: what was recorded before stays"
            );
            for dropped in instructions::record(&self.measured)? {
                self.note(dropped);
            }
        }
        Ok(())
    }

    /// Runs a step between its heading and its time. A step that fails counts as one failure, and the next one follows.
    pub(crate) fn step(&mut self, name: &str, run: impl FnOnce(&mut Self) -> Result<()>) {
        if self.lane.is_none() {
            println!();
        }
        self.say(&format!("== {name}"));
        let start = Instant::now();
        let before = self.failed;
        if let Err(error) = run(self) {
            self.say(&format!("error: {error:#}"));
            self.failed += 1;
            self.failures.push(format!("{name}: {error:#}"));
        }
        let outcome = if self.failed == before { "ok" } else { "FAILED" };
        let seconds = start.elapsed().as_secs_f64();
        self.say(&format!("== {name}: {outcome}, {seconds:.1} s"));
    }

    /// Runs a command whose output is that of test binaries, and shows and counts it.
    pub(crate) fn tests(&mut self, mut command: Command, name: &str) -> Result<()> {
        self.expect_tests();
        self.say(&format!("running {name}"));
        let (known, mut said) = (self.failures.len(), Said::of(name));
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        let stdout = child.stdout.take().context("the output is piped")?;
        let before = self.failed;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            self.say(&line);
            self.read("", &line);
            said.read(&line);
        }
        let status = child.wait()?;
        let failed = self.failures[known..].iter();
        self.failed_tests
            .extend(failed.map(|test| Failed::of(test, &command)));
        self.said.extend(said.is_something().then_some(said));
        ensure!(
            status.code() != Some(STOPPED),
            "{name} did not end in time and was stopped: what it says last is above"
        );
        // A crash, or a compile error: no test says that it failed.
        if !status.success() && self.failed == before {
            bail!("{name} ended with {status}");
        }
        Ok(())
    }

    /// From here on a run in which no test ran is no good one.
    pub(crate) fn expect_tests(&mut self) {
        self.has_tests = true;
    }

    /// Counts what a line of a test binary says; `place` is where it ran.
    pub(crate) fn read(&mut self, place: &str, line: &str) {
        if let Some(totals) = totals(line) {
            self.passed += totals.passed;
            self.failed += totals.failed;
            self.ignored += totals.ignored;
        } else if line.starts_with(NOT_COMPARED) || line.starts_with(NOT_HERE) {
            self.notes.push(format!("{place}{line}"));
        } else if let Some(measured) = Measured::read(line) {
            self.measured.push(measured);
        } else if let Some(test) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(format!("{place}{test}"));
        }
    }

    /// Runs the tests that failed beside others once more, each alone, where they are few.
    ///
    /// One that passes then counts as passed, and a note says what it did: two lanes on a small machine make waits long, and a
    /// test that minds is to be mended, but is no failure of what it tests.
    pub(crate) fn try_again(&mut self) {
        let failed = std::mem::take(&mut self.failed_tests);
        if failed.is_empty() || failed.len() > MOST_AGAIN {
            return;
        }
        for test in failed {
            let mut alone = Self::new(false);
            alone.step(&format!("{} again, alone", test.name), |report| {
                report.tests(test.alone(), &test.name)
            });
            if alone.failed == 0 && alone.passed == 1 {
                self.failed -= 1;
                self.passed += 1;
                self.failures.retain(|failure| *failure != test.name);
                self.notes.push(format!(
                    "UNSTABLE: {} failed beside others and passed alone",
                    test.name
                ));
            } else {
                self.said.extend(alone.said);
            }
        }
    }

    /// Prints what was not done and what failed, then the closing line; whether all is well.
    pub(crate) fn finish(mut self) -> bool {
        println!();
        for said in &self.said {
            said.show();
        }
        if self.has_tests && self.failed == 0 && self.passed == 0 {
            self.fail("no test was run: none has such a name".to_owned());
        }
        if self.ignored > 0 {
            self.notes.push(format!(
                "{} tests are not run unless they are asked for",
                self.ignored
            ));
        }
        for note in &self.notes {
            println!("note: {note}");
        }
        for failure in &self.failures {
            println!("failed: {failure}");
        }
        // A test may say that it failed, and its binary never get to its totals.
        let failed = self.failed.max(self.failures.len() as u64);
        println!("{} passed, {failed} failed", self.passed);
        failed == 0
    }

    fn is_good(&self) -> bool {
        self.failed == 0 && self.failures.is_empty()
    }
}

/// What a test binary says in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

/// The counts in a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
pub(crate) fn totals(line: &str) -> Option<Totals> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| {
        counts
            .split("; ")
            .find_map(|part| part.strip_suffix(word)?.trim().parse().ok())
    };
    Some(Totals {
        passed: count("passed")?,
        failed: count("failed")?,
        ignored: count("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Report {
        let mut report = Report::new(false);
        report.expect_tests();
        for line in lines {
            report.read("", line);
        }
        report
    }

    #[test]
    fn what_failed_before_the_totals_came_has_failed() {
        let passed = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        assert!(read(&["test one ... ok", passed]).finish());
        assert!(!read(&["test one ... ok", passed, "test two ... FAILED"]).finish());
    }

    /// A command that is a test binary: fails where nobody asks for one test alone, and then `alone` decides.
    fn binary(alone: &str) -> Command {
        let script = format!(
            "if [ $# = 0 ]; then printf 'test one ... FAILED\\nfailures:\\n\\n---- one stdout ----\\nwhy\\n\\nfailures:\\n    one\\n\\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\\n'; exit 101; fi; \
             [ \"$*\" = '--exact one' ] && {alone}"
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, "binary"]);
        command
    }

    #[test]
    fn what_passes_alone_has_passed_and_is_told_of() {
        let passes = "echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out'";
        let mut report = Report::new(false);
        report.tests(binary(passes), "a binary").expect("it ran");
        assert_eq!((report.passed, report.failed), (0, 1));
        report.try_again();
        assert_eq!((report.passed, report.failed), (1, 0));
        assert_eq!(
            report.notes,
            ["UNSTABLE: one failed beside others and passed alone"]
        );
        assert!(report.finish());
    }

    #[test]
    fn what_does_not_pass_alone_has_failed() {
        let none = "echo 'test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out'";
        for alone in ["exit 101", none] {
            let mut report = Report::new(false);
            report.tests(binary(alone), "a binary").expect("it ran");
            report.try_again();
            assert_eq!((report.passed, report.failed), (0, 1), "{alone}");
            assert!(!report.finish());
        }
    }

    #[test]
    fn many_are_no_accident() {
        let passes = "echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out'";
        let mut report = Report::new(false);
        for _ in 0..=MOST_AGAIN {
            report.tests(binary(passes), "a binary").expect("it ran");
        }
        report.try_again();
        assert_eq!(report.failed, MOST_AGAIN as u64 + 1);
    }

    #[test]
    fn a_run_without_a_test_is_no_good_one() {
        let none = "test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out";
        assert!(!read(&[none]).finish());
        assert!(!read(&[]).finish());
        // Checks alone are one.
        assert!(Report::new(false).finish());
    }

    #[test]
    fn what_had_to_be_stopped_is_said_to_have_been() {
        let mut stopped = Command::new("timeout");
        stopped.args(["0.1", "sleep", "60"]);
        let error = Report::new(false)
            .tests(stopped, "slow")
            .expect_err("it was stopped");
        assert!(error.to_string().contains("slow did not end in time"), "{error}");
    }

    #[test]
    fn nothing_is_recorded_after_a_failure() {
        let mut report = Report::new(true);
        report.read("", "test one ... FAILED");
        let error = report.record().expect_err("a test failed");
        assert!(error.to_string().contains("after a failure"), "{error}");
    }

    #[test]
    fn reads_the_counts_of_a_result_line() {
        let line =
            "test result: FAILED. 10 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 2s";
        let totals_of = |passed, failed, ignored| Totals {
            passed,
            failed,
            ignored,
        };
        assert_eq!(totals(line), Some(totals_of(10, 2, 1)));
        assert_eq!(totals("test a_test ... ok"), None);
        assert_eq!(totals("test result: "), None);
    }
}
