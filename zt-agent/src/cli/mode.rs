// SPDX-License-Identifier: Apache-2.0
//! `zt-agent mode`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{ApiArgs, Client, ClientError};
use super::exit::{Exit, Failure};
use super::output::{Format, Output, line};
use crate::app;
use crate::config::{Config, Sources};

/// How long the agent may take: who breaks the glass is in a hurry.
const PATIENCE: Duration = Duration::from_secs(5);

/// The code of the answer that says that the mode was changed and has no record.
const NOT_RECORDED: &str = "mode_not_recorded";

/// `mode …`.
#[derive(Debug, Subcommand)]
pub enum ModeCommand {
    /// Stop refusing on this node now; decisions are still made and recorded
    #[command(
        after_help = "This is recorded. It holds until `zt-agent mode restore`. Where no agent answers, \
        root writes the kernel's switch directly, and the agent records that when it runs again."
    )]
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
    pins: PinArgs,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `mode restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    pins: PinArgs,
    #[command(flatten)]
    output: Output,
}

/// Where the switch itself is, for when no agent answers.
#[derive(Debug, Args)]
pub(super) struct PinArgs {
    /// Where programs and maps are pinned [default: as the configuration says]
    #[arg(long, env = "ZT_BPFFS", value_name = "DIR")]
    bpffs: Option<PathBuf>,
    /// Configuration file [default: /etc/zt/agent.yaml, if it exists]
    #[arg(long, env = "ZT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl PinArgs {
    fn directory(&self) -> PathBuf {
        if let Some(bpffs) = &self.bpffs {
            return bpffs.clone();
        }
        match Config::load(&Sources::of_process(self.config.clone())) {
            Ok(config) => config.bpffs,
            Err(error) => {
                let default = Config::default().bpffs;
                // A configuration that is bad must not keep anybody from breaking the glass.
                eprintln!(
                    "{error}\nthe configuration cannot be used; looking below {}",
                    default.display()
                );
                default
            }
        }
    }
}

pub(super) async fn mode(command: &ModeCommand) -> Result<Exit, Failure> {
    let (api, pins, output, on, said) = match command {
        ModeCommand::Observe(arguments) => (
            &arguments.api,
            &arguments.pins,
            arguments.output,
            true,
            "nothing is refused on this node until `zt-agent mode restore`",
        ),
        ModeCommand::Restore(arguments) => (
            &arguments.api,
            &arguments.pins,
            arguments.output,
            false,
            "workloads are in their configured modes again",
        ),
    };
    let mode = if on { "observe" } else { "restore" };
    let client = Client::new(api)?;
    let request = json!({ "mode": mode });
    let asked = tokio::time::timeout(PATIENCE, client.post("/v1/mode", &request)).await;
    let cause = match asked {
        Ok(Ok(answer)) => {
            match output.format {
                Format::Json => super::output::json(&answer)?,
                Format::Table => line(said)?,
            }
            return Ok(Exit::Done);
        }
        // It is done: that it has no record is to be known, and no reason to write the switch once more.
        Ok(Err(ClientError::Refused {
            code: Some(code),
            message,
            ..
        })) if code == NOT_RECORDED => {
            eprintln!("{message}");
            match output.format {
                Format::Json => {
                    super::output::json(&json!({ "mode": mode, "observe_all": on, "recorded": false }))?;
                }
                Format::Table => line(said)?,
            }
            return Ok(Exit::Done);
        }
        Ok(Err(error)) if is_out(&error) => error.to_string(),
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => format!("the agent ({}) does not answer", api.api),
    };
    let directory = pins.directory();
    eprintln!(
        "{cause}\nwithout the agent: writing the switch below {} directly",
        directory.display()
    );
    let changed = app::break_glass(&directory, on)?;
    let recorded = if changed {
        "the agent records this when it runs again"
    } else {
        "it was so before"
    };
    match output.format {
        Format::Json => super::output::json(
            &json!({ "mode": mode, "observe_all": on, "without_agent": true, "changed": changed }),
        )?,
        Format::Table => line(&format!("{said}; {recorded}"))?,
    }
    Ok(Exit::Done)
}

/// Whether the agent is gone or cannot do it, rather than that it was asked wrongly.
fn is_out(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. }
        | ClientError::Broken { .. }
        | ClientError::Slow { .. }
        | ClientError::NotJson { .. } => true,
        ClientError::Refused { status, .. } => status.is_server_error(),
        ClientError::Url { .. } | ClientError::Tls(_) => false,
    }
}
