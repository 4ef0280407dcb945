// SPDX-License-Identifier: Apache-2.0
//! `zt-agent audit verify|export|prune|rotate-key`: what works on the trail itself, with or without an agent.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::audit::FilterArgs;
use super::exit::{Exit, Failure};
use super::output::{Format, Output, json};
use super::run::RunArgs;
use super::when::When;
use crate::audit::archive;
use crate::audit::export;
use crate::audit::postgres::{Target, Upkeep, Walk};
use crate::audit::query::Filter;
use crate::audit::record::Timestamp;
use crate::audit::seal::{KeyRecord, Keys};
use crate::audit::sqlite::{Reader, Settings, Store, default_keys};
use crate::audit::store::Trail;
use crate::audit::verify::{Report, Verifier};
use crate::config::Config;

/// How long pruning waits for somebody else who is at it.
const TURN_TIME: Duration = Duration::from_secs(60);

/// Which trail, and its keys.
#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    /// Configuration file of the agent [default: /etc/zt/agent.yaml, if it exists]
    #[arg(long, env = "ZT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Database of records [default: audit.dsn of the configuration]
    #[arg(long, value_name = "DSN")]
    store: Option<String>,
    /// Directory of the keys [default: audit.keys of the configuration, else `keys` beside the database]
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
}

impl StoreArgs {
    fn load(&self) -> Result<(Config, String, PathBuf), Failure> {
        let run = RunArgs {
            config: self.config.clone(),
            ..RunArgs::default()
        };
        let config = run.load()?;
        let dsn = self.store.clone().unwrap_or_else(|| config.audit.dsn.clone());
        // A store named here has nothing to do with the keys of the configured one.
        let configured = config.audit.keys.clone().filter(|_| self.store.is_none());
        let keys = match self.keys.clone().or(configured) {
            Some(keys) => keys,
            None if archive::is_postgres(&dsn) => default_keys(&config.audit.spool),
            None => default_keys(&Reader::path(&dsn)?),
        };
        Ok((config, dsn, keys))
    }
}

/// Arguments of `audit verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// An export to check (JSON Lines; `-` for standard input) instead of the database
    file: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// Id of the first key to trust, as `audit verify` or the log of the first start has shown it, where the directory
    /// of keys is not at hand
    #[arg(long, value_name = "KEY")]
    trust: Vec<String>,
    #[command(flatten)]
    output: Output,
}

/// Checks a trail; 1 where something is wrong with it.
pub(super) async fn verify(arguments: &VerifyArgs) -> Result<Exit, Failure> {
    let (roots, noted) = trusted(arguments)?;
    let verifier = Verifier::new(roots);
    let verifier = match &arguments.file {
        Some(file) if file == Path::new("-") => export::verify_lines(io::stdin().lock().lines(), verifier)?,
        Some(file) => {
            let open = File::open(file);
            let open =
                open.map_err(|error| Failure::Usage(format!("cannot open {}: {error}", file.display())))?;
            export::verify_lines(BufReader::new(open).lines(), verifier)?
        }
        None => {
            let (_, dsn, _) = arguments.store.load()?;
            if archive::is_postgres(&dsn) {
                // What is noted here may still wait in the spool: it says nothing about the server's end of the trail.
                export::verify(&mut Walk::begin(&Target::parse(&dsn)?).await?, verifier, &[]).await?
            } else {
                export::verify(&mut Reader::open(&dsn).await?, verifier, &noted).await?
            }
        }
    };
    // What is noted is of now, and an export may be older.
    let report = verifier.finish();
    show(&report, arguments.output.format)?;
    Ok(if report.is_clean() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// The ids that are trusted, and the last checkpoints that are kept beside the keys.
fn trusted(arguments: &VerifyArgs) -> Result<(Vec<String>, Vec<crate::audit::seal::Checkpoint>), Failure> {
    if !arguments.trust.is_empty() {
        return Ok((arguments.trust.clone(), Vec::new()));
    }
    let (_, _, directory) = arguments.store.load()?;
    let Some(keys) = Keys::list(&directory)? else {
        return Err(Failure::Usage(format!(
            "{} has no keys to trust: name their directory with --keys, or the first key's id with --trust",
            directory.display()
        )));
    };
    let roots = keys.into_iter().map(|KeyRecord { key, .. }| key).collect();
    Ok((roots, Keys::noted(&directory)?))
}

fn show(report: &Report, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        let writers: Vec<_> = report
            .writers
            .iter()
            .map(|(writer, sealed, behind)| json!({ "writer": writer, "sealed": sealed, "behind": behind }))
            .collect();
        json(&json!({
            "clean": report.is_clean(), "entries": report.entries, "checkpoints": report.checkpoints,
            "findings": findings, "finding_count": report.count, "writers": writers,
        }))?;
        return Ok(());
    }
    let mut out = io::stdout().lock();
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    let more = report.count - report.findings.len() as u64;
    if more > 0 {
        writeln!(out, "and {more} more")?;
    }
    for (writer, sealed, behind) in &report.writers {
        write!(out, "writer {writer}: signed up to entry {sealed}")?;
        if *behind > 0 {
            write!(out, "; {behind} later ones are not signed yet")?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{}", export::summary(report))?;
    Ok(())
}

/// How to write an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ExportFormat {
    /// JSON Lines with keys and checkpoints: `audit verify` can check it
    Jsonl,
    /// For tables
    Csv,
}

/// Arguments of `audit export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// How to write
    #[arg(long, value_enum, default_value = "jsonl")]
    format: ExportFormat,
    /// With filters: also the digests of what they leave out, so that `audit verify` can check the export
    #[arg(long)]
    proof: bool,
    /// Write to this file instead of standard output; it must not exist
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Writes the trail, oldest first.
pub(super) async fn export(arguments: &ExportArgs) -> Result<Exit, Failure> {
    let filter = arguments.filter.filter()?;
    let (_, dsn, _) = arguments.store.load()?;
    let mut to: Box<dyn io::Write> = match &arguments.to {
        Some(path) => {
            let created = File::create_new(path);
            Box::new(
                created
                    .map_err(|error| Failure::Usage(format!("cannot create {}: {error}", path.display())))?,
            )
        }
        None => Box::new(io::stdout().lock()),
    };
    let mut to = BufWriter::new(&mut *to);
    let written = if archive::is_postgres(&dsn) {
        write(
            &mut Walk::begin(&Target::parse(&dsn)?).await?,
            arguments,
            &filter,
            &mut to,
        )
        .await?
    } else {
        write(&mut Reader::open(&dsn).await?, arguments, &filter, &mut to).await?
    };
    to.flush()?;
    if arguments.to.is_some() {
        eprintln!("{written} entries");
    }
    Ok(Exit::Done)
}

async fn write<T: Trail>(
    trail: &mut T,
    arguments: &ExportArgs,
    filter: &Filter,
    to: &mut impl io::Write,
) -> Result<u64, Failure> {
    let written = match arguments.format {
        ExportFormat::Jsonl => export::json_lines(trail, filter, arguments.proof, to).await,
        ExportFormat::Csv => export::csv(trail, filter, to).await,
    };
    match written {
        Ok(written) => Ok(written),
        // A reader who has seen enough is no failure.
        Err(export::ExportError::Io(error)) => Err(error.into()),
        Err(error) => Err(Failure::Export(error.to_string())),
    }
}

/// Arguments of `audit prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Remove records of before this time: RFC 3339, or how long ago (90d) [default: audit.retentionDays]
    #[arg(long, value_name = "TIME")]
    before: Option<When>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Removes the oldest records. A signed checkpoint says where the rest begins.
pub(super) async fn prune(arguments: &PruneArgs) -> Result<Exit, Failure> {
    const DAY: i64 = 86_400_000_000_000;
    let (config, dsn, keys) = arguments.store.load()?;
    let days = i64::from(config.audit.retention_days);
    let before = match &arguments.before {
        Some(when) => when
            .rfc3339()
            .parse()
            .map_err(|error| Failure::Usage(format!("--before: {error}")))?,
        None => Timestamp(crate::audit::clock::now().saturating_sub(days * DAY)),
    };
    if archive::is_postgres(&dsn) {
        let age = crate::audit::clock::now() / DAY - before.0.div_euclid(DAY);
        let days = u32::try_from(age).map_err(|_| {
            Failure::Usage("--before: PostgreSQL removes whole days, which must be past".to_owned())
        })?;
        let kept = in_turn(&Target::parse(&dsn)?, days).await?;
        println!(
            "{} records removed with {} days of before {before}; {} partitions made ahead",
            kept.records, kept.dropped, kept.made
        );
        return Ok(Exit::Done);
    }
    // Only what is there: `Store::open` would make it.
    Reader::open(&dsn).await?;
    let store = Store::open(Settings {
        dsn,
        max_disk_bytes: config.audit.max_disk_bytes,
        retention_days: None,
        keys: Some(keys),
    });
    let store = store.await?;
    let gone = store.prune_before(before).await?;
    store.close().await?;
    println!("{gone} records of before {before} removed");
    Ok(Exit::Done)
}

/// Looks after the tables, when whoever does so at this moment has ended.
async fn in_turn(target: &Target, days: u32) -> Result<Upkeep, Failure> {
    let deadline = Instant::now() + TURN_TIME;
    loop {
        if let Some(kept) = archive::keep(target, days).await? {
            return Ok(kept);
        }
        if Instant::now() >= deadline {
            let message =
                "another agent is looking after the partitions of the audit trail: run this again later";
            return Err(Failure::Busy(message.to_owned()));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Arguments of `audit rotate-key`.
#[derive(Debug, Args)]
pub struct RotateArgs {
    #[command(flatten)]
    store: StoreArgs,
}

/// Puts a new key in the place of the current one, which signs it. A running agent takes it with its next checkpoint.
pub(super) fn rotate_key(arguments: &RotateArgs) -> Result<Exit, Failure> {
    let (_, _, directory) = arguments.store.load()?;
    if Keys::list(&directory)?.is_none() {
        return Err(Failure::NotFound(format!(
            "{} has no key yet: the agent makes it",
            directory.display()
        )));
    }
    let keys = Keys::rotate(&directory)?;
    println!("checkpoints are signed with {} from now on", keys.current().key);
    Ok(Exit::Done)
}
