// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench`: builds the agent and the benchmark with optimizations, and measures.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{privilege, setup, spire, workspace};

/// Builds as this user and runs `zt-bench` with the arguments given, as root. The numbers also go to
/// `target/bench.json` and how `PostgreSQL` found its answers to `target/bench-plans.json`, unless the arguments name
/// other files.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let target = workspace::target()?;
    build(
        Command::new(workspace::cargo())
            .args(["build", "--release", "--bins"])
            .args(["--package", "zt-agent", "--package", "zt-tests"]),
    )?;
    if wants(arguments, "evaluate") {
        build(
            Command::new(workspace::cargo())
                .args(["build", "--release", "--manifest-path", "tests/peers/Cargo.toml"])
                // Most of it is there: the agent's own crates.
                .env("CARGO_TARGET_DIR", &target),
        )?;
    }
    if wants(arguments, "http") {
        setup::for_bench()?;
    }
    let why =
        "because the benchmark makes cgroups and network namespaces, and loads programs into the kernel";
    // sudo passes on what it is given on the command line.
    let mut command = privilege::as_root("env", why)?;
    if wants(arguments, "spire") {
        command.arg(format!("ZT_SPIRE={}", spire::obtain()?.display()));
    }
    command
        .arg(target.join("release").join("zt-bench"))
        .args(arguments);
    for (option, file) in [("--json", "bench.json"), ("--plans", "bench-plans.json")] {
        let names_a_file =
            |argument: &String| argument == option || argument.starts_with(&format!("{option}="));
        if !arguments.iter().any(names_a_file) {
            command.arg(option).arg(made(target.join(file))?);
        }
    }
    let status = command.status()?;
    ensure!(status.success(), "the benchmark ended with {status}");
    Ok(())
}

/// Whether the arguments name this part, or begin with no name at all.
fn wants(arguments: &[String], part: &str) -> bool {
    let named = arguments.first().is_some_and(|first| !first.starts_with('-'));
    !named || arguments.iter().any(|argument| argument == part)
}

/// Made by this user: what root only writes to stays this user's.
fn made(file: PathBuf) -> Result<PathBuf> {
    File::create(&file).with_context(|| format!("cannot make {}", file.display()))?;
    Ok(file)
}

fn build(command: &mut Command) -> Result<()> {
    let command = command.current_dir(workspace::root());
    let status = command.status().context("cannot run cargo")?;
    ensure!(
        status.success(),
        "the agent or the benchmark does not build; the compiler's messages are above"
    );
    Ok(())
}
