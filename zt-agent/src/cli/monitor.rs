// SPDX-License-Identifier: Apache-2.0
//! `zt-agent monitor`: a view where standard output is a terminal, plain lines elsewhere.

mod details;
mod draw;
mod edges;
mod feed;
mod filter;
mod keys;
mod parsed;
mod row;
mod sample;
mod terminal;
mod view;

use std::io::{self, IsTerminal as _};

use clap::Args;
use serde_json::Value;

use super::client::{ApiArgs, Client, EventStream};
use super::decision;
use super::exit::{Exit, Failure};
use super::output::{Format, Output, Tone, colourful, line, toned};
use super::table::printable;
use crate::spiffe_id::{Pattern, SpiffeId};

/// Arguments of `monitor`.
#[derive(Debug, Args)]
#[command(
    after_help = "On a terminal this is a view: `/` filters as you type, space holds it, Enter shows a decision with its rule, `?` \
    says what else there is. The screen shows a sample where decisions come faster than anybody reads, and says of how many; counts \
    and the trail have all of them. Elsewhere, and with --plain or -o json, it prints a line for each.\n\n\
    Examples:\n  \
    zt-agent monitor --denied\n  \
    zt-agent monitor --identity 'spiffe://hanzo.ai/hanzo-k8s/hanzo/*'\n  \
    zt-agent monitor -o json | jq 'select(.reason == \"no_rule\")'"
)]
pub struct MonitorArgs {
    /// Only decisions to refuse, those that were only observed included
    #[arg(long)]
    denied: bool,
    /// Only where one end is this SPIFFE ID; `*` stands for a whole path segment
    #[arg(long, value_name = "PATTERN", value_parser = |text: &str| Pattern::parse(text).map_err(|error| error.to_string()))]
    identity: Option<Pattern>,
    /// Print lines on a terminal, too
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

/// Where decisions come from.
const STREAM: &str = "/v1/decisions/stream";

pub(super) async fn monitor(arguments: &MonitorArgs) -> Result<Exit, Failure> {
    let client = Client::new(&arguments.api)?;
    let query = arguments.query();
    // An agent that is not there, or refuses, is told before the screen changes.
    let events = client.events(STREAM, &query).await?;
    if arguments.is_for_lines() {
        return lines(arguments, events).await;
    }
    terminal::run(client, query, events).await
}

impl MonitorArgs {
    /// What is asked of the agent.
    fn query(&self) -> Vec<(&'static str, String)> {
        let denied = self.denied.then(|| ("denied", "true".to_owned()));
        let identity = self
            .identity
            .as_ref()
            .map(|pattern| ("identity", pattern.to_string()));
        denied.into_iter().chain(identity).collect()
    }

    /// Whether lines are wanted, or nothing else is possible.
    fn is_for_lines(&self) -> bool {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        self.plain
            || self.output.format == Format::Json
            || dumb
            || !(io::stdout().is_terminal() && io::stdin().is_terminal())
    }
}

async fn lines(arguments: &MonitorArgs, mut events: EventStream) -> Result<Exit, Failure> {
    let colour = colourful();
    while let Some(event) = events.next().await? {
        // Anything but a record is a notice, of records that came faster than they were read.
        if !feed::is_record(&event) {
            let notice = printable(&format!("{}: {}", event.name, event.data));
            eprintln!("{}", toned(&notice, Tone::Caution, colour));
            continue;
        }
        let Ok(record) = serde_json::from_str::<Value>(&event.data) else {
            return Err(Failure::Answer {
                field: "data as JSON",
            });
        };
        // An agent of another version might not know what was asked of it.
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

#[cfg(test)]
mod tests;
