// SPDX-License-Identifier: Apache-2.0
//! `zt-agent audit verify`.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::super::exit::{Exit, Failure};
use super::super::output::{Format, Output, json};
use super::progress::Progress;
use super::trust::{self, Named};
use super::{StoreArgs, used_as};
use crate::audit::archive;
use crate::audit::export;
use crate::audit::postgres::{Target, Walk};
use crate::audit::seal::Checkpoint;
use crate::audit::sqlite::{Reader, Shipped, Use};
use crate::audit::verify::{Noted, Report, Trust, Verifier, WriterReport};
use crate::config::Audit;

/// Gaps of one writer that are told one by one.
const MOST_GAPS: usize = 10;

/// Arguments of `audit verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// An export to check (JSON Lines; `-` for standard input) instead of the database
    file: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// Whom to trust: KEY or KEY=WRITER as `audit keys` shows it on each node, a file with one of these a line, a
    /// keys.json, or a directory of keys; several, with commas or again [default: the directory of keys]
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    trust: Vec<String>,
    /// Whom to believe that records were pruned, whoever wrote them: the key of the agent, or of the timer, that
    /// removes old days from PostgreSQL; named as with --trust
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    maintainer: Vec<String>,
    /// With PostgreSQL: the spool of this node, which knows what has not arrived yet. Where --store is a spool itself: the
    /// same file again [default: audit.spool of the configuration]
    #[arg(long, value_name = "FILE")]
    spool: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// Checks a trail; 1 where something is wrong with it.
pub(in super::super) async fn verify(arguments: &VerifyArgs) -> Result<Exit, Failure> {
    let (trust, own, others) = trusted(arguments)?;
    // Who signs for the first time notes it beside the keys.
    let unsigned = own.as_ref().is_some_and(Vec::is_empty);
    let own = own.unwrap_or_default();
    let mut verifier = Verifier::new(trust);
    let progress = Progress::begin();
    let mut tell = |entries| progress.tell(entries);
    let verifier = match &arguments.file {
        // What is noted is of now, and an export may be older.
        Some(file) if file == Path::new("-") => {
            export::verify_lines(io::stdin().lock().lines(), verifier, &mut tell)?
        }
        Some(file) => {
            let open = File::open(file);
            let open =
                open.map_err(|error| Failure::Usage(format!("cannot open {}: {error}", file.display())))?;
            export::verify_lines(BufReader::new(open).lines(), verifier, &mut tell)?
        }
        None => {
            let (config, dsn, _) = arguments.store.load(Audit::reading)?;
            if archive::is_postgres(&dsn) {
                // Before the walk begins: what has been shipped by now, it must find.
                let shipped = shipped(arguments).await?;
                if let Some(shipped) = &shipped {
                    verifier.arrived(shipped.writer, shipped.seq);
                    if unsigned {
                        verifier.begins(shipped.writer);
                    }
                }
                let noted = on_their_way(own.into_iter().chain(others), shipped);
                let mut walk = Walk::begin(&Target::parse(&dsn)?).await?;
                export::verify(&mut walk, verifier, &noted, &mut tell).await?
            } else {
                let noted: Vec<Noted> = own.into_iter().map(Noted::here).collect();
                let used_as = used_as(&config, &dsn, arguments.spool.as_deref())?;
                let mut reader = Reader::open_as(&dsn, used_as).await?;
                if unsigned {
                    verifier.begins(reader.writer());
                }
                let mut verifier = export::verify(&mut reader, verifier, &noted, &mut tell).await?;
                if used_as == Use::Spool {
                    verifier.remark(
                        "this is a spool, whose hourly counts nobody goes by: they were not looked at"
                            .to_owned(),
                    );
                }
                verifier
            }
        }
    };
    let report = verifier.finish();
    drop(progress);
    show(&report, arguments.output.format)?;
    Ok(if report.is_clean() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// The last checkpoints that are noted beside keys.
type Last = Vec<Checkpoint>;

/// Whom to trust, and what is noted beside this node's keys (`None` where these are not asked) and beside others'.
fn trusted(arguments: &VerifyArgs) -> Result<(Trust, Option<Last>, Last), Failure> {
    let (mut trust, mut others) = (Trust::default(), Vec::new());
    for (texts, maintains) in [(&arguments.trust, false), (&arguments.maintainer, true)] {
        for text in texts {
            let named = trust::read(text)?;
            named.trust(&mut trust, maintains)?;
            others.extend(named.noted);
        }
    }
    if !arguments.trust.is_empty() && arguments.store.keys.is_none() {
        return Ok((trust, None, others));
    }
    let (_, _, directory) = arguments.store.load(Audit::reading)?;
    let Some(named) = trust::directory(&directory)? else {
        return Err(Failure::Usage(format!(
            "{} has no keys to trust: name their directory with --keys, or the first key's id with --trust",
            directory.display()
        )));
    };
    // Who verifies with this machine's own keys alone believes this machine.
    let alone = arguments.trust.is_empty() && arguments.maintainer.is_empty();
    named.trust(&mut trust, alone)?;
    let Named { noted, .. } = named;
    Ok((trust, Some(noted), others))
}

/// How far this node's spool has shipped. One that is not there, and was not asked for, says nothing.
async fn shipped(arguments: &VerifyArgs) -> Result<Option<Shipped>, Failure> {
    let path = match &arguments.spool {
        Some(path) => path.clone(),
        // A server named here has nothing to do with the configured spool.
        None if arguments.store.store.is_some() => return Ok(None),
        None => {
            let (config, _, _) = arguments.store.load(Audit::reading)?;
            if !config.audit.spool.exists() {
                return Ok(None);
            }
            config.audit.spool
        }
    };
    let path = std::path::absolute(&path)?;
    let mut reader = Reader::open_as(&format!("sqlite://{}", path.display()), Use::Spool).await?;
    Ok(reader.shipped().await?)
}

/// What is noted of a trail to which entries are still on their way.
fn on_their_way(noted: impl Iterator<Item = Checkpoint>, shipped: Option<Shipped>) -> Vec<Noted> {
    let arrived = |checkpoint: &Checkpoint| {
        let ours = shipped
            .as_ref()
            .filter(|shipped| shipped.writer == checkpoint.writer);
        ours.map_or(0, |shipped| shipped.seq)
    };
    let mut noted: Vec<Noted> = noted
        .map(|checkpoint| Noted {
            kept: false,
            arrived: arrived(&checkpoint),
            checkpoint,
        })
        .collect();
    // The server has this one.
    noted.extend(shipped.and_then(|shipped| shipped.checkpoint).map(Noted::here));
    noted
}

fn show(report: &Report, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return Ok(json(&as_json(report))?);
    }
    let mut out = io::stdout().lock();
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    let more = report.count - report.findings.len() as u64;
    if more > 0 {
        writeln!(out, "and {more} more")?;
    }
    for writer in &report.writers {
        show_writer(report, writer, &mut out)?;
    }
    for remark in &report.remarks {
        writeln!(out, "note: {remark}")?;
    }
    writeln!(out, "{}", export::summary(report))?;
    Ok(())
}

fn show_writer(report: &Report, writer: &WriterReport, out: &mut impl io::Write) -> io::Result<()> {
    write!(out, "writer {}: ", writer.writer)?;
    match &writer.root {
        Some(root) => write!(out, "signed up to entry {} by {root}", writer.sealed)?,
        None => write!(out, "nothing is signed")?,
    }
    match (&writer.root, writer.behind) {
        (_, 0) => {}
        (Some(_), newer) => write!(out, "; {newer} records are newer than the last checkpoint")?,
        (None, waiting) => write!(out, "; {waiting} records wait for the first checkpoint")?,
    }
    writeln!(out)?;
    let spans: Vec<_> = report
        .spans
        .iter()
        .filter(|span| span.writer == writer.writer)
        .collect();
    for span in spans.iter().take(MOST_GAPS) {
        let what = if span.cause.is_loss() { "lost" } else { "removed" };
        writeln!(
            out,
            "  entries {} to {} were {what} ({}), signed by {} at {}",
            span.first,
            span.last,
            span.cause.name(),
            span.by,
            span.time
        )?;
    }
    if spans.len() > MOST_GAPS {
        writeln!(
            out,
            "  and more: {} lost, {} removed in all",
            writer.lost, writer.pruned
        )?;
    }
    Ok(())
}

fn as_json(report: &Report) -> serde_json::Value {
    let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    let writers: Vec<_> = report
        .writers
        .iter()
        .map(|of| {
            json!({
                "writer": of.writer, "root": of.root, "sealed": of.sealed, "behind": of.behind,
                "records": of.records, "lost": of.lost, "pruned": of.pruned, "missing": of.missing,
            })
        })
        .collect();
    let gaps: Vec<_> = report
        .spans
        .iter()
        .map(|span| {
            json!({
                "writer": span.writer, "first": span.first, "last": span.last, "cause": span.cause.name(),
                "signed_by": span.by, "time": span.time,
            })
        })
        .collect();
    let losses = report.stated.iter().filter(|(cause, _)| cause.is_loss());
    let losses: serde_json::Map<_, _> = losses
        .map(|(cause, count)| (cause.name().to_owned(), json!(count)))
        .collect();
    json!({
        "clean": report.is_clean(), "entries": report.entries, "joined": report.joined,
        "checkpoints": report.checkpoints, "findings": findings, "finding_count": report.count, "writers": writers, "gaps": gaps,
        "losses": losses, "remarks": report.remarks,
    })
}
