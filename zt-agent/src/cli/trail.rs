// SPDX-License-Identifier: Apache-2.0
//! `zt-agent audit verify|export|prune|keys|rotate-key`: what works on the trail itself, with or without an agent.

mod progress;
mod trust;
mod verify;

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

pub(super) use self::progress::Progress;
pub(super) use self::verify::{VerifyArgs, verify};
use super::audit::FilterArgs;
use super::exit::{Exit, Failure};
use super::run::RunArgs;
use super::when::When;
use crate::audit::archive;
use crate::audit::export;
use crate::audit::ocsf;
use crate::audit::postgres::{Target, Upkeep, Walk};
use crate::audit::query::Filter;
use crate::audit::record::Timestamp;
use crate::audit::seal::Keys;
use crate::audit::sqlite::{Reader, Settings, Store, Use, default_keys};
use crate::audit::store::Trail;
use crate::config::{Audit, Config};

/// How long pruning waits for somebody else who is at it.
const TURN_TIME: Duration = Duration::from_secs(60);

/// Which trail, and its keys.
#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    /// Configuration file of the agent [default: /etc/zt/agent.yaml, if it exists]
    #[arg(long, env = "ZT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Database of records [default: audit.dsn of the configuration, or the login that is named there for this]
    #[arg(long, value_name = "DSN")]
    store: Option<String>,
    /// Directory of the keys [default: audit.keys of the configuration, else `keys` beside the database]
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
}

impl StoreArgs {
    /// `of` says which of the configured logins is meant, where no database is named.
    fn load(&self, of: fn(&Audit) -> &str) -> Result<(Config, String, PathBuf), Failure> {
        let run = RunArgs {
            config: self.config.clone(),
            ..RunArgs::default()
        };
        let config = run.load()?;
        let configured = || of(&config.audit).to_owned();
        let dsn = self.store.clone().unwrap_or_else(configured);
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

/// What a local file is for, as far as is known: the configured trail is one whatever it says of itself. `spool` is one
/// that was named.
fn used_as(config: &Config, dsn: &str, spool: Option<&Path>) -> Result<Use, Failure> {
    if dsn == config.audit.dsn {
        return Ok(Use::Trail);
    }
    let path = Reader::path(dsn)?;
    let same = |other: &Path| path == other || same_file(&path, other);
    let known = same(&config.audit.spool) || spool.is_some_and(same);
    Ok(if known { Use::Spool } else { Use::Trail })
}

/// Whether two names lead to one file.
fn same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(one).is_some_and(|real_one| Some(real_one) == real(other))
}

/// How to write an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ExportFormat {
    /// JSON Lines with keys and checkpoints: `audit verify` can check it
    Jsonl,
    /// For tables
    Csv,
    /// Decisions as JSON Lines of the Open Cybersecurity Schema Framework: network activity (4001)
    Ocsf,
}

/// Arguments of `audit export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// How to write
    #[arg(
        short = 'o',
        long,
        visible_alias = "output",
        value_enum,
        value_name = "FORMAT",
        default_value = "jsonl"
    )]
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
    if arguments.proof && arguments.format != ExportFormat::Jsonl {
        let what = "--proof is for exports that `audit verify` reads: it goes with -o jsonl alone";
        return Err(Failure::Usage(what.to_owned()));
    }
    let filter = arguments.filter.filter()?;
    let (_, dsn, _) = arguments.store.load(Audit::reading)?;
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
        ExportFormat::Ocsf => ocsf::lines(trail, filter, to).await,
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
    let (config, dsn, keys) = arguments.store.load(Audit::maintaining)?;
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
        let kept = in_turn(&Target::parse(&dsn)?, days, &keys).await?;
        println!(
            "{} records removed with {} days of before {before}; {} partitions made ahead",
            kept.records, kept.dropped, kept.made
        );
        if kept.records > 0
            && let Some(signer) = Keys::list(&keys)?.and_then(|keys| keys.into_iter().next())
        {
            println!(
                "stated and signed: `audit verify` needs --maintainer {}",
                signer.key
            );
        }
        return Ok(Exit::Done);
    }
    // Only what is there: `Store::open` would make it.
    let mut reader = Reader::open(&dsn).await?;
    let spool = used_as(&config, &dsn, None)? == Use::Spool;
    if spool || (dsn != config.audit.dsn && reader.ships().await?) {
        return Err(Failure::Usage(format!(
            "{} is a spool: what it holds has not reached PostgreSQL yet, and would be lost uncounted; the agent removes \
             what has been shipped. To remove what is old name the server with --store",
            Reader::path(&dsn)?.display()
        )));
    }
    let signed = reader.is_signed().await?;
    drop(reader);
    // Keys that are made here would be another's, and what they sign a finding.
    if signed && Keys::list(&keys)?.is_none() {
        return Err(Failure::Usage(format!(
            "{} has no keys, and this trail is signed: name the directory of its keys with --keys",
            keys.display()
        )));
    }
    let store = Store::visit(Settings {
        dsn,
        max_disk_bytes: config.audit.max_disk_bytes,
        retention_days: None,
        keys: Some(keys),
        sync: config.audit.sync,
    });
    let store = store.await?;
    let gone = store.prune_before(before).await?;
    store.close().await?;
    println!("{gone} records of before {before} removed");
    Ok(Exit::Done)
}

/// Looks after the tables, when whoever does so at this moment has ended.
async fn in_turn(target: &Target, days: u32, keys: &Path) -> Result<Upkeep, Failure> {
    let deadline = Instant::now() + TURN_TIME;
    loop {
        if let Some(kept) = archive::keep(target, days, keys).await? {
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
    let (_, _, directory) = arguments.store.load(Audit::reading)?;
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

/// Arguments of `audit keys`.
#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(flatten)]
    store: StoreArgs,
}

/// Prints what others need to verify this node's records: its first key, with each of its writers.
pub(super) fn keys(arguments: &KeysArgs) -> Result<Exit, Failure> {
    let (_, _, directory) = arguments.store.load(Audit::reading)?;
    let Some(root) = Keys::list(&directory)?.and_then(|keys| keys.into_iter().next()) else {
        return Err(Failure::NotFound(format!(
            "{} has no key yet: the agent makes it",
            directory.display()
        )));
    };
    let mut writers: Vec<_> = Keys::noted(&directory)?
        .into_iter()
        .map(|checkpoint| checkpoint.writer)
        .collect();
    writers.sort_unstable();
    // A checkpoint that its trail does not go on from is kept beside the last one.
    writers.dedup();
    if writers.is_empty() {
        println!("{}", root.key);
    }
    for writer in writers {
        println!("{}={writer}", root.key);
    }
    Ok(Exit::Done)
}
