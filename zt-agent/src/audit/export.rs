// SPDX-License-Identifier: Apache-2.0
//! The trail as a file: JSON Lines, which `audit verify` can check, and CSV for tables.

use std::io::{self, Write};

use super::chain::{Hash, digest};
use super::query::Filter;
use super::record::{AuditRecord, Kept};
use super::store::{Found, Miscount, Statement, Told, Trail};
use super::verify::{Finding, Line, Noted, Report, Verifier};

/// Lines of an export between two looks at the clock.
const PROGRESS: u64 = 1024;
/// Digests on one line.
const DIGESTS: usize = 500;

/// Why an export ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExportError<E: std::error::Error> {
    /// The trail could not be read.
    #[error(transparent)]
    Trail(E),
    /// The output could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An entry cannot be read: an export without it would hide that.
    #[error("entry {seq} cannot be read ({cause}): see `zt-agent audit verify`")]
    Unreadable {
        /// Its number.
        seq: u64,
        /// Why not.
        cause: String,
    },
    /// A key or a statement cannot be read: an export without it would hide that.
    #[error("{what} cannot be read ({cause}): see `zt-agent audit verify`")]
    Statement {
        /// Which.
        what: String,
        /// Why not.
        cause: String,
    },
}

/// Writes JSON Lines, oldest first. With `proof` the digests of what the filter leaves out are written too. Returns how
/// many entries were written.
pub async fn json_lines<T: Trail>(
    trail: &mut T,
    filter: &Filter,
    proof: bool,
    to: &mut impl Write,
) -> Result<u64, ExportError<T::Error>> {
    line(to, &Line::Export { format: 1 })?;
    for key in trail.keys().await.map_err(ExportError::Trail)? {
        line(to, &Line::Key(told(key)?))?;
    }
    loop {
        let statements = trail.statements().await.map_err(ExportError::Trail)?;
        if statements.is_empty() {
            break;
        }
        for statement in statements {
            let said = match told(statement)? {
                Statement::Checkpoint(checkpoint) => Line::Checkpoint(checkpoint),
                Statement::Gap(gap) => Line::Gap(gap),
            };
            line(to, &said)?;
        }
    }
    let (mut entries, mut omitted) = (0, Vec::<(u64, Hash)>::new());
    let mut writer = None;
    loop {
        let found = trail.more().await.map_err(ExportError::Trail)?;
        if found.is_empty() {
            break;
        }
        for found in found {
            let kept = readable(&found)?;
            let wanted = filter.takes(&kept.entry);
            if wanted || writer != Some(found.writer) || omitted.len() == DIGESTS {
                leave_out(to, writer, &mut omitted)?;
                writer = Some(found.writer);
            }
            if wanted {
                line(to, kept)?;
                entries += 1;
            } else if proof {
                omitted.push((found.seq, digest(&kept.entry)));
            }
        }
    }
    leave_out(to, writer, &mut omitted)?;
    line(to, &Line::End { entries })?;
    Ok(entries)
}

pub(super) fn readable<E: std::error::Error>(found: &Found) -> Result<&Kept, ExportError<E>> {
    found.kept.as_ref().map_err(|cause| ExportError::Unreadable {
        seq: found.seq,
        cause: cause.clone(),
    })
}

fn told<T, E: std::error::Error>(told: Told<T>) -> Result<T, ExportError<E>> {
    let what = told.what;
    told.read.map_err(|cause| ExportError::Statement { what, cause })
}

fn leave_out(
    to: &mut impl Write,
    writer: Option<uuid::Uuid>,
    omitted: &mut Vec<(u64, Hash)>,
) -> io::Result<()> {
    let omitted = std::mem::take(omitted);
    let (Some(writer), Some((seq, _))) = (writer, omitted.first()) else {
        return Ok(());
    };
    let seq = *seq;
    let digests = omitted.into_iter().map(|(_, digest)| digest).collect();
    line(to, &Line::Omitted { writer, seq, digests })
}

fn line(to: &mut impl Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *to, value)?;
    to.write_all(b"\n")
}

/// Columns of the CSV.
const COLUMNS: [&str; 35] = [
    "type",
    "id",
    "timestamp",
    "decision",
    "source",
    "source_pod",
    "source_node",
    "source_address",
    "source_port",
    "source_pid",
    "source_comm",
    "destination",
    "destination_pod",
    "destination_node",
    "destination_address",
    "port",
    "protocol",
    "policy_matched",
    "latency_us",
    "cluster",
    "hook",
    "observer",
    "mode",
    "enforced",
    "revision",
    "reason",
    "proof",
    "count",
    "caller",
    "mfa",
    "incident",
    "change",
    "writer",
    "seq",
    "hash",
];

/// Writes CSV (RFC 4180), oldest first. Returns how many entries were written.
pub async fn csv<T: Trail>(
    trail: &mut T,
    filter: &Filter,
    to: &mut impl Write,
) -> Result<u64, ExportError<T::Error>> {
    write!(to, "{}\r\n", COLUMNS.join(","))?;
    let mut entries = 0;
    loop {
        let found = trail.more().await.map_err(ExportError::Trail)?;
        if found.is_empty() {
            return Ok(entries);
        }
        for found in found {
            let kept = readable(&found)?;
            if filter.takes(&kept.entry) {
                let fields = fields(kept).map(|field| quoted(&field));
                write!(to, "{}\r\n", fields.join(","))?;
                entries += 1;
            }
        }
    }
}

fn fields(kept: &Kept) -> [String; 35] {
    let entry = &kept.entry;
    let record = entry.decision();
    let of = |field: fn(&AuditRecord) -> String| record.map(field).unwrap_or_default();
    let change = entry.change();
    let link = kept.link;
    let either = |decision: Option<String>, change: Option<String>| decision.or(change).unwrap_or_default();
    [
        entry.kind().to_string(),
        entry.id().to_string(),
        entry.timestamp().to_string(),
        of(|r| r.decision.to_string()),
        of(|r| r.source.name().to_owned()),
        of(|r| shown(r.source.pod.as_ref())),
        either(
            record.map(|r| shown(r.source.node.as_ref())),
            change.map(|c| c.node.to_string()),
        ),
        of(|r| shown(r.source.address)),
        of(|r| shown(r.source.port)),
        of(|r| shown(r.source.pid)),
        of(|r| shown(r.source.comm.as_ref())),
        of(|r| r.destination.name().to_owned()),
        of(|r| shown(r.destination.pod.as_ref())),
        of(|r| shown(r.destination.node.as_ref())),
        of(|r| shown(r.destination.address)),
        of(|r| r.destination.port.to_string()),
        of(|r| r.protocol.to_string()),
        of(|r| shown(r.policy_matched.as_ref())),
        of(|r| (r.latency.0 as f64 / 1000.0).to_string()),
        either(
            record.map(|r| r.cluster.to_string()),
            change.map(|c| c.cluster.to_string()),
        ),
        of(|r| r.hook.to_string()),
        of(|r| r.observer.to_string()),
        of(|r| r.mode.to_string()),
        of(|r| r.enforced.to_string()),
        either(
            record.map(|r| r.revision.to_string()),
            change.map(|c| c.revision.to_string()),
        ),
        of(|r| r.reason.to_string()),
        of(|r| r.proof.to_string()),
        of(|r| r.count.to_string()),
        either(
            record.map(|r| shown(r.caller.as_ref())),
            change.map(|c| c.caller.to_string()),
        ),
        of(|r| shown(r.mfa)),
        of(|r| shown(r.incident.as_ref())),
        change.map(|c| c.change.to_string()).unwrap_or_default(),
        shown(link.map(|link| link.writer)),
        shown(link.map(|link| link.seq)),
        shown(link.map(|link| link.hash)),
    ]
}

fn shown(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// A field that stays one field, and that no table calculates: workloads choose the names of their tasks.
fn quoted(field: &str) -> String {
    let formula = field.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let field = if formula {
        format!("\'{field}")
    } else {
        field.to_owned()
    };
    if formula || field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}

/// Looks at a whole trail, and then at what queries and the graph go by. `noted` are the last checkpoints that were kept apart from it; `progress` is told now and then
/// how many entries were looked at.
pub async fn verify<T: Trail>(
    trail: &mut T,
    mut verifier: Verifier,
    noted: &[Noted],
    progress: &mut impl FnMut(u64),
) -> Result<Verifier, T::Error> {
    for Told { what, read } in trail.keys().await? {
        match read {
            Ok(key) => verifier.key(&key),
            Err(cause) => verifier.found(Finding::UnreadableStatement { what, cause }),
        }
    }
    loop {
        let statements = trail.statements().await?;
        if statements.is_empty() {
            break;
        }
        for Told { what, read } in statements {
            match read {
                Ok(Statement::Checkpoint(checkpoint)) => verifier.checkpoint(&checkpoint),
                Ok(Statement::Gap(gap)) => verifier.gap(&gap),
                Err(cause) => verifier.found(Finding::UnreadableStatement { what, cause }),
            }
        }
        progress(0);
    }
    verifier.noted(noted);
    loop {
        let found = trail.more().await?;
        if found.is_empty() {
            break;
        }
        for found in found {
            if let Some(login) = &found.login {
                verifier.inserted(found.writer, found.seq, login);
            }
            match found.kept {
                Ok(kept) => verifier.entry(&kept),
                Err(cause) => verifier.unreadable(found.writer, found.seq, cause),
            }
        }
        progress(verifier.entries());
    }
    while let Some(miscounts) = trail.miscounts().await? {
        for Miscount { what, kept, counted } in miscounts {
            verifier.found(Finding::Miscounted { what, kept, counted });
        }
        progress(verifier.entries());
    }
    Ok(verifier)
}

/// Looks at an export. The first line that is none of ours ends it.
pub fn verify_lines(
    lines: impl Iterator<Item = io::Result<String>>,
    mut verifier: Verifier,
    progress: &mut impl FnMut(u64),
) -> io::Result<Verifier> {
    let mut ended = false;
    for (number, text) in (1_u64..).zip(lines) {
        if ended {
            verifier.found(Finding::Other(format!(
                "line {number}: there is more behind the end of the export"
            )));
            break;
        }
        let text = match text {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                verifier.found(Finding::Other(format!("line {number}: {error}")));
                continue;
            }
            Err(error) => return Err(error),
        };
        if number.is_multiple_of(PROGRESS) {
            progress(verifier.entries());
        }
        match super::verify::read_line(&mut verifier, &text) {
            Ok(end) => ended = end.is_some(),
            Err(error) => verifier.found(Finding::Other(format!("line {number}: {error}"))),
        }
        if number == 1 && text != r#"{"type":"export","format":1}"# {
            verifier.found(Finding::Other(
                "line 1: not the first line of an export".to_owned(),
            ));
        }
    }
    if !ended {
        verifier.found(Finding::Other(
            "the export has no last line: its end was cut off".to_owned(),
        ));
    }
    Ok(verifier)
}

/// What a report says in one line.
pub fn summary(report: &Report) -> String {
    let lost = match report.lost() {
        0 => String::new(),
        lost => format!("; {lost} more were lost, as their writers state"),
    };
    let joined = match report.joined {
        0 => String::new(),
        joined => format!(" with {joined} more decisions in their counts"),
    };
    format!(
        "{} entries{joined}, {} checkpoints, {}{lost}",
        report.entries,
        report.checkpoints,
        match report.count {
            0 => "nothing was changed, removed, moved or inserted".to_owned(),
            1 => "1 finding".to_owned(),
            count => format!("{count} findings"),
        }
    )
}
