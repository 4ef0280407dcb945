// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy replay`: a candidate against the connections that were recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use crate::audit::query::Span;
use crate::audit::record::Timestamp;
use crate::cli::exit::{Exit, Failure};
use crate::cli::offline::{self, SettingsArgs};
use crate::cli::output::{Format, Output, Tone, line};
use crate::cli::table::{Cell, Table, printable};
use crate::cli::traffic::{Range, Recorded, TrafficArgs};
use crate::policy::{self, AllowTable, Outcome, Undecided};

/// Addresses of one row that are shown to people.
const SHOWN: usize = 2;

/// Arguments of `policy replay`.
#[derive(Debug, Args)]
#[command(
    after_help = "Each connection that was recorded is judged by the policies of PATH, as the kernel would judge it, and compared with \
    what policy said then. Connections are counted by the hour, each once.\n\n\
    Examples:\n  \
    zt-agent policy replay policies/ --since 7d\n  \
    zt-agent policy replay policies/ --since 7d --fail   # 1 if anything would be newly denied\n  \
    zt-agent policy replay policies/ --store postgres://… --since 30d --fail=any -o json\n  \
    zt-agent graph --since 7d -o json | zt-agent policy replay policies/ --traffic -\n\n\
    Exits with 1 where nothing is recorded, 64 if a policy cannot be read. Nothing is changed."
)]
pub struct ReplayArgs {
    /// A directory of policies or one file: the candidate
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Exit with 1 if anything would be newly denied (or need proof), newly allowed, or either; connections to Services of several
    /// identities or ports, which cannot be judged, fail only with `strict`
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "denied"
    )]
    fail: Option<FailOn>,
    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    output: Output,
}

/// What is a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// What was allowed would be denied, or cannot be judged
    Denied,
    /// What was denied would be allowed
    Allowed,
    /// Either
    Any,
    /// Either, or a Service of several identities or ports was connected to
    Strict,
}

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    NewlyDenied,
    NeedsProof,
    NewlyAllowed,
    Undecided,
}

impl Change {
    fn cell(self) -> Cell {
        match self {
            Self::NewlyDenied => Cell::toned("newly denied", Tone::Bad),
            Self::NeedsProof => Cell::toned("needs proof", Tone::Caution),
            Self::NewlyAllowed => Cell::toned("newly allowed", Tone::Good),
            Self::Undecided => Cell::toned("cannot be judged", Tone::Caution),
        }
    }
}

/// What rows are one line for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Row {
    change: Change,
    source: String,
    destination: String,
    port: u16,
    protocol: String,
    /// The candidate's rule.
    rule: Option<String>,
    /// Why.
    reason: String,
}

/// How often, when, and where.
#[derive(Clone, Debug, Serialize)]
struct Times {
    connections: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    /// Of ends without a name of their own.
    addresses: BTreeSet<IpAddr>,
}

/// What a replay finds.
#[derive(Debug, Default)]
struct Replayed {
    rows: BTreeMap<Row, Times>,
    /// Connections that were looked at, and how many different.
    connections: u64,
    flows: u64,
}

pub(super) fn replay(arguments: &ReplayArgs) -> Result<Exit, Failure> {
    let settings = arguments.settings.config()?.policy_settings();
    let set = offline::set(&arguments.path, &settings)?;
    let range = arguments.traffic.read(arguments.settings.file())?;
    let table = policy::compile(&set, &workloads(&range.recorded), &settings, 1)?;
    let mut replayed = Replayed::default();
    for recorded in &range.recorded {
        replayed.take(recorded, &table);
    }
    match arguments.output.format {
        Format::Json => replayed.print_json(&range)?,
        Format::Table => replayed.print(&range)?,
    }
    let wanted: &[Change] = match arguments.fail {
        None => &[],
        Some(FailOn::Denied) => &[Change::NewlyDenied, Change::NeedsProof, Change::Undecided],
        Some(FailOn::Allowed) => &[Change::NewlyAllowed],
        Some(FailOn::Any | FailOn::Strict) => &[
            Change::NewlyDenied,
            Change::NeedsProof,
            Change::NewlyAllowed,
            Change::Undecided,
        ],
    };
    let service = Undecided::Service.to_string();
    let strict = arguments.fail == Some(FailOn::Strict);
    let counts = |row: &Row| strict || row.change != Change::Undecided || row.reason != service;
    let mut rows = replayed.rows.keys();
    let fails = rows.any(|row| wanted.contains(&row.change) && counts(row));
    Ok(if fails { Exit::Failed } else { Exit::Done })
}

/// Those whom patterns must stand for.
pub(super) fn workloads(recorded: &[Recorded]) -> BTreeSet<crate::spiffe_id::SpiffeId> {
    let flows = recorded.iter().filter_map(|recorded| recorded.flow.as_ref().ok());
    flows.flat_map(policy::SeenFlow::workloads).cloned().collect()
}

impl Replayed {
    fn take(&mut self, recorded: &Recorded, table: &AllowTable) {
        let refused = recorded.denied.saturating_add(recorded.would_deny);
        let allowed_span = recorded.allowed_span();
        let refused_span = recorded.refused_span();
        self.connections = self.connections.saturating_add(recorded.count());
        self.flows += u64::from(recorded.count() > 0);
        let judged = recorded.flow.as_ref().map_err(|why| *why);
        match judged.and_then(|flow| flow.judge(table)) {
            // No policy could say anything else.
            Err(Undecided::Protocol) => {}
            Err(why) => self.add(
                recorded,
                Change::Undecided,
                (recorded.count(), recorded.span),
                None,
                &why.to_string(),
            ),
            Ok(decision) => {
                let mut decided = |change, count, span| {
                    let rule = decision.rule.as_deref();
                    self.add(recorded, change, (count, span), rule, decision.reason.name());
                };
                match Outcome::from(&decision) {
                    Outcome::Deny => decided(Change::NewlyDenied, recorded.allowed, allowed_span),
                    Outcome::Allow => decided(Change::NewlyAllowed, refused, refused_span),
                    Outcome::AllowWithProof => {
                        decided(Change::NeedsProof, recorded.allowed, allowed_span);
                        // What proved nothing then is no better off with another rule that asks for proof.
                        let others = refused.saturating_sub(recorded.unproven);
                        decided(Change::NewlyAllowed, others, refused_span);
                    }
                }
            }
        }
    }

    fn add(
        &mut self,
        recorded: &Recorded,
        change: Change,
        (count, span): (u64, Span),
        rule: Option<&str>,
        reason: &str,
    ) {
        if count == 0 {
            return;
        }
        let row = Row {
            change,
            source: recorded.source.clone(),
            destination: recorded.destination.clone(),
            port: recorded.port,
            protocol: recorded.protocol.clone(),
            rule: rule.map(str::to_owned),
            reason: reason.to_owned(),
        };
        let times = self.rows.entry(row).or_insert_with(|| Times {
            connections: 0,
            first_seen: span.first,
            last_seen: span.last,
            addresses: BTreeSet::new(),
        });
        times.connections = times.connections.saturating_add(count);
        times.first_seen = times.first_seen.min(span.first);
        times.last_seen = times.last_seen.max(span.last);
        times.addresses.extend(recorded.address);
    }

    /// Different connections and connections of one kind.
    fn sum(&self, change: Change) -> (usize, u64) {
        let of = self.rows.iter().filter(|(row, _)| row.change == change);
        of.fold((0, 0), |(rows, sum), (_, times)| {
            (rows + 1, sum.saturating_add(times.connections))
        })
    }

    fn print_json(&self, range: &Range) -> Result<(), Failure> {
        let sum = |change| {
            let (flows, connections) = self.sum(change);
            json!({ "flows": flows, "connections": connections })
        };
        let changes: Vec<_> = self
            .rows
            .iter()
            .map(|(row, times)| {
                let mut value = json!(row);
                value["connections"] = json!(times.connections);
                value["first_seen"] = json!(times.first_seen);
                value["last_seen"] = json!(times.last_seen);
                value["addresses"] = json!(times.addresses);
                value
            })
            .collect();
        crate::cli::output::json(&json!({
            "flows": self.flows,
            "connections": self.connections,
            "newly_denied": sum(Change::NewlyDenied),
            "needs_proof": sum(Change::NeedsProof),
            "newly_allowed": sum(Change::NewlyAllowed),
            "undecided": sum(Change::Undecided),
            "left_out": range.left_out,
            "changes": changes,
        }))?;
        Ok(())
    }

    fn print(&self, range: &Range) -> Result<(), Failure> {
        let mut table = Table::new(&[
            "CHANGE",
            "SOURCE",
            "DESTINATION",
            "PORT",
            "COUNT",
            "FIRST SEEN",
            "LAST SEEN",
            "RULE",
        ]);
        for (row, times) in &self.rows {
            table.row([
                row.change.cell(),
                printable(&row.source).into(),
                format!("{}{}", printable(&row.destination), shown(&times.addresses)).into(),
                format!("{}/{}", row.port, row.protocol).into(),
                times.connections.to_string().into(),
                times.first_seen.to_string().into(),
                times.last_seen.to_string().into(),
                row.rule.clone().unwrap_or_else(|| row.reason.clone()).into(),
            ]);
        }
        if !self.rows.is_empty() {
            table.print("")?;
            line("")?;
        }
        line(&format!(
            "{} connections looked at, {} different",
            self.connections, self.flows
        ))?;
        for (change, what) in [
            (Change::NewlyDenied, "would be newly denied"),
            (Change::NeedsProof, "would need proof in the handshake"),
            (Change::NewlyAllowed, "would be newly allowed"),
            (Change::Undecided, "cannot be judged from what is recorded"),
        ] {
            let (flows, connections) = self.sum(change);
            if flows > 0 || change == Change::NewlyDenied {
                line(&format!("{connections} {what} ({flows} different)"))?;
            }
        }
        range.print_left_out("")
    }
}

fn shown(addresses: &BTreeSet<IpAddr>) -> String {
    if addresses.is_empty() {
        return String::new();
    }
    let first: Vec<String> = addresses.iter().take(SHOWN).map(ToString::to_string).collect();
    match addresses.len().saturating_sub(SHOWN) {
        0 => format!(" ({})", first.join(", ")),
        more => format!(" ({}, {more} more)", first.join(", ")),
    }
}
