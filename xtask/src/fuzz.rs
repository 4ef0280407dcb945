// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask fuzz`: the targets of `fuzz/`, with libFuzzer, for as long as one likes. The tests of the agent replay the corpora without it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::ebpf_build::isolated;
use crate::wheels::CARGO_FUZZ;
use crate::workspace;

/// The compiler that can tell a fuzzer where the code went.
const TOOLCHAIN: &str = "nightly";
/// Most bytes of an input: enough for a document of each kind.
const MOST_BYTES: u32 = 16 * 1024;
/// Seconds that one input may take, before it counts as a finding.
const SLOW: u32 = 10;

/// Runs one target, or each, for so many seconds.
pub(crate) fn run(target: Option<&str>, seconds: u32) -> Result<()> {
    let all = targets()?;
    let chosen: Vec<&String> = all
        .iter()
        .filter(|name| target.is_none_or(|target| target == *name))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "there is no target {}: there are {}",
        target.unwrap_or_default(),
        all.join(", ")
    );
    let missing = missing();
    ensure!(missing.is_empty(), "fuzzing needs\n  {}", missing.join("\n  "));
    let program = CARGO_FUZZ.obtain()?;
    let mut found = Vec::new();
    for name in chosen {
        println!("== {name}, {seconds} s");
        if !one(&program, name, seconds)? {
            found.push(name.as_str());
        }
    }
    ensure!(
        found.is_empty(),
        "{}: what was found is in fuzz/artifacts/; mend it, and add the file to fuzz/corpus/ under a name that says what it is. \
         Without a file there, the target did not build: its messages are above",
        found.join(", ")
    );
    Ok(())
}

/// The names of the targets, in order.
fn targets() -> Result<Vec<String>> {
    let directory = workspace::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        names.extend(
            entry?
                .path()
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned()),
        );
    }
    names.sort();
    Ok(names)
}

/// What cannot be installed from here, each with what installs it.
fn missing() -> Vec<String> {
    let runs = |command: &mut Command| {
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    };
    let mut missing = Vec::new();
    // Not through the proxy of rustup, which would install a toolchain unasked.
    if !runs(isolated("rustup").args(["which", "--toolchain", TOOLCHAIN, "rustc"])) {
        missing.push(format!(
            "a nightly compiler, for the instrumentation: `rustup toolchain install {TOOLCHAIN} --profile minimal`"
        ));
    }
    if !runs(Command::new("c++").arg("--version")) {
        missing.push("a C++ compiler, which builds libFuzzer: `apt-get install g++`".to_owned());
    }
    missing
}

/// Whether a target ran for its time without a finding. What it learns on the way stays below the target directory.
fn one(program: &Path, name: &str, seconds: u32) -> Result<bool> {
    let target = workspace::target()?.join("fuzz");
    let learned = target.join("corpus").join(name);
    fs::create_dir_all(&learned).with_context(|| format!("cannot make {}", learned.display()))?;
    let status = isolated(program)
        .env("RUSTUP_TOOLCHAIN", TOOLCHAIN)
        // The parsers are safe code: what a sanitizer of addresses sees, the compiler has refused.
        .args(["run", "--fuzz-dir", "fuzz", "--sanitizer", "none", "--codegen-units", "16", "--target-dir"])
        .arg(&target)
        .arg(name)
        // What is new goes into the first.
        .arg(&learned)
        .arg(workspace::root().join("fuzz/corpus").join(name))
        .arg("--")
        .args([
            format!("-max_total_time={seconds}"),
            format!("-max_len={MOST_BYTES}"),
            format!("-timeout={SLOW}"),
            "-print_final_stats=1".to_owned(),
        ])
        .current_dir(workspace::root())
        .status()
        .context("cannot run cargo-fuzz")?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_is_none_is_told_which_there_are() {
        let error = run(Some("nonesuch"), 1).expect_err("no target").to_string();
        assert!(
            error.contains("no target nonesuch: there are cgroup_path, config, "),
            "{error}"
        );
    }
}
