// SPDX-License-Identifier: Apache-2.0
//! `zt-agent monitor`.

use clap::Args;
use serde_json::Value;

use super::client::{ApiArgs, Client};
use super::decision;
use super::exit::{Exit, Failure};
use super::output::{Format, Output, Tone, colourful, line, toned};
use crate::spiffe_id::{Pattern, SpiffeId};

/// Arguments of `monitor`.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// Only decisions to refuse, those that were only observed included
    #[arg(long)]
    denied: bool,
    /// Only where one end is this SPIFFE ID; `*` stands for a whole path segment
    #[arg(long, value_name = "PATTERN", value_parser = |text: &str| Pattern::parse(text).map_err(|error| error.to_string()))]
    identity: Option<Pattern>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn monitor(arguments: &MonitorArgs) -> Result<Exit, Failure> {
    let client = Client::new(&arguments.api)?;
    let mut events = client.events("/v1/decisions/stream", &[]).await?;
    let colour = colourful();
    while let Some(event) = events.next().await? {
        // Anything but a record is a notice, of records that this reader was too slow for.
        if !matches!(event.name.as_str(), "" | "message" | "decision") {
            eprintln!(
                "{}",
                toned(&format!("{}: {}", event.name, event.data), Tone::Caution, colour)
            );
            continue;
        }
        let Ok(record) = serde_json::from_str::<Value>(&event.data) else {
            return Err(Failure::Answer {
                field: "data as JSON",
            });
        };
        if !wanted(arguments, &record) {
            continue;
        }
        match arguments.output.format {
            Format::Json => line(&record.to_string())?,
            Format::Table => line(&decision::line(&record, colour))?,
        }
    }
    Err(Failure::NotFound(
        "the agent ended the stream; it is stopping, or was restarted".to_owned(),
    ))
}

fn wanted(arguments: &MonitorArgs, record: &Value) -> bool {
    if arguments.denied && record["decision"] != "DENY" {
        return false;
    }
    let Some(pattern) = &arguments.identity else {
        return true;
    };
    ["source", "destination"].iter().any(|end| {
        let id = record[*end]["spiffe_id"]
            .as_str()
            .and_then(|text| SpiffeId::parse(text).ok());
        id.is_some_and(|id| pattern.matches(&id))
    })
}
