// SPDX-License-Identifier: Apache-2.0
//! `zt-agent policy test`: policies against a table of expectations.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use crate::cli::exit::{Exit, Failure};
use crate::cli::offline::{self, SettingsArgs};
use crate::cli::output::{Format, Output, Tone, line};
use crate::cli::table::{Cell, Table, printable};
use crate::cli::trail::Progress;
use crate::policy::{self, Case, Outcome, PolicySet};
use crate::policy_dir;
use crate::problem::Problem;

/// Where tests are when nothing else is said: a directory below that of the policies, which reading policies passes over.
const TESTS: &str = "tests";

/// Arguments of `policy test`.
#[derive(Debug, Args)]
#[command(
    after_help = "Tests are YAML documents. Every combination of `from`, `to` and `ports` is a case:\n\n  \
    apiVersion: zt.hanzo.ai/v1\n  \
    kind: PolicyTest\n  \
    metadata: {name: core}\n  \
    spec:\n    \
    tests:\n      \
    - name: only iam reaches the database\n        \
    from: spiffe://hanzo.ai/k8s/hanzo/iam\n        \
    to: spiffe://hanzo.ai/k8s/hanzo/postgres\n        \
    ports: [5432, \"6432-6435\"]   # each port of a range is a case\n        \
    expect: ALLOW            # or ALLOW_WITH_PROOF, DENY\n        \
    rule: core/rule-1        # optional: the rule that shall decide\n\n\
    Examples:\n  \
    zt-agent policy test policies/                      # the tests of policies/tests/\n  \
    zt-agent policy test policies/ --tests ci/core.yaml -o json\n\n\
    Exits with 0 if every case is as expected, 1 if not, 64 if a policy or a test cannot be read. No agent is asked."
)]
pub struct TestArgs {
    /// A directory of policies or one file [default: the configuration's policyPath]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    /// A directory of tests or one file [default: `tests` beside the policies]
    #[arg(long, value_name = "PATH")]
    tests: Option<PathBuf>,
    /// Show also the cases that are as expected
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    output: Output,
}

pub(super) fn test(arguments: &TestArgs) -> Result<Exit, Failure> {
    let config = arguments.settings.config()?;
    let settings = config.policy_settings();
    let path = arguments.path.as_ref().unwrap_or(&config.policy_path);
    let set = offline::set(path, &settings)?;
    let at = arguments.tests.clone().unwrap_or_else(|| beside(path));
    let documents = policy_dir::read(&at).0.map_err(Failure::Policy)?;
    let tests = policy::parse_tests(&documents, &settings).map_err(Failure::Policy)?;
    let cases = {
        let _progress = Progress::waiting("trying every case");
        policy::try_tests(&set, &tests, &settings)?
    };
    if cases.is_empty() {
        return Err(Failure::Policy(vec![Problem {
            file: at.display().to_string(),
            line: 0,
            column: 0,
            field: String::new(),
            message: "has no tests".to_owned(),
        }]));
    }
    let failed = cases.iter().filter(|case| !case.passed).count();
    let untested = untested(&set, &cases);
    match arguments.output.format {
        Format::Json => crate::cli::output::json(&json!({
            "passed": cases.len() - failed,
            "failed": failed,
            "cases": cases,
            "untested_rules": untested,
        }))?,
        Format::Table => print(&cases, failed, &untested, arguments.verbose)?,
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
}

fn beside(policies: &Path) -> PathBuf {
    if policies.is_dir() {
        policies.join(TESTS)
    } else {
        policies.with_file_name(TESTS)
    }
}

/// The rules that decide no case.
fn untested(set: &PolicySet, cases: &[Case]) -> Vec<String> {
    let tested: BTreeSet<&str> = cases.iter().filter_map(|case| case.rule.as_deref()).collect();
    let services = set.policies().iter().flat_map(|policy| &policy.rules);
    // What a rule says about raw sockets alone is about no flow.
    let services = services
        .filter(|rule| !rule.to.is_empty())
        .map(|rule| set.rule_name(rule.number));
    let operators = set.all().iter().flat_map(|policy| match policy {
        policy::AnyPolicy::Operator(policy) => policy.rules.as_slice(),
        policy::AnyPolicy::Service(_) | policy::AnyPolicy::Rollout(_) => &[],
    });
    services
        .chain(operators.map(|rule| Arc::clone(&rule.name)))
        .filter(|name| !tested.contains(&**name))
        .map(|name| name.to_string())
        .collect()
}

fn print(cases: &[Case], failed: usize, untested: &[String], verbose: bool) -> Result<(), Failure> {
    let mut table = Table::new(&["", "WHERE", "TEST", "FLOW", "EXPECTED", "FOUND", "RULE"]);
    for case in cases.iter().filter(|case| verbose || !case.passed) {
        let rule = case
            .rule
            .as_deref()
            .map_or_else(|| case.reason.clone(), str::to_owned);
        let rule = match &case.expected_rule {
            Some(expected) if !case.passed && *expected != rule => format!("{rule}, not {expected}"),
            _ => rule,
        };
        table.row([
            if case.passed {
                Cell::toned("ok", Tone::Good)
            } else {
                Cell::toned("FAILED", Tone::Bad)
            },
            format!("{}:{}", case.file, case.line).into(),
            printable(&case.name).into(),
            printable(&case.asked).into(),
            case.expected.name().into(),
            case.found.map_or("-", Outcome::name).into(),
            rule.into(),
        ]);
    }
    if verbose || failed > 0 {
        table.print("")?;
        line("")?;
    }
    line(&format!("{} as expected, {failed} not", cases.len() - failed))?;
    if !untested.is_empty() {
        line(&format!("rules that decide no case: {}", untested.join(", ")))?;
    }
    Ok(())
}
