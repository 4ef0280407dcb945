// SPDX-License-Identifier: Apache-2.0
//! `zt-agent evaluate`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use super::client::{ApiArgs, Client};
use super::exit::{Exit, Failure};
use super::offline::{self, SettingsArgs};
use super::output::{Format, Output, Tone};
use super::party::NamedParty;
use super::table::{Cell, pairs, plain};
use crate::policy::Protocol;

/// Arguments of `evaluate`.
#[derive(Debug, Args)]
#[command(
    after_help = "A party is a SPIFFE ID, an entity (host, remote-node, kube-apiserver, world, unknown), an \
    IP address, or cidr:NETWORK.\n\nThe exit code is 0 whatever the answer, 1 for a refusal with --fail."
)]
pub struct EvaluateArgs {
    /// Who connects
    #[arg(long, value_name = "PARTY")]
    from: NamedParty,
    /// To whom
    #[arg(long, value_name = "PARTY")]
    to: NamedParty,
    /// To which target port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// TCP or UDP
    #[arg(long, default_value = "TCP", value_parser = protocol)]
    protocol: Protocol,
    /// Ask these files instead of the agent: a directory of policies, or one file
    #[arg(long, value_name = "PATH")]
    policy: Option<PathBuf>,
    /// Exit with 1 if the answer is a refusal
    #[arg(long)]
    fail: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

fn protocol(text: &str) -> Result<Protocol, String> {
    Protocol::from_name(&text.to_uppercase()).ok_or_else(|| "must be TCP or UDP".to_owned())
}

pub(super) fn evaluate(arguments: &EvaluateArgs) -> Result<Exit, Failure> {
    let answer = match &arguments.policy {
        Some(path) => from_files(arguments, path)?,
        None => super::block_on(from_agent(arguments))?,
    };
    let Some(decision) = answer["decision"].as_str() else {
        return Err(Failure::Answer { field: "decision" });
    };
    match arguments.output.format {
        Format::Json => super::output::json(&answer)?,
        Format::Table => print(decision, &answer)?,
    }
    Ok(if arguments.fail && decision != "ALLOW" {
        Exit::Failed
    } else {
        Exit::Done
    })
}

async fn from_agent(arguments: &EvaluateArgs) -> Result<Value, Failure> {
    let mut destination = arguments.to.json();
    destination["port"] = json!(arguments.port);
    destination["protocol"] = json!(arguments.protocol.name());
    let request = json!({ "source": arguments.from.json(), "destination": destination });
    Ok(Client::new(&arguments.api)?
        .post("/v1/evaluate", &request)
        .await?)
}

/// The same answer as the agent's, but for the mode, which is a matter of the node.
fn from_files(arguments: &EvaluateArgs, path: &Path) -> Result<Value, Failure> {
    let settings = arguments.settings.config()?.policy_settings();
    let others = [&arguments.from, &arguments.to]
        .into_iter()
        .filter_map(NamedParty::spiffe)
        .cloned()
        .collect();
    let table = offline::load(path, &settings, &others)?.table;
    let named = |party: &NamedParty| {
        Failure::NotFound(format!(
            "no rule in {} names {}",
            path.display(),
            plain(&party.json()["entity"])
        ))
    };
    let source = arguments.from.of(&table).ok_or_else(|| named(&arguments.from))?;
    let destination = arguments.to.of(&table).ok_or_else(|| named(&arguments.to))?;
    let start = Instant::now();
    let decision = table.evaluate(source, destination, arguments.port, arguments.protocol);
    let latency = start.elapsed();
    Ok(json!({
        "decision": if decision.allowed { "ALLOW" } else { "DENY" },
        "policy_matched": decision.rule.as_deref(),
        "mode": null,
        "enforced": null,
        "revision": null,
        "reason": decision.reason.name(),
        "latency_us": latency.as_nanos() as f64 / 1000.0,
    }))
}

fn print(decision: &str, answer: &Value) -> Result<(), Failure> {
    let tone = if decision == "ALLOW" {
        Tone::Good
    } else {
        Tone::Bad
    };
    let mode = match (answer["mode"].as_str(), answer["enforced"].as_bool()) {
        (None, _) => "-".to_owned(),
        (Some(mode), Some(false)) => format!("{mode} (not enforced)"),
        (Some(mode), _) => mode.to_owned(),
    };
    Ok(pairs(&[
        ("decision", Cell::toned(decision, tone)),
        ("rule", plain(&answer["policy_matched"]).into()),
        ("reason", plain(&answer["reason"]).into()),
        ("mode", mode.into()),
        ("revision", plain(&answer["revision"]).into()),
    ])?)
}
