// SPDX-License-Identifier: Apache-2.0
//! The arrows themselves: which module may name which, and which crate stays where.

/// Where a new module's rule belongs.
pub(super) const FILE: &str = file!();

/// A module of the agent, and which other modules of the agent it may name.
pub(super) struct Rule {
    pub(super) module: &'static str,
    pub(super) may_import: &'static [&'static str],
}

pub(super) const RULES: &[Rule] = &[
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
            // What the trail told of is kept on disk as a follower keeps it.
            "policy_follow",
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
            // The workloads of a file, for what is checked without an agent.
            "identity",
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
        // The namespaces and the privileges of its world are those that the agent works with.
        may_import: &["cgroup", "cli", "config", "kernel"],
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
            "policy_follow",
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
pub(super) const ROOTS: [&str; 3] = ["app", "lib", "main"];

/// A dependency that only some files may name.
pub(super) struct Confined {
    /// The parts of its path: `std::fs` is two of them.
    /// How the paths begin that are meant: `["a", "b"]` is `a::b`.
    pub(super) krate: &'static [&'static str],
    /// Files or directories below `zt-agent/src`.
    pub(super) to: &'static [&'static str],
    pub(super) why: &'static str,
}

pub(super) const CONFINED: &[Confined] = &[
    Confined {
        krate: &["aya"],
        to: &["kernel"],
        why: "only kernel/ talks to the kernel's programs and maps",
    },
    Confined {
        krate: &["aya_log"],
        to: &["kernel"],
        why: "only kernel/ talks to the kernel's programs",
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
