// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench`: builds the agent and the benchmark with optimizations, and measures.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::wheels::ENVOY;
use crate::{privilege, setup, spire, workspace};

/// Has zt measured beside what users would take instead.
const PEERS: &str = "--peers";

/// Builds as this user and runs `zt-bench` with the arguments given, as root. The numbers also go to
/// `target/bench.json` and how `PostgreSQL` found its answers to `target/bench-plans.json`, unless the arguments name
/// other files. With [`PEERS`] they go to `target/bench-peers.json`, and as a picture to `target/bench-peers.svg`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let target = workspace::target()?;
    let beside = arguments.iter().any(|argument| argument == PEERS);
    build(
        Command::new(workspace::cargo())
            .args(["build", "--release", "--bins"])
            .args(["--package", "zt-agent", "--package", "zt-tests"]),
    )?;
    if beside || wants(arguments, "evaluate") {
        build(
            Command::new(workspace::cargo())
                .args(["build", "--release", "--manifest-path", "tests/peers/Cargo.toml"])
                // Most of it is there: the agent's own crates.
                .env("CARGO_TARGET_DIR", &target),
        )?;
    }
    if beside {
        setup::for_peers()?;
    } else if wants(arguments, "http") {
        setup::for_bench()?;
    }
    let why =
        "because the benchmark makes cgroups and network namespaces, and loads programs into the kernel";
    // sudo passes on what it is given on the command line.
    let mut command = privilege::as_root("env", why)?;
    if beside {
        match ENVOY.obtain() {
            Ok(program) => {
                command.arg(format!("ZT_ENVOY={}", program.display()));
            }
            // The table says so too.
            Err(error) => eprintln!("  without Envoy: {error:#}"),
        }
    } else if wants(arguments, "spire") {
        command.arg(format!("ZT_SPIRE={}", spire::obtain()?.display()));
    }
    command
        .arg(target.join("release").join("zt-bench"))
        .args(arguments);
    let files: &[(&str, &str)] = if beside {
        &[("--json", "bench-peers.json")]
    } else {
        &[("--json", "bench.json"), ("--plans", "bench-plans.json")]
    };
    for (option, file) in files {
        if named(arguments, option).is_none() {
            command.arg(option).arg(made(target.join(file))?);
        }
    }
    let status = command.status()?;
    if beside {
        let figures = named(arguments, "--json").unwrap_or_else(|| target.join("bench-peers.json"));
        // What was measured is shown, also where something could not be.
        draw(
            &target,
            &figures,
            &target.join("bench-peers.svg"),
            status.success(),
        )?;
    }
    ensure!(status.success(), "the benchmark ended with {status}");
    Ok(())
}

/// Whether the arguments name this part, or begin with no name at all.
fn wants(arguments: &[String], part: &str) -> bool {
    let named = arguments.first().is_some_and(|first| !first.starts_with('-'));
    !named || arguments.iter().any(|argument| argument == part)
}

/// The file that the arguments name with an option, as `--json FILE` or `--json=FILE`.
fn named(arguments: &[String], option: &str) -> Option<PathBuf> {
    let place = arguments.iter().position(|argument| {
        let rest = argument.strip_prefix(option);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })?;
    match arguments[place].split_once('=') {
        Some((_, file)) => Some(file.into()),
        None => arguments.get(place + 1).map(PathBuf::from),
    }
}

/// Made by this user: what root only writes to stays this user's.
fn made(file: PathBuf) -> Result<PathBuf> {
    File::create(&file).with_context(|| format!("cannot make {}", file.display()))?;
    Ok(file)
}

/// Has the figures drawn. If nothing was measured, there is nothing to draw, and the benchmark has said why.
fn draw(target: &Path, figures: &Path, picture: &Path, all_is_measured: bool) -> Result<()> {
    let is_empty = figures.metadata().map_or(true, |file| file.len() == 0);
    if is_empty && !all_is_measured {
        return Ok(());
    }
    let status = Command::new(target.join("release").join("zt-peers"))
        .arg("plot")
        .args([figures, picture])
        .status()
        .context("cannot run zt-peers")?;
    ensure!(status.success(), "zt-peers ended with {status}");
    println!("{}\n{}", figures.display(), picture.display());
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_after_its_option_or_with_it() {
        let arguments = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let json = |text: &str| named(&arguments(text), "--json");
        assert_eq!(json("--peers --json a.json"), Some("a.json".into()));
        assert_eq!(json("--json=b.json --quick"), Some("b.json".into()));
        assert_eq!(json("--peers --quick"), None);
    }
}
