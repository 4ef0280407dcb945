// SPDX-License-Identifier: Apache-2.0
//! Programs of others that tests run against, installed below the target directory and nowhere else.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

/// The version that the tests were written with; what it needs is pinned in `xtask/schemathesis.txt` beside it.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// The program `schemathesis`, installed with pip if it is not there.
pub(crate) fn schemathesis() -> Result<PathBuf> {
    let environment = directory().join(SCHEMATHESIS.replace("==", "-"));
    let program = environment.join("bin/schemathesis");
    if works(&program) {
        return Ok(program);
    }
    eprintln!("  installing: {SCHEMATHESIS} into {}", environment.display());
    run(
        Command::new("python3").args(["-m", "venv"]).arg(&environment),
        "install python3 and python3-venv",
    )?;
    run(
        Command::new(environment.join("bin/pip"))
            .args(["install", "--quiet", "--requirement"])
            .arg(workspace::root().join("xtask/schemathesis.txt")),
        "the Python package index must be reachable",
    )?;
    ensure!(works(&program), "{} does not run", program.display());
    Ok(program)
}

fn directory() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace::root().join("target"), PathBuf::from);
    target.join("services")
}

fn works(program: &Path) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| output.status.success())
}

fn run(command: &mut Command, otherwise: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}: {otherwise}"))?;
    ensure!(status.success(), "{command:?} failed: {otherwise}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pinned_is_what_is_meant() {
        let pinned =
            std::fs::read_to_string(workspace::root().join("xtask/schemathesis.txt")).expect("there");
        assert!(pinned.lines().any(|line| line == SCHEMATHESIS));
    }
}
