// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy diff`: what a change of policy means for flows, judged on the compiled tables.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::client::{ApiArgs, Client};
use crate::cli::exit::{Exit, Failure};
use crate::cli::offline::{self, SettingsArgs};
use crate::cli::output::{Format, Output, Tone, line};
use crate::cli::table::{Cell, Table, plain, printable};
use crate::cli::trail::Progress;
use crate::policy::{self, Document, Effect, Effects, Outcome, PolicyDiff, PolicySet, Settings, Statement};

/// Arguments of `policy diff`.
#[derive(Debug, Args)]
#[command(
    after_help = "One PATH is compared with what the agent has in force; two are compared with each other, the older one first, and \
    no agent is asked. Both are compiled, and the same function that the kernel calls judges the same flows by both: rules that \
    moved, were renamed or are written in other words are no difference.\n\n\
    Examples:\n  \
    zt-agent policy diff policies/            # against what is in force\n  \
    zt-agent policy diff main/ branch/ --fail # 1 if any flow is judged differently\n  \
    zt-agent policy diff -f core.yaml         # one policy, as `policy apply` would put it in force\n\n\
    A party is a SPIFFE ID, a pattern (for the workloads that it matches and no rule names), an entity, cidr:NETWORK, or `*`: \
    any workload that no rule about the other party names."
)]
pub struct DiffArgs {
    /// A directory of policies or one file, once (against what is in force) or twice (old and new)
    #[arg(value_name = "PATH", num_args = 1..=2, required_unless_present = "file", conflicts_with = "file")]
    paths: Vec<PathBuf>,
    /// One policy, YAML or JSON, against what is in force; `-` for standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Exit with 1 if anything would change
    #[arg(long)]
    pub(super) fail: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    pub(super) api: ApiArgs,
    #[command(flatten)]
    pub(super) output: Output,
}

/// Two sets of policies, and what lies between them.
struct Compared {
    statements: PolicyDiff,
    effects: Effects,
}

pub(super) fn diff(arguments: &DiffArgs) -> Result<Exit, Failure> {
    if let Some(file) = &arguments.file {
        return crate::cli::block_on(super::change::diff(arguments, file));
    }
    let settings = arguments.settings.config()?.policy_settings();
    let (before, after) = match arguments.paths.as_slice() {
        [old, new] => (offline::set(old, &settings)?, offline::set(new, &settings)?),
        [new] => {
            let after = offline::set(new, &settings)?;
            (crate::cli::block_on(in_force(&arguments.api, &settings))?, after)
        }
        _ => return Err(Failure::Usage("name one PATH or two".to_owned())),
    };
    let compared = compare(&before, &after, &settings)?;
    match arguments.output.format {
        Format::Json => crate::cli::output::json(&compared.json())?,
        Format::Table => compared.print()?,
    }
    Ok(if arguments.fail && !compared.is_empty() {
        Exit::Failed
    } else {
        Exit::Done
    })
}

/// The policies that the agent has in force.
pub(super) async fn in_force(api: &ApiArgs, settings: &Settings) -> Result<PolicySet, Failure> {
    let answer = Client::new(api)?.get("/v1/policies", &[]).await?;
    let policies = answer["policies"]
        .as_array()
        .ok_or(Failure::Answer { field: "policies" })?;
    let documents: Vec<Document> = policies
        .iter()
        .map(|policy| Document {
            file: format!("in force: {}", plain(&policy["name"])),
            text: policy["document"].to_string(),
        })
        .collect();
    if documents.is_empty() {
        return Ok(PolicySet::default());
    }
    policy::parse(&documents, settings).map_err(Failure::Policy)
}

fn compare(before: &PolicySet, after: &PolicySet, settings: &Settings) -> Result<Compared, Failure> {
    let _progress = Progress::waiting("comparing");
    let exemplars = policy::exemplars([before, after]);
    let known: BTreeSet<_> = before
        .identities()
        .iter()
        .chain(after.identities())
        .chain(exemplars.keys())
        .cloned()
        .collect();
    let table = |set: &PolicySet| policy::compile(set, &known, settings, 1);
    Ok(Compared {
        statements: after.diff_from(before),
        effects: policy::effects(&table(before)?, &table(after)?, &exemplars),
    })
}

impl Compared {
    /// What changes for operators, whose policies are in no table.
    fn operators(statements: &[Statement]) -> impl Iterator<Item = &Statement> {
        statements
            .iter()
            .filter(|statement| matches!(statement, Statement::Operate { .. }))
    }

    fn is_empty(&self) -> bool {
        let (added, removed) = (&self.statements.added, &self.statements.removed);
        self.effects.is_empty()
            && Self::operators(added)
                .chain(Self::operators(removed))
                .next()
                .is_none()
            && self.statements.default_action.is_none()
            && self.statements.rollout.is_empty()
    }

    fn json(&self) -> Value {
        let operators = |statements| Self::operators(statements).collect::<Vec<_>>();
        json!({
            "from": self.statements.from,
            "to": self.statements.to,
            "policies": self.statements.policies,
            "default_action": self.statements.default_action,
            "rollout": self.statements.rollout,
            "flows": self.effects.flows,
            "raw_sockets": self.effects.raw_sockets,
            "beyond": self.effects.beyond,
            "operators": {
                "added": operators(&self.statements.added),
                "removed": operators(&self.statements.removed),
            },
        })
    }

    fn print(&self) -> Result<(), Failure> {
        let mut table = Table::new(&["CHANGE", "SOURCE", "DESTINATION", "PORT", "RULE"]);
        for effect in &self.effects.flows {
            table.row([
                change(effect.before, effect.after),
                printable(&effect.source).into(),
                printable(&effect.destination).into(),
                ports(effect).into(),
                because(effect).into(),
            ]);
        }
        for effect in &self.effects.raw_sockets {
            table.row([
                change(effect.before, effect.after),
                printable(&effect.source).into(),
                "raw sockets".into(),
                "-".into(),
                "-".into(),
            ]);
        }
        let same = if self.statements.is_empty() {
            "nothing changes"
        } else {
            "no flow is judged differently"
        };
        table.print(same)?;
        if self.effects.beyond > 0 {
            let beyond = self.effects.beyond;
            line(&format!(
                "{beyond} pairs of parties were not compared: there are too many"
            ))?;
        }
        for (sign, statements) in [("-", &self.statements.removed), ("+", &self.statements.added)] {
            for statement in Self::operators(statements) {
                line(&format!("{sign} {statement}"))?;
            }
        }
        if let Some(change) = &self.statements.default_action {
            line(&format!("default {} -> {}", change.from, change.to))?;
        }
        for change in &self.statements.rollout {
            line(&format!("rollout {change}"))?;
        }
        for policy in &self.statements.policies {
            let what = match (&policy.from, &policy.to) {
                (None, _) => "new",
                (_, None) => "gone",
                _ => "changed",
            };
            line(&format!("{} {}: {what}", policy.kind, policy.name))?;
        }
        Ok(())
    }
}

fn change(before: Outcome, after: Outcome) -> Cell {
    match (before, after) {
        (_, Outcome::Deny) => Cell::toned("newly denied", Tone::Bad),
        (Outcome::Deny, Outcome::Allow) => Cell::toned("newly allowed", Tone::Good),
        (Outcome::Deny, Outcome::AllowWithProof) => Cell::toned("newly allowed, with proof", Tone::Good),
        (_, Outcome::AllowWithProof) => Cell::toned("needs proof", Tone::Caution),
        (_, Outcome::Allow) => Cell::toned("needs no proof", Tone::Caution),
    }
}

fn ports(effect: &Effect) -> String {
    let ports = match effect.ports.as_slice() {
        [] => "every".to_owned(),
        ports => ports.join(","),
    };
    format!("{ports}/{}", effect.protocol)
}

/// The rule that decides now, and where none does, the one that did.
fn because(effect: &Effect) -> String {
    match (&effect.rule_after, &effect.rule_before) {
        (Some(rule), _) => rule.clone(),
        (None, Some(rule)) => format!("was {rule}"),
        (None, None) => "-".to_owned(),
    }
}
