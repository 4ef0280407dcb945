// SPDX-License-Identifier: Apache-2.0
//! `zt-agent sysdump`.

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::doctor::render;
use super::exit::{Exit, Failure};
use super::output::{Format, Output, json, line};
use super::run::RunArgs;
use crate::audit::clock;
use crate::config::Config;
use crate::doctor::{Patient, Report};
use crate::sysdump::{self, Manifest, Order};

/// What stands for standard output.
const STANDARD_OUTPUT: &str = "-";

/// Arguments of `sysdump`.
#[derive(Debug, Args)]
#[command(
    after_help = "In it: what `zt-agent doctor` finds, what the agent says of itself, configuration, policies and workloads, what is \
    pinned and attached in the kernel, the machine's settings, and the end of the agent's log. Passwords, tokens and keys are taken \
    out, the environment is not in it. It names workloads, addresses and policies: look through it before you send it. No agent has \
    to run; run this as root."
)]
pub struct SysdumpArgs {
    /// Where to write it; `-` for standard output [default: zt-sysdump-NODE-TIME.tar.gz here]
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
    /// Lines of each log, the last ones
    #[arg(long, value_name = "NUMBER", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    log_lines: u32,
    #[command(flatten)]
    output: Output,
    /// What is gathered follows from the configuration.
    #[command(flatten)]
    run: RunArgs,
}

pub(super) async fn sysdump(arguments: &SysdumpArgs) -> Result<Exit, Failure> {
    let order = Order {
        patient: Patient {
            file: arguments.run.config.clone(),
            loaded: arguments.run.load(),
        },
        log_lines: arguments.log_lines as usize,
        render: rendered,
    };
    if arguments.output_file.as_deref() == Some(Path::new(STANDARD_OUTPUT)) {
        if io::stdout().is_terminal() {
            let what = "an archive is nothing for a terminal: redirect standard output, or name a file with --output-file";
            return Err(Failure::Usage(what.to_owned()));
        }
        let (mut to, manifest) = sysdump::gather(&order, BufWriter::new(io::stdout()), &progress).await?;
        to.flush()?;
        for text in missing(&manifest) {
            eprintln!("{text}");
        }
        return Ok(Exit::Done);
    }
    let node = order
        .patient
        .loaded
        .as_ref()
        .map_or_else(|_| Config::default().node, |config| config.node.clone());
    let default = || PathBuf::from(format!("{}.tar.gz", sysdump::name(&node, clock::now())));
    let path = arguments.output_file.clone().unwrap_or_else(default);
    let manifest = write(&order, &path).await?;
    told(arguments.output.format, &path, &manifest)?;
    Ok(Exit::Done)
}

/// Under a hidden name first: nobody takes half an archive for a whole one.
async fn write(order: &Order, path: &Path) -> Result<Manifest, Failure> {
    let refuse =
        |error: &dyn std::fmt::Display| Failure::Usage(format!("cannot write {}: {error}", path.display()));
    if path.symlink_metadata().is_ok() {
        return Err(refuse(&"it exists already; name another file with --output-file"));
    }
    let name = path.file_name().ok_or_else(|| refuse(&"it names no file"))?;
    let aside = path.with_file_name(format!(".{}.partial", name.to_string_lossy()));
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .map_err(|error| refuse(&format!("{} ({error})", aside.display())))?;
    let finished = match sysdump::gather(order, BufWriter::new(file), &progress).await {
        Ok((mut to, manifest)) => to
            .flush()
            .and_then(|()| fs::rename(&aside, path))
            .map(|()| manifest),
        Err(error) => Err(error),
    };
    finished.map_err(|error| {
        // It is of no use; that it cannot be removed is the smaller trouble.
        let _ = fs::remove_file(&aside);
        Failure::Io(error)
    })
}

fn told(format: Format, path: &Path, manifest: &Manifest) -> io::Result<()> {
    let bytes = fs::metadata(path)?.len();
    if format == Format::Json {
        return json(&json!({
            "file": path, "bytes": bytes, "entries": manifest.entries, "missing": manifest.missing,
        }));
    }
    line(&format!(
        "{}: {} entries, {} KiB",
        path.display(),
        manifest.entries.len(),
        bytes / 1024
    ))?;
    missing(manifest).iter().try_for_each(|text| line(text))?;
    line(
        "Secrets were taken out. It names workloads, addresses and policies: look through it before you send it.",
    )
}

/// What could not be had, together where the reason is the same.
fn missing(manifest: &Manifest) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for missing in &manifest.missing {
        match reasons.iter_mut().find(|(why, _)| *why == missing.why) {
            Some((_, names)) => names.push(missing.name.as_str()),
            None => reasons.push((missing.why.as_str(), vec![missing.name.as_str()])),
        }
    }
    let line = |(why, names): &(&str, Vec<&str>)| format!("without {}: {why}", names.join(", "));
    reasons.iter().map(line).collect()
}

fn rendered(report: &Report) -> String {
    let mut text = render(report, false).join("\n");
    text.push('\n');
    text
}

/// Says on a terminal what is being done.
fn progress(what: &str) {
    if io::stderr().is_terminal() {
        eprintln!("{what} ...");
    }
}
