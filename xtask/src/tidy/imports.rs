// SPDX-License-Identifier: Apache-2.0
//! Who may know whom inside `zt-agent`: the direction of the arrows in ARCHITECTURE.md.

mod rules;

use self::rules::{CONFINED, ROOTS, RULES};
use super::rust_paths::{self, NamedPath};
use super::{Finding, SourceFile};

/// What the pure modules may not name.
const IMPURE: [&[&str]; 7] = [
    &["tokio"],
    &["aya"],
    &["sqlx"],
    &["std", "fs"],
    &["std", "net", "TcpStream"],
    &["std", "process"],
    &["std", "thread"],
];
const PURE: [&str; 2] = ["policy", "spiffe_id"];

const SOURCES: &str = "zt-agent/src/";

/// Checks every file of the agent.
pub(crate) fn check(files: &[SourceFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        // Unit tests may look at whatever they need.
        let is_test = file.path.ends_with("/tests.rs") || file.path.contains("/tests/");
        if let Some(inside) = file.path.strip_prefix(SOURCES).filter(|_| !is_test) {
            check_file(file, inside, &mut findings);
        }
    }
    findings
}

fn check_file(file: &SourceFile, inside: &str, findings: &mut Vec<Finding>) {
    let module = inside.split(['/', '.']).next().unwrap_or(inside);
    let is_root = ROOTS.contains(&module);
    let rule = RULES.iter().find(|rule| rule.module == module);
    if rule.is_none() && !is_root {
        let message = format!(
            "`{module}` has no import rule: say in {} what it may import",
            rules::FILE
        );
        findings.push(Finding::new(&file.path, 0, message));
        return;
    }
    for path in rust_paths::paths(&file.text) {
        let mut report = |message: String| findings.push(Finding::new(&file.path, path.line, message));
        if let Some(rule) = rule
            && let Some(other) = own_module(&path)
            && other != module
            && !rule.may_import.contains(&other)
        {
            let may = if rule.may_import.is_empty() {
                "none".to_owned()
            } else {
                rule.may_import.join(", ")
            };
            report(format!(
                "`{module}` imports `{other}`; of our modules it may import: {may}"
            ));
        }
        for confined in CONFINED
            .iter()
            .filter(|confined| starts_with(&path, confined.krate))
        {
            if !confined.to.iter().any(|allowed| is_below(inside, allowed)) {
                report(format!("`{}` here: {}", confined.krate.join("::"), confined.why));
            }
        }
        if PURE.contains(&module)
            && let Some(impure) = IMPURE.iter().find(|impure| starts_with(&path, impure))
        {
            report(format!(
                "`{module}` is pure: no `{}`; what it needs is handed to it",
                impure.join("::")
            ));
        }
    }
}

/// The module of ours that a path leads into.
fn own_module(path: &NamedPath) -> Option<&str> {
    let [root, module, ..] = &path.parts[..] else {
        return None;
    };
    let ours = root == "crate" || root == "zt_agent";
    let known = RULES
        .iter()
        .map(|rule| rule.module)
        .chain(ROOTS)
        .find(|known| known == module);
    known.filter(|_| ours)
}

fn starts_with(path: &NamedPath, prefix: &[&str]) -> bool {
    path.parts.len() >= prefix.len() && path.parts.iter().zip(prefix).all(|(part, wanted)| part == wanted)
}

/// Whether a file is `allowed`, or in the module of that name.
fn is_below(inside: &str, allowed: &str) -> bool {
    let rest = inside.strip_prefix(allowed);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest == ".rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let file = SourceFile {
            path: format!("{SOURCES}{path}"),
            text: text.into(),
        };
        check(&[file])
            .into_iter()
            .map(|finding| finding.message)
            .collect()
    }

    #[test]
    fn an_arrow_the_wrong_way_is_found() {
        let found = findings(
            "policy/compile.rs",
            "use crate::{spiffe_id::SpiffeId, state::Snapshot};",
        );
        assert_eq!(
            found,
            ["`policy` imports `state`; of our modules it may import: spiffe_id, problem, yaml"]
        );
        assert!(findings("state.rs", "use crate::policy::PolicySet;").is_empty());
        assert!(findings("app.rs", "use crate::kernel::Kernel;").is_empty());
    }

    #[test]
    fn confined_crates_stay_where_they_belong() {
        assert_eq!(findings("api/status.rs", "fn f() { aya::maps::f() }").len(), 1);
        assert!(findings("kernel.rs", "use aya::Ebpf;").is_empty());
        assert!(findings("audit/sqlite/schema.rs", "use sqlx::Row;").is_empty());
        assert_eq!(findings("audit/record.rs", "use sqlx::Row;").len(), 1);
        assert_eq!(findings("app.rs", "use aya_log::EbpfLogger;").len(), 1);
    }

    #[test]
    fn pure_modules_do_no_input_or_output() {
        assert_eq!(
            findings("policy.rs", "use std::{collections::BTreeMap, fs};").len(),
            1
        );
        assert!(findings("policy.rs", "use std::net::IpAddr;").is_empty());
    }

    #[test]
    fn a_module_without_a_rule_is_found() {
        assert_eq!(findings("surprise.rs", "").len(), 1);
    }
}
