// SPDX-License-Identifier: Apache-2.0
//! `zt-agent identity`.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{ApiArgs, Client};
use super::exit::{Exit, Failure};
use super::output::{Format, Output, Tone, json, line};
use super::table::{Cell, Table, pairs, plain};
use crate::spiffe_id::SpiffeId;

/// `identity …`.
#[derive(Debug, Subcommand)]
pub enum IdentityCommand {
    /// List the identities that this node knows
    List(ListArgs),
    /// Show everything about one identity
    Show(ShowArgs),
    /// List virtual addresses of Kubernetes Services and who stands behind them
    Services(ListArgs),
}

/// Arguments of `identity list` and `identity services`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `identity show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A SPIFFE ID, or its number as bpftool prints it (decimal, or hexadecimal with 0x)
    #[arg(value_name = "ID|NUMBER")]
    identity: String,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn identity(command: &IdentityCommand) -> Result<Exit, Failure> {
    match command {
        IdentityCommand::List(arguments) => list(arguments).await,
        IdentityCommand::Show(arguments) => show(arguments).await,
        IdentityCommand::Services(arguments) => services(arguments).await,
    }
}

async fn list(arguments: &ListArgs) -> Result<Exit, Failure> {
    let answer = Client::new(&arguments.api)?.get("/v1/identities", &[]).await?;
    if arguments.output.format == Format::Json {
        json(&answer)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["SPIFFE ID", "NUMBER", "MODE", "CGROUP", "ADDRESSES"]);
    for identity in identities(&answer)? {
        table.row([
            plain(&identity["spiffe_id"]).into(),
            plain(&identity["number"]).into(),
            mode(identity),
            plain(&identity["cgroup"]).into(),
            plain(&identity["addresses"]).into(),
        ]);
    }
    table.print("no identities: see identity.file of the configuration")?;
    Ok(Exit::Done)
}

async fn show(arguments: &ShowArgs) -> Result<Exit, Failure> {
    let number = number(&arguments.identity).map_err(Failure::Usage)?;
    let answer = Client::new(&arguments.api)?.get("/v1/identities", &[]).await?;
    let is_it = |identity: &&Value| match &identity["number"] {
        Value::Number(found) => found.as_u64() == Some(number),
        Value::String(found) => parse_number(found) == Some(number),
        _ => false,
    };
    let services = answer["services"].as_array().into_iter().flatten();
    let found: Vec<_> = identities(&answer)?
        .iter()
        .chain(services)
        .filter(is_it)
        .collect();
    if found.is_empty() {
        let message = format!(
            "{} (number {number}) is not known on this node",
            arguments.identity
        );
        return Err(Failure::NotFound(message));
    }
    if arguments.output.format == Format::Json {
        json(&found)?;
        return Ok(Exit::Done);
    }
    for (index, identity) in found.iter().enumerate() {
        if index > 0 {
            line("")?;
        }
        let fields = identity.as_object().into_iter().flatten();
        let cells: Vec<_> = fields
            .map(|(name, value)| (name.as_str(), Cell::from(plain(value))))
            .collect();
        pairs(&cells)?;
    }
    Ok(Exit::Done)
}

async fn services(arguments: &ListArgs) -> Result<Exit, Failure> {
    let answer = Client::new(&arguments.api)?.get("/v1/identities", &[]).await?;
    let services = answer["services"]
        .as_array()
        .ok_or(Failure::Answer { field: "services" })?;
    if arguments.output.format == Format::Json {
        json(&answer["services"])?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["SERVICE", "ADDRESS", "PORT", "TARGET PORT", "NUMBER", "BACKENDS"]);
    for service in services {
        let port = format!("{}/{}", plain(&service["port"]), plain(&service["protocol"]));
        table.row([
            plain(&service["service"]).into(),
            plain(&service["address"]).into(),
            port.into(),
            plain(&service["target_port"]).into(),
            plain(&service["number"]).into(),
            backends(service),
        ]);
    }
    table.print("no virtual addresses: see identity.source of the configuration")?;
    Ok(Exit::Done)
}

/// Who is behind a virtual address; several are what one looks for.
fn backends(service: &Value) -> Cell {
    let names: Vec<String> = service["backends"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|backend| {
            let who = ["spiffe_id", "entity", "address"].map(|field| backend[field].as_str());
            let who = who.into_iter().flatten().next().unwrap_or("-");
            format!("{who}:{}", plain(&backend["port"]))
        })
        .collect();
    let text = names.join(", ");
    match service["group"].as_bool() {
        Some(true) => Cell::toned(text, Tone::Caution),
        _ => text.into(),
    }
}

fn identities(answer: &Value) -> Result<&Vec<Value>, Failure> {
    answer["identities"]
        .as_array()
        .ok_or(Failure::Answer { field: "identities" })
}

fn mode(identity: &Value) -> Cell {
    match identity["mode"].as_str() {
        Some("enforce") => Cell::toned("enforce", Tone::Good),
        Some("observe") => Cell::toned("observe", Tone::Caution),
        _ => plain(&identity["mode"]).into(),
    }
}

/// The number that `text` is or has.
fn number(text: &str) -> Result<u64, String> {
    if let Some(number) = parse_number(text) {
        return Ok(number);
    }
    match SpiffeId::parse(text) {
        Ok(id) => Ok(id.number()),
        Err(error) => Err(format!("`{text}` is neither a number nor a SPIFFE ID: {error}")),
    }
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
