// SPDX-License-Identifier: Apache-2.0
//! `zt-agent audit`.

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::client::{ApiArgs, Client};
use super::decision::{because, party, port, verdict, what_changed};
use super::exit::{Exit, Failure};
use super::output::{Format, Output, Tone, colourful, json, toned};
use super::table::{Cell, Table, plain, printable};
use super::trail;
use super::when::When;
use crate::audit::query::{Filter, PartyFilter};
use crate::audit::record::{Kind, Outcome, TimestampError};

/// `audit …`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Find records, newest first
    Query(QueryArgs),
    /// Write records to a file, oldest first: JSON Lines, CSV or OCSF
    Export(trail::ExportArgs),
    /// Find what was changed, removed, moved or inserted in the trail or in an export
    Verify(trail::VerifyArgs),
    /// Remove the oldest records
    Prune(trail::PruneArgs),
    /// Show what others need to verify this node's records: its first key, with its writers
    Keys(trail::KeysArgs),
    /// Sign checkpoints with a new key from now on
    RotateKey(trail::RotateArgs),
}

/// A verdict of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Verdict {
    /// Allowed by policy
    Allow,
    /// Refused by policy, enforced or not
    Deny,
}

/// A type of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Type {
    /// Something was decided
    Decision,
    /// Another policy is in force
    PolicyChange,
    /// An operator changed the mode of the node
    ModeChange,
    /// A workload has lost its identity, or has another
    IdentityChange,
}

/// Which records.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// Only records of this type
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    kind: Option<Type>,
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
}

/// Arguments of `audit query`.
#[derive(Debug, Args)]
pub struct QueryArgs {
    #[command(flatten)]
    filter: FilterArgs,
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
    match command {
        AuditCommand::Query(arguments) => query(arguments).await,
        AuditCommand::Export(arguments) => trail::export(arguments).await,
        AuditCommand::Verify(arguments) => trail::verify(arguments).await,
        AuditCommand::Prune(arguments) => trail::prune(arguments).await,
        AuditCommand::Keys(arguments) => trail::keys(arguments),
        AuditCommand::RotateKey(arguments) => trail::rotate_key(arguments),
    }
}

async fn query(arguments: &QueryArgs) -> Result<Exit, Failure> {
    let answer = Client::new(&arguments.api)?
        .get("/v1/audit", &parameters(arguments))
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
        "HOOK",
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

fn row(record: &Value) -> [Cell; 8] {
    match record["type"].as_str() {
        Some("unreadable") => return unreadable(record),
        Some(kind) if kind != "decision" => return change(record, kind),
        _ => {}
    }
    [
        plain(&record["timestamp"]).into(),
        verdict(record),
        party(&record["source"]).into(),
        party(&record["destination"]).into(),
        port(record).into(),
        plain(&record["hook"]).into(),
        because(record).into(),
        plain(&record["count"]).into(),
    ]
}

/// Who changed what.
fn change(record: &Value, kind: &str) -> [Cell; 8] {
    [
        plain(&record["timestamp"]).into(),
        Cell::toned(printable(kind), Tone::Caution),
        plain(&record["caller"]).into(),
        plain(&record["node"]).into(),
        "-".to_owned().into(),
        "-".to_owned().into(),
        what_changed(record).into(),
        "1".to_owned().into(),
    ]
}

/// Who inserted what cannot be read, and what is wrong with it.
fn unreadable(record: &Value) -> [Cell; 8] {
    [
        plain(&record["timestamp"]).into(),
        Cell::toned("unreadable", Tone::Bad),
        plain(&record["login"]).into(),
        "-".to_owned().into(),
        "-".to_owned().into(),
        "-".to_owned().into(),
        plain(&record["cause"]).into(),
        "1".to_owned().into(),
    ]
}

impl FilterArgs {
    /// For the store.
    pub(super) fn filter(&self) -> Result<Filter, Failure> {
        let usage = |what: &str, error: String| Failure::Usage(format!("--{what}: {error}"));
        let time = |what, when: &Option<When>| {
            let time = when.as_ref().map(|when| when.rfc3339().parse());
            time.transpose()
                .map_err(|error: TimestampError| usage(what, error.to_string()))
        };
        let party = |what, text: &Option<String>| {
            let party = text.as_ref().map(|text| text.parse::<PartyFilter>());
            party.transpose().map_err(|error| usage(what, error))
        };
        Ok(Filter {
            kind: self.kind.map(Type::kind),
            since: time("since", &self.since)?,
            until: time("until", &self.until)?,
            decision: self.decision.map(Verdict::outcome),
            enforced: self.enforced,
            source: party("source", &self.source)?,
            destination: party("destination", &self.destination)?,
            port: self.port,
            policy: self.policy.clone(),
            node: self.node.clone(),
        })
    }

    /// For the API.
    fn parameters(&self) -> [(&'static str, Option<String>); 10] {
        [
            ("type", self.kind.map(|kind| kind.kind().to_string())),
            ("since", self.since.map(When::rfc3339)),
            ("until", self.until.map(When::rfc3339)),
            (
                "decision",
                self.decision.map(|verdict| verdict.outcome().to_string()),
            ),
            ("enforced", self.enforced.map(|enforced| enforced.to_string())),
            ("source", self.source.clone()),
            ("destination", self.destination.clone()),
            ("port", self.port.map(|port| port.to_string())),
            ("policy", self.policy.clone()),
            ("node", self.node.clone()),
        ]
    }
}

impl Type {
    const fn kind(self) -> Kind {
        match self {
            Self::Decision => Kind::Decision,
            Self::PolicyChange => Kind::PolicyChange,
            Self::ModeChange => Kind::ModeChange,
            Self::IdentityChange => Kind::IdentityChange,
        }
    }
}

impl Verdict {
    const fn outcome(self) -> Outcome {
        match self {
            Self::Allow => Outcome::Allow,
            Self::Deny => Outcome::Deny,
        }
    }
}

fn parameters(arguments: &QueryArgs) -> Vec<(&'static str, String)> {
    let page = [
        ("limit", Some(arguments.limit.to_string())),
        ("cursor", arguments.cursor.clone()),
    ];
    let parameters = arguments.filter.parameters().into_iter().chain(page);
    parameters
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}
