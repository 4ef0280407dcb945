// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy`.

mod change;
mod crds;
mod diff;
mod explain;
mod network_policy;
mod recommend;
mod replay;
mod test;

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{ApiArgs, Client};
use super::exit::{Exit, Failure};
use super::offline::{self, SettingsArgs};
use super::output::{Format, Output, line};
use super::problems;
use super::table::{Cell, Table, pairs, plain};
use crate::config::{Config, IdentitySource};
use crate::identity::file as workloads;
use crate::policy::{AnyPolicy, EnforcementRollout, PolicySet};
use crate::problem::Problem;

/// `policy …`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Check policy files as the agent would, without an agent
    #[command(
        after_help = "Prints every problem as file:line:column: field: message and exits with 64 if there is any. Where all identities come from \
        a file (`identity.source`), it warns of stages of a rollout that select nobody at present."
    )]
    Check(CheckArgs),
    /// List the policies in force
    List(ListArgs),
    /// Show one policy in force, as JSON
    Show(change::ShowArgs),
    /// Put one policy in force: checked, written into the policy directory, recorded
    Apply(change::ApplyArgs),
    /// What another directory of policies, or one policy, would newly allow and deny
    Diff(diff::DiffArgs),
    /// Why a flow is allowed or denied, rule by rule
    Explain(explain::ExplainArgs),
    /// Try policies against a table of expectations
    Test(test::TestArgs),
    /// What policies would newly deny or allow of the connections that were recorded
    Replay(replay::ReplayArgs),
    /// The smallest policy that allows the connections that were recorded
    Recommend(recommend::RecommendArgs),
    /// Print Kubernetes network policies that say what the policies say
    NetworkPolicy(network_policy::NetworkPolicyArgs),
    /// Take one policy out of force
    Delete(change::DeleteArgs),
    /// Print the custom resource definitions of policies, for a Kubernetes cluster
    Crds(crds::CrdsArgs),
}

/// Arguments of `policy check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// A directory of policy files, or one file [default: the configuration's policyPath]
    path: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `policy list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: Output,
}

pub(super) fn policy(command: &PolicyCommand) -> Result<Exit, Failure> {
    match command {
        PolicyCommand::Check(arguments) => check(arguments),
        PolicyCommand::List(arguments) => super::block_on(list(arguments)),
        PolicyCommand::Show(arguments) => super::block_on(change::show(arguments)),
        PolicyCommand::Apply(arguments) => super::block_on(change::apply(arguments)),
        PolicyCommand::Diff(arguments) => diff::diff(arguments),
        PolicyCommand::Explain(arguments) => explain::explain(arguments),
        PolicyCommand::Test(arguments) => test::test(arguments),
        PolicyCommand::Replay(arguments) => replay::replay(arguments),
        PolicyCommand::Recommend(arguments) => recommend::recommend(arguments),
        PolicyCommand::NetworkPolicy(arguments) => network_policy::network_policy(arguments),
        PolicyCommand::Delete(arguments) => super::block_on(change::delete(arguments)),
        PolicyCommand::Crds(arguments) => crds::crds(arguments),
    }
}

fn check(arguments: &CheckArgs) -> Result<Exit, Failure> {
    let config = arguments.settings.config()?;
    let path = arguments
        .path
        .clone()
        .unwrap_or_else(|| config.policy_path.clone());
    let loaded = match offline::load(&path, &config.policy_settings(), &BTreeSet::new()) {
        Ok(loaded) => loaded,
        Err(Failure::Policy(problems)) => return refuse(arguments, &problems),
        Err(Failure::Compile(error)) => {
            let file = path.display().to_string();
            let problem = Problem {
                file,
                line: 0,
                column: 0,
                field: String::new(),
                message: error.to_string(),
            };
            return refuse(arguments, &[problem]);
        }
        Err(other) => return Err(other),
    };
    let policies = loaded.set.policies();
    let rules: usize = policies.iter().map(|policy| policy.rules.len()).sum();
    let operators = loaded.set.all().iter().filter_map(|policy| match policy {
        AnyPolicy::Operator(policy) => Some(policy.rules.len()),
        AnyPolicy::Service(_) | AnyPolicy::Rollout(_) => None,
    });
    let operators: Vec<usize> = operators.collect();
    let operator_rules: usize = operators.iter().sum();
    let rollout = loaded.set.rollout();
    let warnings = rollout.map_or_else(Vec::new, |rollout| {
        let mut warnings = stages_without_anybody(rollout, &loaded.set, &config);
        warnings.extend(rollout.limits_beyond_reach());
        warnings
    });
    match arguments.output.format {
        Format::Json => super::output::json(&json!({
            "valid": true,
            "policies": policies.len(),
            "rules": rules,
            "operator_policies": operators.len(),
            "operator_rules": operator_rules,
            "rollouts": usize::from(rollout.is_some()),
            "stages": rollout.map_or(0, |rollout| rollout.stages.len()),
            "entries": loaded.table.len(),
            "digest": loaded.set.digest(),
            "problems": [],
            "warnings": warnings,
        }))?,
        Format::Table => {
            let mut rows: Vec<(&str, Cell)> = vec![
                ("policies", policies.len().to_string().into()),
                ("rules", rules.to_string().into()),
            ];
            if !operators.is_empty() {
                rows.push(("operator policies", operators.len().to_string().into()));
                rows.push(("operator rules", operator_rules.to_string().into()));
            }
            if let Some(rollout) = rollout {
                let (name, reached) = (&rollout.head.name, rollout.reached());
                let stages = format!("{name}: {reached} of {} stages reached", rollout.stages.len());
                rows.push(("rollout", stages.into()));
            }
            rows.push(("entries", loaded.table.len().to_string().into()));
            rows.push(("digest", loaded.set.digest().into()));
            pairs(&rows)?;
            for warning in warnings {
                line(&format!("warning: {warning}"))?;
            }
        }
    }
    Ok(Exit::Done)
}

/// Stages that select nobody, where a file says which workloads there are: with any other source nobody knows that here.
fn stages_without_anybody(rollout: &EnforcementRollout, set: &PolicySet, config: &Config) -> Vec<String> {
    let file = &config.identity.file;
    if config.identity.sources[..] != [IdentitySource::File] || !file.exists() {
        return Vec::new();
    }
    let roots = config.managed_cgroup.roots();
    let shown = file.display().to_string();
    let read = workloads::read(file).0.map_err(|problem| vec![problem]);
    let read = read.and_then(|text| workloads::parse(&text, &shown, &config.trust_domain, &roots));
    match read {
        Ok(records) => rollout.selecting_nobody(records.iter().map(|record| &record.spiffe), set, true),
        Err(problems) => {
            let why = problems.first().map(ToString::to_string).unwrap_or_default();
            vec![format!("whether its stages select anybody is not known: {why}")]
        }
    }
}

fn refuse(arguments: &CheckArgs, problems: &[Problem]) -> Result<Exit, Failure> {
    match arguments.output.format {
        Format::Json => super::output::json(&json!({ "valid": false, "problems": problems }))?,
        Format::Table => problems
            .iter()
            .try_for_each(|problem| line(&problem.to_string()))?,
    }
    Ok(Exit::Invalid)
}

async fn list(arguments: &ListArgs) -> Result<Exit, Failure> {
    let answer = Client::new(&arguments.api)?.get("/v1/policies", &[]).await?;
    if arguments.output.format == Format::Json {
        super::output::json(&answer)?;
        return Ok(Exit::Done);
    }
    let policies = answer["policies"]
        .as_array()
        .ok_or(Failure::Answer { field: "policies" })?;
    let mut table = Table::new(&["NAME", "KIND", "RULES", "STORE"]);
    for policy in policies {
        let rules = policy["document"]["spec"]["rules"].as_array().map(Vec::len);
        table.row([
            plain(&policy["name"]).into(),
            plain(&policy["kind"]).into(),
            rules
                .map_or_else(|| "-".to_owned(), |rules| rules.to_string())
                .into(),
            Cell::from(plain(&policy["store"])),
        ]);
    }
    table.print("no policies: every connection between workloads is refused where it is enforced")?;
    line("")?;
    let text = |field: &str| -> Cell { answer.get(field).map(plain).unwrap_or_default().into() };
    pairs(&[("revision", text("revision")), ("digest", text("digest"))])?;
    problems::show(&answer)?;
    Ok(Exit::Done)
}
