// SPDX-License-Identifier: Apache-2.0
//! `zt-agent evaluate`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use super::client::{ApiArgs, Client};
use super::exit::{Exit, Failure};
use super::offline::{self, SettingsArgs};
use super::output::{Format, Output, Tone};
use super::table::{Cell, pairs, plain};
use crate::policy::{NamedParty, OperatorRequest, Protocol};

/// Arguments of `evaluate`.
#[derive(Debug, Args)]
#[command(
    after_help = "A party is a SPIFFE ID, an entity (host, remote-node, kube-apiserver, world, unknown), an \
    IP address, or cidr:NETWORK.\n\nThe exit code is 0 whatever the answer, 1 for a refusal with --fail."
)]
pub struct EvaluateArgs {
    /// Who connects
    #[arg(long, value_name = "PARTY", requires_all = ["to", "port"], required_unless_present = "operator_role")]
    from: Option<NamedParty>,
    /// To whom
    #[arg(long, value_name = "PARTY", requires = "from")]
    to: Option<NamedParty>,
    /// To which target port
    #[arg(long, requires = "from", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// TCP or UDP
    #[arg(long, default_value = "TCP", value_parser = protocol)]
    protocol: Protocol,
    #[command(flatten)]
    operator: OperatorArgs,
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

/// What an operator wants to do.
#[derive(Debug, Args)]
#[command(next_help_heading = "Operators")]
struct OperatorArgs {
    /// An operator of this role, instead of a workload
    #[arg(long, value_name = "ROLE", requires_all = ["service", "action"], conflicts_with = "from")]
    operator_role: Option<String>,
    /// wants to do something to this service:
    #[arg(long, requires = "operator_role")]
    service: Option<String>,
    /// this,
    #[arg(long, requires = "operator_role")]
    action: Option<String>,
    /// with a second factor,
    #[arg(long, requires = "operator_role")]
    mfa: bool,
    /// for this incident
    #[arg(long, value_name = "ID", requires = "operator_role")]
    incident: Option<String>,
}

/// What is asked.
enum Question<'a> {
    Connect {
        from: &'a NamedParty,
        to: &'a NamedParty,
        port: u16,
        protocol: Protocol,
    },
    Operate(OperatorRequest<'a>),
}

impl EvaluateArgs {
    fn question(&self) -> Result<Question<'_>, Failure> {
        let operator = &self.operator;
        if let (Some(role), Some(service), Some(action)) =
            (&operator.operator_role, &operator.service, &operator.action)
        {
            return Ok(Question::Operate(OperatorRequest {
                role,
                mfa: operator.mfa,
                incident: operator.incident.as_deref(),
                service,
                action,
            }));
        }
        match (&self.from, &self.to, self.port) {
            (Some(from), Some(to), Some(port)) => Ok(Question::Connect {
                from,
                to,
                port,
                protocol: self.protocol,
            }),
            _ => Err(Failure::Usage(
                "name --from, --to and --port, or --operator-role, --service and --action".to_owned(),
            )),
        }
    }
}

/// A protocol as one names it on the command line.
pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
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
    let request = match arguments.question()? {
        Question::Connect {
            from,
            to,
            port,
            protocol,
        } => {
            let mut destination = to.json();
            destination["port"] = json!(port);
            destination["protocol"] = json!(protocol.name());
            json!({ "source": from.json(), "destination": destination })
        }
        Question::Operate(asked) => json!({
            "operator": { "role": asked.role, "mfa": asked.mfa, "incident": asked.incident },
            "target": { "service": asked.service, "action": asked.action },
        }),
    };
    Ok(Client::new(&arguments.api)?
        .post("/v1/evaluate", &request)
        .await?)
}

/// The same answer as the agent's, but for the mode, which is a matter of the node.
fn from_files(arguments: &EvaluateArgs, path: &Path) -> Result<Value, Failure> {
    let settings = arguments.settings.config()?.policy_settings();
    let answer = |allowed: bool, rule: Option<&str>, reason: &str, proof: bool, start: Instant| {
        json!({
            "decision": if allowed { "ALLOW" } else { "DENY" },
            "policy_matched": rule,
            "mode": null,
            "enforced": null,
            "proof_required": proof,
            "revision": null,
            "reason": reason,
            "latency_us": start.elapsed().as_nanos() as f64 / 1000.0,
        })
    };
    let (from, to, port, protocol) = match arguments.question()? {
        Question::Connect {
            from,
            to,
            port,
            protocol,
        } => (from, to, port, protocol),
        Question::Operate(asked) => {
            let set = offline::load(path, &settings, &BTreeSet::new())?.set;
            let start = Instant::now();
            let decision = set.evaluate_operator(&asked);
            let rule = decision.rule.as_deref();
            return Ok(answer(
                decision.allowed,
                rule,
                decision.reason.name(),
                false,
                start,
            ));
        }
    };
    let others = [from, to]
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
    let source = from.of(&table).ok_or_else(|| named(from))?;
    let destination = to.of(&table).ok_or_else(|| named(to))?;
    let start = Instant::now();
    let decision = table.evaluate(source, destination, port, protocol);
    let rule = decision.rule.as_deref();
    let (reason, proof) = (decision.reason.name(), decision.proof_required);
    Ok(answer(decision.allowed, rule, reason, proof, start))
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
    let proof = answer["proof_required"].as_bool() == Some(true);
    let proof = proof.then(|| ("proof", Cell::from("required in the handshake".to_owned())));
    let answered = [
        ("decision", Cell::toned(decision, tone)),
        ("rule", plain(&answer["policy_matched"]).into()),
        ("reason", plain(&answer["reason"]).into()),
        ("mode", mode.into()),
        ("revision", plain(&answer["revision"]).into()),
    ];
    let lines: Vec<(&str, Cell)> = answered.into_iter().chain(proof).collect();
    Ok(pairs(&lines)?)
}
