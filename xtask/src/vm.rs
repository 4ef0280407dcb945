// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask test vm`: core kernel tests on the older kernels that zt supports, each in a guest without the help of hardware.

mod archive;
mod guest;
mod kernels;
mod suite;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, anyhow};

use self::guest::{Said, Userland};
use self::kernels::{Kernel, SERIES};
use self::suite::{SUITE, Selection};
use crate::test_report::Report;
use crate::{instructions, workspace};

/// What programs of the workspace the tests start.
pub(crate) const PROGRAMS: [&str; 2] = ["zt-agent", "zt-probe"];

/// The names of the test binaries that it runs.
pub(crate) fn tests() -> Vec<&'static str> {
    SUITE.iter().map(|selection| selection.binary).collect()
}

/// Downloads the kernels that are not there.
pub(crate) fn obtain() -> Result<()> {
    kernels().map(drop)
}

fn kernels() -> Result<Vec<Kernel>> {
    SERIES.into_iter().map(kernels::obtain).collect()
}

/// Runs the suite on every kernel at the same time. `name_of` is the name of a test binary; `arguments` replace the selection of
/// tests.
pub(crate) fn run(
    report: &mut Report,
    binaries: &[PathBuf],
    name_of: &dyn Fn(&Path) -> String,
    arguments: &[String],
) -> Result<()> {
    let kernels = kernels()?;
    let mut selections: Vec<(&Selection, &Path)> = Vec::new();
    for selection in &SUITE {
        let binary = binaries.iter().find(|binary| name_of(binary) == selection.binary);
        let binary = binary.with_context(|| format!("there is no test {}", selection.binary))?;
        selections.push((selection, binary));
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
                let list: Vec<String> = of_kernel(kernel, &selections)
                    .map(|(selection, binary)| guest::line(selection, binary, arguments))
                    .collect();
                let heard = |line: &str| println!("{:>4} | {line}", kernel.series.name);
                println!(
                    "{:>4} | boots {}",
                    kernel.series.name,
                    kernel.package().unwrap_or_default()
                );
                scope.spawn(move || guest::run(kernel, userland, &list, directory, heard))
            })
            .collect();
        let ended = guests.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .map(|ended| ended.unwrap_or_else(|_| Err(anyhow!("the thread of a guest panicked"))))
            .collect()
    });
    for (kernel, said) in kernels.iter().zip(said) {
        let selections: Vec<_> = of_kernel(kernel, &selections).collect();
        judge(
            report,
            kernel.series.name,
            &said?,
            &selections,
            arguments.is_empty(),
        );
    }
    Ok(())
}

/// What is tried on a kernel.
fn of_kernel<'s, 'p>(
    kernel: &Kernel,
    selections: &'s [(&'s Selection, &'p Path)],
) -> impl Iterator<Item = (&'s Selection, &'p Path)> {
    let handshakes = kernel.series.handshakes;
    let all = selections.iter().copied();
    all.filter(move |(selection, _)| handshakes || !selection.handshakes)
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
    for (selection, binary) in selections {
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        let mut lines = said
            .lines
            .iter()
            .skip_while(|line| **line != format!("guest: begin {name}"));
        let Some(_) = lines.next() else {
            report.fail(format!("{place}{} did not run", selection.binary));
            continue;
        };
        let end = format!("guest: end {name} ");
        let ran: Vec<&String> = lines.clone().take_while(|line| !line.starts_with(&end)).collect();
        let status = lines.find_map(|line| line.strip_prefix(&*end));
        let outcome = |test: &str| {
            let before = format!("test {test} ... ");
            ran.iter()
                .find_map(|line| line.strip_prefix(&*before).map(str::to_owned))
        };
        let failed = ran.iter().any(|line| line.ends_with(" ... FAILED"));
        if status != Some("0") && !failed {
            let status = status.unwrap_or("none");
            report.fail(format!("{place}{} ended with status {status}", selection.binary));
        } else if all {
            for test in selection.tests.iter().filter(|test| outcome(test).is_none()) {
                report.fail(format!("{place}{}: there is no test {test}", selection.binary));
            }
        }
    }
    if all && !report.records_instructions() && !instructions::is_recorded(series) {
        report.fail(format!(
            "{place}the instructions of its programs are not recorded: `cargo xtask test vm --record-instructions`"
        ));
    }
}
