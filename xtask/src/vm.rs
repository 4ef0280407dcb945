// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask test vm`: core kernel tests on the older kernels that zt supports, each in a guest without the help of hardware.

mod archive;
mod guest;
mod judge;
mod kernels;
mod suite;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, anyhow};

pub(crate) use self::guest::PROGRAMS as INSIDE;
use self::guest::{BINARY_SECONDS, Said, Userland};
use self::kernels::{Kernel, SERIES};
use self::suite::{SUITE, Selection};
use crate::instructions::{Known, Measured};
use crate::test::Binary;
use crate::test_report::Report;
use crate::workspace;

/// What programs of the workspace the tests start.
pub(crate) const PROGRAMS: [&str; 2] = ["zt-agent", "zt-probe"];

/// The names of the test binaries that it runs.
pub(crate) fn tests() -> Vec<&'static str> {
    SUITE.iter().map(|selection| selection.binary).collect()
}

/// How the guest's first process begins a line about what it could not prepare.
const CANNOT: &str = "guest: cannot ";

/// Runs the suite on every kernel at the same time. `arguments` replace the selection of tests.
pub(crate) fn run(report: &mut Report, built: &[Binary], arguments: &[String]) -> Result<()> {
    report.expect_tests();
    let mut kernels: Vec<Kernel> = Vec::new();
    for series in SERIES {
        match kernels::obtain(series) {
            Ok(kernel) => {
                if let Some(wanted) = kernel.stands_for() {
                    let package = kernel.package()?;
                    report.note(format!(
                        "NOT TESTED with {wanted}, which is no longer to be had: {package} stands for it"
                    ));
                }
                kernels.push(kernel);
            }
            // The other one says what it says all the same.
            Err(error) => report.fail(format!("Linux {}: {error:#}", series.name)),
        }
    }
    let mut selections: Vec<(&Selection, &Path)> = Vec::new();
    for selection in &SUITE {
        let binary = built.iter().find(|binary| binary.name == selection.binary);
        let binary = binary.with_context(|| format!("there is no test {}", selection.binary))?;
        selections.push((selection, &binary.path));
    }
    let directory = workspace::target()?.join("vm");
    fs::create_dir_all(&directory)?;
    let mut built: Vec<PathBuf> = selections
        .iter()
        .map(|(_, binary)| binary.to_path_buf())
        .collect();
    let profile = built[0]
        .ancestors()
        .nth(2)
        .context("a test is in a profile's directory")?;
    let programs: Vec<PathBuf> = PROGRAMS.iter().map(|program| profile.join(program)).collect();
    built.extend(programs);
    let userland = Userland::gather(&built, report.records_instructions())?;
    let said: Vec<Result<Said>> = thread::scope(|scope| {
        let guests: Vec<_> = kernels
            .iter()
            .map(|kernel| {
                let (userland, directory) = (&userland, &directory);
                let list: Vec<String> = selections
                    .iter()
                    .map(|(selection, binary)| guest::line(selection, binary, arguments))
                    .collect();
                let heard = |line: &str| {
                    // Whoever reads this may have gone. The guest is ended in order all the same.
                    let _ = writeln!(io::stdout(), "{:>4} | {line}", kernel.series.name);
                };
                heard(&format!("boots {}", kernel.package().unwrap_or_default()));
                scope.spawn(move || guest::run(kernel, userland, &list, directory, heard))
            })
            .collect();
        let ended = guests.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .map(|ended| ended.unwrap_or_else(|_| Err(anyhow!("the thread of a guest panicked"))))
            .collect()
    });
    for (kernel, said) in kernels.iter().zip(said) {
        let series = kernel.series.name;
        match said {
            Ok(said) => {
                let release = format!("guest: kernel {}", kernel.release()?);
                if !said.lines.contains(&release) {
                    report.fail(format!("Linux {series}: no `{release}`: another kernel ran"));
                }
                judge(report, series, &said, &selections, arguments.is_empty());
            }
            Err(error) => report.fail(format!("Linux {series}: {error:#}")),
        }
    }
    Ok(())
}

/// Counts what a guest said. Tests that were to run and did not have failed.
fn judge(report: &mut Report, series: &str, said: &Said, selections: &[(&Selection, &Path)], all: bool) {
    let place = format!("Linux {series}: ");
    for line in &said.lines {
        report.read(&place, line);
    }
    if let Some(problem) = &said.problem {
        report.fail(format!("{place}{problem}"));
    }
    // Without what it lacks, tests may pass that test nothing.
    for line in said.lines.iter().filter(|line| line.starts_with(CANNOT)) {
        report.fail(format!("{place}{line}"));
    }
    for (selection, binary) in selections {
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        let wanted = if all { selection.tests } else { &[] };
        for problem in judge::problems(&said.lines, &name, wanted, BINARY_SECONDS) {
            report.fail(format!("{place}{}: {problem}", selection.binary));
        }
    }
    if report.records_instructions() {
        return;
    }
    // What other tools than this machine's made is recorded as well: the test says that it compares less closely.
    let known = report.measured(series).map(Measured::is_recorded);
    let lacks = match known {
        None => "not measured",
        Some(Known::Not) => "not recorded: `cargo xtask test kernel vm --record-instructions`",
        Some(Known::OfOthers | Known::OfThese) => return,
    };
    if all {
        report.fail(format!("{place}the instructions of its programs are {lacks}"));
    }
}
