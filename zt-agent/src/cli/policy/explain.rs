// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy explain`: why a flow is allowed or denied, rule by rule.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::diff::in_force;
use crate::cli::client::ApiArgs;
use crate::cli::evaluate::protocol;
use crate::cli::exit::{Exit, Failure};
use crate::cli::offline::SettingsArgs;
use crate::cli::output::{Format, Output, Tone, colourful, line, toned};
use crate::cli::table::{Cell, Table, plain};
use crate::cli::trail::Progress;
use crate::policy::{self, Explanation, Miss, NamedParty, Outcome, PolicySet, Protocol, Step};
use crate::policy_dir;

/// Rules that are not about the flow are shown if they miss it by no more than this.
const NEAR: usize = 1;

/// Arguments of `policy explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Shows the order in which policy decides, with each rule that is about the flow, and the rules that miss it by one \
    thing: their source, destination, protocol or port.\n\n\
    Examples:\n  \
    zt-agent policy explain policies/ --from spiffe://hanzo.ai/k8s/hanzo/iam --to spiffe://hanzo.ai/k8s/hanzo/postgres --port 5432\n  \
    zt-agent policy explain --from host --to 10.20.1.1 --port 53 --protocol UDP   # of what the agent has in force\n\n\
    A party is a SPIFFE ID, an entity (host, remote-node, kube-apiserver, world, unknown), an IP address, or cidr:NETWORK."
)]
pub struct ExplainArgs {
    /// A directory of policies or one file [default: what the agent has in force]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
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
    /// Show also the rules that have less to do with the flow
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

/// File and line of rules, by name.
type Places = BTreeMap<String, (String, u64)>;

pub(super) fn explain(arguments: &ExplainArgs) -> Result<Exit, Failure> {
    let settings = arguments.settings.config()?.policy_settings();
    let (set, places) = match &arguments.path {
        Some(path) => {
            let documents = policy_dir::read(path).0.map_err(Failure::Policy)?;
            let set = policy::parse(&documents, &settings).map_err(Failure::Policy)?;
            (set, policy::places(&documents))
        }
        None => (
            crate::cli::block_on(in_force(&arguments.api, &settings))?,
            Places::new(),
        ),
    };
    let explanation = explained(arguments, &set, &settings)?;
    match arguments.output.format {
        Format::Json => crate::cli::output::json(&as_json(&explanation, arguments, &places))?,
        Format::Table => {
            let (from, to, protocol) = (&arguments.from, &arguments.to, arguments.protocol.name());
            let flow = format!("{from} -> {to} {protocol} {}", arguments.port);
            print(&explanation, &flow, arguments.all, &places)?;
        }
    }
    Ok(Exit::Done)
}

fn explained(
    arguments: &ExplainArgs,
    set: &PolicySet,
    settings: &policy::Settings,
) -> Result<Explanation, Failure> {
    let _progress = Progress::waiting("judging by each rule");
    let ends = [&arguments.from, &arguments.to];
    let others: BTreeSet<_> = ends.iter().filter_map(|party| party.spiffe()).cloned().collect();
    let table = policy::compile(set, &others, settings, 1)?;
    let unnamed = |party: &NamedParty| Failure::NotFound(format!("no rule names {party}"));
    let (from, to) = (&arguments.from, &arguments.to);
    let source = from.of(&table).ok_or_else(|| unnamed(from))?;
    let destination = to.of(&table).ok_or_else(|| unnamed(to))?;
    Ok(policy::explain(
        set,
        &table,
        (source, destination),
        arguments.port,
        arguments.protocol,
    ))
}

fn as_json(explanation: &Explanation, arguments: &ExplainArgs, places: &Places) -> Value {
    let placed = |mut value: Value, name: &str| {
        let place = places.get(name);
        value["file"] = json!(place.map(|(file, _)| file));
        value["line"] = json!(place.map(|(_, line)| line));
        value
    };
    let decision = &explanation.decision;
    let speaking: Vec<Value> = explanation
        .speaking
        .iter()
        .map(|rule| placed(json!(rule), &rule.rule))
        .collect();
    let silent = explanation.silent.iter();
    let silent: Vec<Value> = silent
        .filter(|rule| arguments.all || rule.misses.len() <= NEAR)
        .map(|rule| placed(json!(rule), &rule.rule))
        .collect();
    json!({
        "decision": if decision.allowed { "ALLOW" } else { "DENY" },
        "policy_matched": decision.rule,
        "reason": decision.reason.name(),
        "proof_required": decision.proof_required,
        "default_action": explanation.default,
        "allow_self": explanation.builtin[0],
        "allow_host": explanation.builtin[1],
        "rules": speaking,
        "near": silent,
    })
}

fn print(explanation: &Explanation, flow: &str, all: bool, places: &Places) -> Result<(), Failure> {
    let decision = &explanation.decision;
    let (word, tone) = match (decision.allowed, decision.proof_required) {
        (false, _) => ("DENY", Tone::Bad),
        (true, true) => ("ALLOW with proof", Tone::Good),
        (true, false) => ("ALLOW", Tone::Good),
    };
    line(&format!("{}  {flow}", toned(word, tone, colourful())))?;
    line("")?;
    let place = |rule: &str| -> Cell {
        let place = places.get(rule);
        place
            .map_or_else(|| "-".to_owned(), |(file, line)| format!("{file}:{line}"))
            .into()
    };
    let mut table = Table::new(&["ASKED", "RULE", "SAYS", "", "WHERE"]);
    for step in Step::ALL {
        let mut any = false;
        for rule in explanation.speaking.iter().filter(|rule| rule.step == step) {
            any = true;
            table.row([
                asked(step).into(),
                plain(&json!(rule.rule)).into(),
                says(rule.says),
                if rule.decides { "decides" } else { "" }.into(),
                place(&rule.rule),
            ]);
        }
        if !any {
            table.row(empty(explanation, step));
        }
    }
    table.print("")?;
    let near: Vec<_> = explanation
        .silent
        .iter()
        .filter(|rule| all || rule.misses.len() <= NEAR)
        .collect();
    if !near.is_empty() {
        let mut table = Table::new(&["NOT ABOUT THIS FLOW", "ACTION", "FOR ITS", "WHERE"]);
        for rule in near {
            let misses: Vec<&str> = rule.misses.iter().map(|miss: &Miss| miss.name()).collect();
            table.row([
                plain(&json!(rule.rule)).into(),
                rule.action.into(),
                misses.join(", ").into(),
                place(&rule.rule),
            ]);
        }
        line("")?;
        table.print("")?;
    }
    Ok(())
}

const fn asked(step: Step) -> &'static str {
    match step {
        Step::Deny => "1 rules that deny",
        Step::Proof => "2 rules that require proof",
        Step::SelfRule => "3 builtin/self",
        Step::Host => "4 builtin/host",
        Step::Allow => "5 rules that allow",
        Step::Default => "6 defaultAction",
    }
}

fn says(outcome: Outcome) -> Cell {
    match outcome {
        Outcome::Allow => Cell::toned("ALLOW", Tone::Good),
        Outcome::AllowWithProof => Cell::toned("ALLOW with proof", Tone::Good),
        Outcome::Deny => Cell::toned("DENY", Tone::Bad),
    }
}

/// The row of a step that no rule is about.
fn empty(explanation: &Explanation, step: Step) -> [Cell; 5] {
    let by_default = step == Step::Default && explanation.decision.rule.is_none();
    let nothing = |text: &str| Cell::toned(text, Tone::Faint);
    let says = match step {
        Step::Default => explanation.default.into(),
        Step::SelfRule if !explanation.builtin[0] => nothing("switched off"),
        Step::Host if !explanation.builtin[1] => nothing("switched off"),
        Step::SelfRule | Step::Host => nothing("not about this flow"),
        Step::Deny | Step::Proof | Step::Allow => nothing("none is about this flow"),
    };
    [
        asked(step).into(),
        "-".into(),
        says,
        if by_default { "decides" } else { "" }.into(),
        "-".into(),
    ]
}
