// SPDX-License-Identifier: Apache-2.0
//! `zt-agent rollout`: where the rollout stands, one stage on, one stage back, and on where a node had stopped.

mod ahead;
mod change;
mod nodes;
mod show;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{ApiArgs, Client};
use super::exit::{Exit, Failure};
use super::output::{Format, Output, line};
use super::table::plain;

pub(crate) use self::show::why as why_stopped;

/// `rollout …`.
#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// Show the stages, and which of them are in force on this node
    Status(StatusArgs),
    /// Go on to the next stage, or to the one that is named
    #[command(
        after_help = "The document's `spec.stage` is changed where it is kept, as by `zt-agent policy apply`: every node that follows it \
        goes on. Comments in the document are not kept. Where the agent that is asked, or a node that follows it, has stopped of its own \
        accord, a node that follows it is silent, its documents have problems, or the stage selects nobody whom it knows, this fails and \
        changes nothing: see `zt-agent rollout status`. What the stage refuses of the last day's traffic, as far as this agent has recorded it, is said."
    )]
    Advance(AdvanceArgs),
    /// Go back to the stage before, to the one that is named, or to none
    #[command(
        after_help = "The document's `spec.stage` is changed where it is kept, as by `zt-agent policy apply`: every node that follows it \
        goes back. Comments in the document are not kept."
    )]
    Rollback(RollbackArgs),
    /// Have the node that is asked go on as the document says, where it stopped of its own accord
    #[command(
        after_help = "Other nodes are not asked, and the document is not changed. The node's limit (`onDenials`) holds anew. This is recorded."
    )]
    Resume(ResumeArgs),
}

/// Arguments of `rollout status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Exit with 1 if this node, or one that follows it, is not known to be at the stage that the document says
    #[arg(long)]
    fail: bool,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `rollout advance`.
#[derive(Debug, Args)]
pub struct AdvanceArgs {
    /// The stage to be reached, one that is still to come
    #[arg(long, value_name = "STAGE")]
    to: Option<String>,
    /// Go on although a node has stopped or is silent, documents have problems, a stage selects nobody, or one with a limit is passed over
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: ChangeArgs,
}

/// Arguments of `rollout rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// The stage to go back to, one that has been passed
    #[arg(long, value_name = "STAGE", conflicts_with = "all")]
    to: Option<String>,
    /// Go back behind the first stage
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    common: ChangeArgs,
}

/// Arguments of `rollout resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

/// What both have.
#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

pub(super) async fn rollout(command: &RolloutCommand) -> Result<Exit, Failure> {
    match command {
        RolloutCommand::Status(arguments) => {
            let answer = status(&Client::new(&arguments.api)?).await?;
            show::show(&answer, arguments.output.format)?;
            Ok(if arguments.fail && !is_as_said(&answer) {
                Exit::Failed
            } else {
                Exit::Done
            })
        }
        RolloutCommand::Advance(arguments) => change::advance(arguments).await,
        RolloutCommand::Rollback(arguments) => change::rollback(arguments).await,
        RolloutCommand::Resume(arguments) => resume(arguments).await,
    }
}

async fn resume(arguments: &ResumeArgs) -> Result<Exit, Failure> {
    let client = Client::new(&arguments.api)?;
    let answer = client.post("/v1/rollout", &json!({ "action": "resume" })).await?;
    match arguments.output.format {
        Format::Json => super::output::json(&answer)?,
        Format::Table => {
            let revision = plain(&answer["revision"]);
            line(&match answer["stopped_at"].as_str() {
                Some(stage) => {
                    format!("this node had stopped at {stage}, and goes on: revision {revision}")
                }
                None => "this node had not stopped; its limit holds anew".to_owned(),
            })?;
        }
    }
    Ok(Exit::Done)
}

async fn status(client: &Client) -> Result<Value, Failure> {
    Ok(client.get("/v1/rollout", &[]).await?)
}

/// Whether the stage of the document is in force there, and on the nodes that follow.
fn is_as_said(answer: &Value) -> bool {
    let rollout = &answer["rollout"];
    let here = rollout["stage"] == rollout["in_force"];
    here && nodes::are_as_said(answer) && answer["errors"].as_array().is_none_or(Vec::is_empty)
}
