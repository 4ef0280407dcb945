// SPDX-License-Identifier: Apache-2.0
//! Who may know whom inside `zt-agent`: the direction of the arrows in ARCHITECTURE.md.

use super::rust_paths::{self, NamedPath};
use super::{Finding, SourceFile};

/// A module of the agent, and which other modules of the agent it may name.
struct Rule {
    module: &'static str,
    may_import: &'static [&'static str],
}

const RULES: &[Rule] = &[
    // What stands on its own.
    Rule {
        module: "problem",
        may_import: &[],
    },
    Rule {
        module: "spiffe_id",
        may_import: &[],
    },
    Rule {
        module: "caller",
        may_import: &["spiffe_id"],
    },
    Rule {
        module: "tls",
        may_import: &["spiffe_id", "watch"],
    },
    Rule {
        module: "cgroup",
        may_import: &[],
    },
    Rule {
        module: "watch",
        may_import: &[],
    },
    Rule {
        module: "log",
        may_import: &[],
    },
    Rule {
        module: "metrics",
        may_import: &["audit", "identity", "kubernetes", "nri", "peers", "state"],
    },
    Rule {
        module: "yaml",
        may_import: &["problem"],
    },
    // The pure core, and what feeds it.
    Rule {
        module: "policy",
        may_import: &["spiffe_id", "problem", "yaml"],
    },
    Rule {
        module: "policy_dir",
        may_import: &["policy", "watch"],
    },
    Rule {
        module: "identity",
        may_import: &["cgroup", "spiffe_id", "problem", "tls", "watch", "yaml"],
    },
    Rule {
        module: "kubernetes",
        may_import: &["cgroup", "identity", "policy"],
    },
    Rule {
        module: "nri",
        may_import: &["identity", "state"],
    },
    Rule {
        module: "peers",
        may_import: &["identity", "spiffe_id", "state", "tls"],
    },
    Rule {
        module: "config",
        may_import: &[
            "caller",
            "audit",
            "cgroup",
            "identity",
            "policy",
            "problem",
            "spiffe_id",
            "yaml",
        ],
    },
    // Down to the kernel, and up from it.
    Rule {
        module: "state",
        may_import: &["caller", "identity", "policy", "problem", "spiffe_id", "cgroup"],
    },
    Rule {
        module: "confine",
        // What it keeps is what that works with.
        may_import: &["kernel"],
    },
    Rule {
        module: "kernel",
        may_import: &["state", "policy"],
    },
    Rule {
        module: "audit",
        may_import: &["spiffe_id"],
    },
    // What is asked of both: recorded connections, judged by policies.
    Rule {
        module: "traffic",
        may_import: &["audit", "policy", "spiffe_id"],
    },
    Rule {
        module: "policy_follow",
        // The client of the API is the command line's.
        may_import: &["audit", "cli", "policy", "state"],
    },
    Rule {
        module: "policy_cluster",
        // Its copy on disk is the one of a node that follows an engine.
        may_import: &[
            "audit",
            "kubernetes",
            "policy",
            "policy_dir",
            "policy_follow",
            "state",
        ],
    },
    // What people and programs ask.
    Rule {
        module: "api",
        may_import: &[
            "policy",
            "policy_dir",
            "state",
            "audit",
            "metrics",
            "problem",
            "identity",
            "kubernetes",
            "peers",
            "spiffe_id",
            "caller",
            "tls",
            "traffic",
        ],
    },
    Rule {
        module: "cli",
        may_import: &[
            "app",
            // What checks and exports the trail needs no agent.
            "audit",
            "config",
            // Before there is anything else.
            "confine",
            "demo",
            "doctor",
            "log",
            "policy",
            "policy_dir",
            "problem",
            "spiffe_id",
            "sysdump",
            "tls",
            "traffic",
            "yaml",
        ],
    },
    Rule {
        module: "demo",
        may_import: &["cgroup", "cli", "config"],
    },
    Rule {
        module: "doctor",
        // Whatever the agent depends on is looked at with the code that depends on it.
        may_import: &[
            "app",
            "audit",
            "cgroup",
            "cli",
            "config",
            "identity",
            "kernel",
            "kubernetes",
            "policy",
            "policy_dir",
            "problem",
            "tls",
        ],
    },
    Rule {
        module: "sysdump",
        may_import: &["audit", "cgroup", "cli", "config", "doctor", "kernel"],
    },
];

/// Modules that may name every other one: the composition root, and the crate's own roots.
const ROOTS: [&str; 3] = ["app", "lib", "main"];

/// A dependency that only some files may name.
struct Confined {
    krate: &'static [&'static str],
    /// Files or directories below `zt-agent/src`.
    to: &'static [&'static str],
    why: &'static str,
}

const CONFINED: &[Confined] = &[
    Confined {
        krate: &["aya", "aya_log"],
        to: &["kernel"],
        why: "only kernel/ talks to the kernel's programs and maps",
    },
    Confined {
        krate: &["sqlx"],
        to: &[
            "audit/sqlite.rs",
            "audit/sqlite",
            "audit/postgres.rs",
            "audit/postgres",
        ],
        why: "only a store of the audit trail talks to a database",
    },
    Confined {
        krate: &["kube"],
        to: &["kubernetes"],
        why: "only kubernetes/ talks to the Kubernetes API",
    },
    Confined {
        krate: &["ratatui"],
        to: &[
            "cli/monitor/draw.rs",
            "cli/monitor/draw",
            "cli/monitor/terminal.rs",
        ],
        why: "what a view is about is apart from how it is drawn",
    },
    Confined {
        krate: &["crossterm"],
        to: &["cli/monitor/terminal.rs"],
        why: "only the view's adapter talks to the terminal",
    },
    Confined {
        krate: &["k8s_openapi"],
        to: &["kubernetes"],
        why: "only kubernetes/ talks to the Kubernetes API",
    },
];

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
            file!()
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
