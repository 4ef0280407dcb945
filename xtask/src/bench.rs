// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench`: builds the agent and the benchmark with optimizations, and measures.

use std::fs::File;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{privilege, workspace};

/// Builds as this user and runs `zt-bench` with the arguments given, as root. The numbers also go to
/// `target/bench.json`, unless the arguments name another file.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let status = Command::new(workspace::cargo())
        .args([
            "build",
            "--release",
            "--package",
            "zt-agent",
            "--package",
            "zt-tests",
            "--bins",
        ])
        .current_dir(workspace::root())
        .status()
        .context("cannot run cargo")?;
    ensure!(
        status.success(),
        "the agent or the benchmark does not build; the compiler's messages are above"
    );
    let target = workspace::target()?;
    let why =
        "because the benchmark makes cgroups and network namespaces, and loads programs into the kernel";
    let mut command = privilege::as_root(target.join("release").join("zt-bench"), why)?;
    command.args(arguments);
    let names_a_file = |argument: &String| argument == "--json" || argument.starts_with("--json=");
    if !arguments.iter().any(names_a_file) {
        let json = target.join("bench.json");
        // Made by this user: what root only writes to stays this user's.
        File::create(&json).with_context(|| format!("cannot make {}", json.display()))?;
        command.arg("--json").arg(json);
    }
    let status = command.status()?;
    ensure!(status.success(), "the benchmark ended with {status}");
    Ok(())
}
