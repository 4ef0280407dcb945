// SPDX-License-Identifier: Apache-2.0
//! Where decisions are recorded: the local file, the server behind it, and the keys.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::finding::Finding;
use crate::audit::archive;
use crate::audit::postgres::{Examined, PgError, Targets, examine};
use crate::audit::record::Timestamp;
use crate::audit::sqlite::{Reader, StoreError, Use, damaged_beside, default_keys};
use crate::config::Config;

/// Nanoseconds by which clocks may differ: past this, nobody drops what is old.
const APART: i64 = 5 * 60 * 1_000_000_000;
/// Nanoseconds by which they may differ unnoticed.
const UNNOTICED: i64 = 5 * 1_000_000_000;
/// Records that may wait for the server, as a rule.
const MANY: u64 = 100_000;

const DATABASE: &str = "audit.database";
const ROLES: &str = "audit.roles";
const WRITER_ONLY: &str = "audit.writer";
const DURABLE: &str = "audit.durable";
const CLOCK: &str = "clock.database";

/// What a local file holds.
struct Held {
    entries: u64,
    last: Option<Timestamp>,
    /// How many wait to be shipped, where it is a spool.
    waiting: Option<u64>,
}

/// Looks at the trail; nothing is written.
pub(super) async fn look(config: &Config, now: i64) -> Vec<Finding> {
    let dsn = &config.audit.dsn;
    let mut findings = Vec::new();
    let (file, used_as) = if archive::is_postgres(dsn) {
        let audit = &config.audit;
        match Targets::parse(dsn, audit.read_dsn.as_deref(), audit.maintain_dsn.as_deref()) {
            Ok(targets) => {
                let logins = Logins {
                    read: audit.read_dsn.is_some(),
                    maintain: audit.maintain_dsn.is_some(),
                };
                let place = targets.writer.place().to_owned();
                findings.extend(server(&place, logins, &examine(&targets).await));
            }
            Err(error) => findings.push(Finding::failed(
                DATABASE,
                error.to_string(),
                "correct `audit.dsn`, `audit.readDsn` and `audit.maintainDsn`",
            )),
        }
        (format!("sqlite://{}", config.audit.spool.display()), Use::Spool)
    } else {
        (dsn.clone(), Use::Trail)
    };
    let path = Reader::path(&file).unwrap_or_else(|_| config.audit.spool.clone());
    let held = if path.exists() {
        Some(held(&file, used_as).await)
    } else {
        None
    };
    findings.push(local(&path, held.as_ref(), now));
    findings.push(damaged(&path, damaged_beside(&path)));
    let configured = config.audit.keys.clone();
    let directory = configured.unwrap_or_else(|| default_keys(&path));
    findings.push(keys(&directory, &private_parts(&directory)));
    findings
}

async fn held(dsn: &str, used_as: Use) -> Result<Held, StoreError> {
    let mut reader = Reader::open_as(dsn, used_as).await?;
    let entries = reader.entries().await?;
    let shipped = reader.shipped().await?;
    Ok(Held {
        entries,
        last: reader.last_time().await?,
        waiting: shipped.map(|shipped| entries.saturating_sub(shipped.seq)),
    })
}

fn local(path: &Path, held: Option<&Result<Held, StoreError>>, now: i64) -> Finding {
    const CHECK: &str = "audit.file";
    let shown = path.display();
    let held = match held {
        None => {
            return Finding::not_applicable(CHECK, format!("{shown} is made by the first agent that starts"));
        }
        Some(Err(error)) if error.is_damage() => {
            let remedy = "look at the disk, and whether the name is right: an agent that comes upon a damaged file of its own puts it aside and goes on in a new one";
            return Finding::failed(CHECK, error.to_string(), remedy);
        }
        Some(Err(error)) => {
            let remedy = "the message says which release or file is meant; `zt-agent audit verify` tells what is damaged";
            return Finding::failed(CHECK, error.to_string(), remedy);
        }
        Some(Ok(held)) => held,
    };
    let last = held
        .last
        .map_or_else(|| "none".to_owned(), |last| last.to_string());
    let found = format!("{shown}: {} entries, the last of {last}", held.entries);
    if held.last.is_some_and(|last| last.0 > now + UNNOTICED) {
        let remedy = "the machine's clock was set back since, or was wrong then: see `clock.synchronized`; records keep the time that it showed";
        return Finding::warning(CHECK, format!("{found}, which is yet to come"), remedy);
    }
    match held.waiting {
        Some(waiting) if waiting > MANY => Finding::warning(
            CHECK,
            format!("{found}; {waiting} wait for PostgreSQL"),
            "see `audit.database`; where the server is there, wait: an agent ships what has waited",
        ),
        Some(waiting) => Finding::ok(CHECK, format!("{found}; {waiting} wait for PostgreSQL")),
        None => Finding::ok(CHECK, found),
    }
}

/// Files that were put aside because they were damaged.
fn damaged(path: &Path, found: io::Result<Vec<PathBuf>>) -> Finding {
    const CHECK: &str = "audit.damaged";
    match found {
        Ok(files) if files.is_empty() => {
            Finding::ok(CHECK, format!("no damaged file lies beside {}", path.display()))
        }
        Ok(files) => {
            let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
            let found = format!("damaged, and put aside by the agent: {}", names.join(", "));
            let remedy = "look at the disk; docs/audit.md, A damaged file, says how to bring back what can be read; then move it away, and with it what the directory of the keys keeps of its writer";
            Finding::warning(CHECK, found, remedy)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::not_applicable(CHECK, format!("nothing is where {} will be", path.display()))
        }
        Err(error) => Finding::warning(
            CHECK,
            format!("cannot look beside {}: {error}", path.display()),
            "run this as root",
        ),
    }
}

/// Which roles have a login of their own, beside the one that inserts.
#[derive(Clone, Copy, Debug, Default)]
struct Logins {
    read: bool,
    maintain: bool,
}

fn server(place: &str, logins: Logins, examined: &Examined) -> Vec<Finding> {
    let unreachable = examined.roles.first().and_then(|(_, outcome)| {
        let error = outcome.as_ref().err()?;
        error.is_away().then_some(error)
    });
    if let Some(error) = unreachable {
        let unasked = |check| Finding::not_applicable(check, "the server cannot be reached");
        return vec![
            Finding::failed(
                DATABASE,
                error.to_string(),
                "start the server, or correct `audit.dsn`; decisions wait in the spool until it is there",
            ),
            unasked(ROLES),
            unasked(WRITER_ONLY),
            unasked(DURABLE),
            unasked(CLOCK),
        ];
    }
    let mut findings = vec![if examined.tables {
        Finding::ok(
            DATABASE,
            format!("PostgreSQL at {place} answers, and has the trail's tables"),
        )
    } else if examined.ahead.is_some() {
        Finding::warning(
            DATABASE,
            format!("PostgreSQL at {place} answers, and has no tables of the trail"),
            "run deploy/postgres/roles.sql, and start an agent whose login is a member of zt_audit_maintainer",
        )
    } else {
        Finding::failed(
            DATABASE,
            format!("PostgreSQL at {place} answers, and lets this login take no role"),
            "see `audit.roles`",
        )
    }];
    findings.push(roles(logins, examined));
    findings.push(writer_only(examined));
    findings.push(durable(examined));
    findings.push(clocks(examined.ahead));
    findings
}

/// Whether each login may do what it is for.
fn roles(logins: Logins, examined: &Examined) -> Finding {
    const WRITER: &str = "zt_audit_writer";
    const READER: &str = "zt_audit_reader";
    const MAINTAINER: &str = "zt_audit_maintainer";
    let remedy = |role: &str, key: &str, error: &PgError| {
        if error.is_away() {
            format!("start that server, or correct `{key}`")
        } else {
            format!("run deploy/postgres/roles.sql, and `GRANT {role} TO` the login of `{key}`")
        }
    };
    if let Some(error) = examined.refusal(WRITER) {
        return Finding::failed(ROLES, error.to_string(), remedy(WRITER, "audit.dsn", error));
    }
    match (examined.refusal(READER), logins.read) {
        (Some(error), true) => {
            return Finding::failed(ROLES, error.to_string(), remedy(READER, "audit.readDsn", error));
        }
        (Some(error), false) => {
            let remedy = format!(
                "{}, or name one that may in `audit.readDsn`: without it nobody can ask this agent for records",
                remedy(READER, "audit.dsn", error)
            );
            return Finding::warning(ROLES, error.to_string(), remedy);
        }
        (None, _) => {}
    }
    if let Some(role) = examined.elsewhere.first() {
        return Finding::warning(
            ROLES,
            format!("the login for {role} comes to another database than that of `audit.dsn`"),
            "have `audit.readDsn` and `audit.maintainDsn` lead to the database of `audit.dsn`, or the first to a replica of it",
        );
    }
    match (examined.refusal(MAINTAINER), logins.maintain) {
        (Some(error), true) => Finding::failed(
            ROLES,
            error.to_string(),
            remedy(MAINTAINER, "audit.maintainDsn", error),
        ),
        (Some(_), false) => Finding::ok(
            ROLES,
            "this agent's logins write and read; another one's looks after the partitions",
        ),
        (None, _) => Finding::ok(
            ROLES,
            "this agent's logins write, read and look after the partitions",
        ),
    }
}

/// Whether the login that inserts may do nothing else: who takes over the agent then has it.
fn writer_only(examined: &Examined) -> Finding {
    let Some(more) = &examined.more else {
        return Finding::not_applicable(WRITER_ONLY, "the server could not be asked");
    };
    if more.is_empty() {
        return Finding::ok(
            WRITER_ONLY,
            "the login of `audit.dsn` inserts, and may do nothing else",
        );
    }
    let found = format!(
        "the login of `audit.dsn` may {} besides INSERT, in whichever of its roles",
        more.join(", ")
    );
    let remedy = "leave it a member of zt_audit_writer alone (REVOKE the other roles from it), and name logins for these in `audit.readDsn` and `audit.maintainDsn`, or on other machines";
    Finding::warning(WRITER_ONLY, found, remedy)
}

/// Whether what the server confirms survives a crash of its machine: from the spool it goes by then.
fn durable(examined: &Examined) -> Finding {
    if examined.ahead.is_none() {
        return Finding::not_applicable(DURABLE, "the server could not be asked");
    }
    if examined.off.is_empty() {
        return Finding::ok(
            DURABLE,
            "what the server confirms is on its disk (fsync, full_page_writes)",
        );
    }
    let found = format!(
        "the server has {} = off: a crash of its machine may take records that it had confirmed, and damage its database",
        examined.off.join(" = off, ")
    );
    let remedy = "set it to `on` in postgresql.conf; full_page_writes may be off where the file system never writes half a page";
    Finding::warning(DURABLE, found, remedy)
}

/// `ahead`: nanoseconds of the server's clock before this machine's.
fn clocks(ahead: Option<i64>) -> Finding {
    let Some(ahead) = ahead else {
        return Finding::not_applicable(CLOCK, "the server could not be asked");
    };
    let found = format!(
        "the server's clock is {:+.1} s from this machine's",
        ahead as f64 / 1e9
    );
    let remedy = "set the one that is wrong: past five minutes nothing old is dropped, and records of times to come are refused";
    if ahead.abs() > APART {
        Finding::failed(CLOCK, found, remedy)
    } else if ahead.abs() > UNNOTICED {
        Finding::warning(CLOCK, found, remedy)
    } else {
        Finding::ok(CLOCK, found)
    }
}

/// Private parts of keys, each with the bits of its mode.
fn private_parts(directory: &Path) -> Vec<(PathBuf, u32)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let keys = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "key"));
    keys.filter_map(|path| {
        let mode = fs::metadata(&path).ok()?.mode();
        Some((path, mode & 0o777))
    })
    .collect()
}

fn keys(directory: &Path, private: &[(PathBuf, u32)]) -> Finding {
    const CHECK: &str = "audit.keys";
    let shown = directory.display();
    let open = private.iter().find(|(_, mode)| mode & 0o077 != 0);
    if let Some((path, mode)) = open {
        let path = path.display();
        Finding::failed(
            CHECK,
            format!("{path} has mode {mode:03o}: others of this machine may sign as it"),
            format!("chmod 600 {path}; then `zt-agent audit rotate-key`, for whoever could read it may have"),
        )
    } else if private.is_empty() {
        Finding::not_applicable(CHECK, format!("{shown} is made by the first agent that starts"))
    } else {
        Finding::ok(
            CHECK,
            format!("{} keys at {shown}, for root alone", private.len()),
        )
    }
}

#[cfg(test)]
mod tests;
