// SPDX-License-Identifier: Apache-2.0
//! `zt-agent mode`.

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{ApiArgs, Client};
use super::exit::{Exit, Failure};
use super::output::{Format, Output, line};

/// `mode …`.
#[derive(Debug, Subcommand)]
pub enum ModeCommand {
    /// Stop refusing on this node now; decisions are still made and recorded
    #[command(after_help = "This is recorded. It holds until `zt-agent mode restore`.")]
    Observe(ObserveArgs),
    /// Refuse again where workloads are configured to enforce
    Restore(RestoreArgs),
}

/// Arguments of `mode observe`.
#[derive(Debug, Args)]
pub struct ObserveArgs {
    /// Every workload of this node; required, for this opens all of them
    #[arg(long, required = true)]
    all: bool,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `mode restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn mode(command: &ModeCommand) -> Result<Exit, Failure> {
    let (api, output, request, said) = match command {
        ModeCommand::Observe(arguments) => {
            let said = "nothing is refused on this node until `zt-agent mode restore`";
            (&arguments.api, arguments.output, "observe", said)
        }
        ModeCommand::Restore(arguments) => (
            &arguments.api,
            arguments.output,
            "restore",
            "workloads are in their configured modes again",
        ),
    };
    let answer = Client::new(api)?
        .post("/v1/mode", &json!({ "mode": request }))
        .await?;
    match output.format {
        Format::Json => super::output::json(&answer)?,
        Format::Table => line(said)?,
    }
    Ok(Exit::Done)
}
