// SPDX-License-Identifier: Apache-2.0
//! `zt-agent audit`.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::client::{ApiArgs, Client};
use super::decision::{because, party, port, verdict};
use super::exit::{Exit, Failure};
use super::output::{Format, Output, Tone, colourful, json, toned};
use super::table::{Cell, Table, plain};
use super::when::When;

/// `audit …`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Find recorded decisions, newest first
    Query(QueryArgs),
}

/// A verdict of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Verdict {
    /// Allowed by policy
    Allow,
    /// Refused by policy, enforced or not
    Deny,
}

/// Arguments of `audit query`.
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// From this time on: RFC 3339, or how long ago (30s, 10m, 2h, 7d)
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// Before this time
    #[arg(long, value_name = "TIME")]
    until: Option<When>,
    /// With this verdict of policy
    #[arg(long, value_enum, ignore_case = true)]
    decision: Option<Verdict>,
    /// Only where the verdict happened (true) or was only observed (false)
    #[arg(long, value_name = "BOOL")]
    enforced: Option<bool>,
    /// From this SPIFFE ID or entity; `*` stands for a whole path segment
    #[arg(long, value_name = "PARTY")]
    source: Option<String>,
    /// To this SPIFFE ID or entity
    #[arg(long, value_name = "PARTY")]
    destination: Option<String>,
    /// To this target port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Decided by this policy, or by this rule (POLICY/rule-N)
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// On this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// How many records at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Go on where an earlier answer ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn audit(command: &AuditCommand) -> Result<Exit, Failure> {
    let AuditCommand::Query(arguments) = command;
    let answer = Client::new(&arguments.api)?
        .get("/v1/audit", &query(arguments))
        .await?;
    if arguments.output.format == Format::Json {
        json(&answer)?;
        return Ok(Exit::Done);
    }
    let records = answer["records"]
        .as_array()
        .ok_or(Failure::Answer { field: "records" })?;
    let mut table = Table::new(&[
        "TIME",
        "DECISION",
        "SOURCE",
        "DESTINATION",
        "PORT",
        "RULE",
        "COUNT",
    ]);
    for record in records {
        table.row(row(record));
    }
    table.print("no such records")?;
    if let Some(cursor) = answer["next_cursor"].as_str() {
        eprintln!(
            "{}",
            toned(
                &format!("there are more: --cursor {cursor}"),
                Tone::Faint,
                colourful()
            )
        );
    }
    Ok(Exit::Done)
}

fn row(record: &Value) -> [Cell; 7] {
    [
        plain(&record["timestamp"]).into(),
        verdict(record),
        party(&record["source"]).into(),
        party(&record["destination"]).into(),
        port(record).into(),
        because(record).into(),
        plain(&record["count"]).into(),
    ]
}

fn query(arguments: &QueryArgs) -> Vec<(&'static str, String)> {
    let verdict = |verdict: Verdict| match verdict {
        Verdict::Allow => "ALLOW".to_owned(),
        Verdict::Deny => "DENY".to_owned(),
    };
    let parameters = [
        ("since", arguments.since.map(When::rfc3339)),
        ("until", arguments.until.map(When::rfc3339)),
        ("decision", arguments.decision.map(verdict)),
        (
            "enforced",
            arguments.enforced.map(|enforced| enforced.to_string()),
        ),
        ("source", arguments.source.clone()),
        ("destination", arguments.destination.clone()),
        ("port", arguments.port.map(|port| port.to_string())),
        ("policy", arguments.policy.clone()),
        ("node", arguments.node.clone()),
        ("limit", Some(arguments.limit.to_string())),
        ("cursor", arguments.cursor.clone()),
    ];
    parameters
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}
