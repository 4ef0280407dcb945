// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy replay`: a candidate against the connections that were recorded.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::cli::behind::ServicesArgs;
use crate::cli::client::ApiArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::offline::{self, SettingsArgs};
use crate::cli::output::{Format, Output, Tone, line};
use crate::cli::table::{Cell, Table, printable};
use crate::cli::traffic::{TrafficArgs, print_left_out, shown};
use crate::policy::{self, Undecided};
use crate::traffic::{self, Change, Range, Replayed, Row};

/// Arguments of `policy replay`.
#[derive(Debug, Args)]
#[command(
    after_help = "Each connection that was recorded is judged by the policies of PATH, as the kernel would judge it, and compared with \
    what policy said then. Connections are counted by the hour, each once, and raw sockets like them. One to a Service of several \
    identities or ports is judged by all of them, as the agent, or the file of --services, knows them now.\n\n\
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
    /// identities or ports, if it is not known who they are, fail only with `strict`
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
    services: ServicesArgs,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    api: ApiArgs,
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
    /// Either, or a Service was connected to of which it is not known who stands behind it
    Strict,
}

fn cell(change: Change) -> Cell {
    match change {
        Change::NewlyDenied => Cell::toned("newly denied", Tone::Bad),
        Change::NeedsProof => Cell::toned("needs proof", Tone::Caution),
        Change::NewlyAllowed => Cell::toned("newly allowed", Tone::Good),
        Change::Undecided => Cell::toned("cannot be judged", Tone::Caution),
    }
}

pub(super) fn replay(arguments: &ReplayArgs) -> Result<Exit, Failure> {
    let settings = arguments.settings.config()?.policy_settings();
    let set = offline::set(&arguments.path, &settings)?;
    let fold = traffic::to_judge(&set, &settings);
    let mut range = arguments
        .traffic
        .read(arguments.settings.file(), &arguments.services, &fold)?;
    arguments.services.look_behind(&mut range, &arguments.api)?;
    let table = policy::compile(&set, &range.workloads(), &settings, 1)?;
    let replayed = Replayed::of(&range, &table);
    match arguments.output.format {
        Format::Json => print_json(&replayed, &range)?,
        Format::Table => print(&replayed, &range)?,
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

fn print_json(replayed: &Replayed, range: &Range) -> Result<(), Failure> {
    let sum = |change| {
        let (flows, connections) = replayed.sum(change);
        json!({ "flows": flows, "connections": connections })
    };
    let changes: Vec<_> = replayed
        .rows
        .iter()
        .map(|(row, times)| {
            let mut value = json!(row);
            value["connections"] = json!(times.connections);
            value["first_seen"] = json!(times.first_seen);
            value["last_seen"] = json!(times.last_seen);
            value["addresses"] = json!(times.addresses.told());
            value["address_count"] = json!(times.addresses.count());
            value
        })
        .collect();
    crate::cli::output::json(&json!({
        "flows": replayed.flows,
        "connections": replayed.connections,
        "newly_denied": sum(Change::NewlyDenied),
        "needs_proof": sum(Change::NeedsProof),
        "newly_allowed": sum(Change::NewlyAllowed),
        "undecided": sum(Change::Undecided),
        "left_out": range.left_out,
        "changes": changes,
    }))?;
    Ok(())
}

fn print(replayed: &Replayed, range: &Range) -> Result<(), Failure> {
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
    for (row, times) in &replayed.rows {
        table.row([
            cell(row.change),
            printable(&row.source).into(),
            format!("{}{}", printable(&row.destination), shown(&times.addresses)).into(),
            format!("{}/{}", row.port, row.protocol).into(),
            times.connections.to_string().into(),
            times.first_seen.to_string().into(),
            times.last_seen.to_string().into(),
            row.rule.clone().unwrap_or_else(|| row.reason.clone()).into(),
        ]);
    }
    if !replayed.rows.is_empty() {
        table.print("")?;
        line("")?;
    }
    line(&format!(
        "{} connections looked at, {} different",
        replayed.connections, replayed.flows
    ))?;
    for (change, what) in [
        (Change::NewlyDenied, "would be newly denied"),
        (Change::NeedsProof, "would need proof in the handshake"),
        (Change::NewlyAllowed, "would be newly allowed"),
        (Change::Undecided, "cannot be judged from what is recorded"),
    ] {
        let (flows, connections) = replayed.sum(change);
        if flows > 0 || change == Change::NewlyDenied {
            line(&format!("{connections} {what} ({flows} different)"))?;
        }
    }
    print_left_out(range, "")
}
