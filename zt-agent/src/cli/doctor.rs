// SPDX-License-Identifier: Apache-2.0
//! `zt-agent doctor`.

use std::io::{self, IsTerminal as _};

use clap::Args;

use super::exit::{Exit, Failure};
use super::output::{Format, Output, Tone, colourful, json, line, toned};
use super::run::RunArgs;
use super::table::printable;
use crate::doctor::{self, Finding, Patient, Report, Status};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 nothing has failed, 1 something has; with --strict also where there are warnings. No agent has \
    to run; run this as root, where the agent runs. Of the kernel everything is tried, on objects of its own that nobody else sees."
)]
pub struct DoctorArgs {
    /// Take warnings for failures
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    output: Output,
    /// What is looked at follows from the configuration.
    #[command(flatten)]
    run: RunArgs,
}

pub(super) async fn doctor(arguments: &DoctorArgs) -> Result<Exit, Failure> {
    let patient = Patient {
        file: arguments.run.config.clone(),
        loaded: arguments.run.load(),
    };
    let report = doctor::examine(&patient, &progress).await;
    match arguments.output.format {
        Format::Json => json(&report)?,
        Format::Table => render(&report, colourful())
            .iter()
            .try_for_each(|text| line(text))?,
    }
    let fails = report.counts.failed > 0 || (arguments.strict && report.counts.warning > 0);
    Ok(if fails { Exit::Failed } else { Exit::Done })
}

/// Says on a terminal what is being done.
fn progress(what: &str) {
    if io::stderr().is_terminal() {
        eprintln!("{what} ...");
    }
}

/// A line for each finding, its remedy below it, and a sum.
pub(super) fn render(report: &Report, colour: bool) -> Vec<String> {
    let status_width = Status::NotApplicable.words().len();
    let checks = report.findings.iter().map(|finding| finding.check.len());
    let check_width = checks.max().unwrap_or_default();
    let mut lines = Vec::new();
    for finding in &report.findings {
        let Finding {
            check,
            status,
            found,
            remedy,
        } = finding;
        // Padded first: colour has no width.
        let words = toned(
            &format!("{:status_width$}", status.words()),
            tone(*status),
            colour,
        );
        lines.push(format!("{words}  {check:check_width$}  {}", one_line(found)));
        if let Some(remedy) = remedy {
            let indent = " ".repeat(status_width + check_width + 4);
            lines.push(format!("{indent}→ {}", one_line(remedy)));
        }
    }
    let counts = report.counts;
    lines.push(String::new());
    lines.push(format!(
        "{} ok, {}, {} failed, {} not applicable",
        counts.ok,
        match counts.warning {
            1 => "1 warning".to_owned(),
            count => format!("{count} warnings"),
        },
        counts.failed,
        counts.not_applicable
    ));
    lines
}

fn one_line(text: &str) -> String {
    printable(&text.replace('\n', "; "))
}

const fn tone(status: Status) -> Tone {
    match status {
        Status::Ok => Tone::Good,
        Status::Warning => Tone::Caution,
        Status::Failed => Tone::Bad,
        Status::NotApplicable => Tone::Faint,
    }
}
