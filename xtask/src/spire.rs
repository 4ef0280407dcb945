// SPDX-License-Identifier: Apache-2.0
//! Real SPIRE for the tests: its server and its agent, built from their Go module.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::golang::{cache, go, lock};

/// The version that the tests were written with, and the Go that it asks for.
const VERSION: &str = "1.13.3";
const GO: &str = "1.25.3";
const PROGRAMS: [&str; 2] = ["spire-server", "spire-agent"];

fn directory() -> Result<PathBuf> {
    Ok(cache()?.join(format!("spire-{VERSION}")))
}

/// The directory with both programs, if they are there.
pub(crate) fn present() -> Option<PathBuf> {
    let directory = directory().ok()?;
    PROGRAMS
        .iter()
        .all(|program| works(&directory.join(program)))
        .then_some(directory)
}

/// The directory with both programs, which are built if they are not there.
pub(crate) fn obtain() -> Result<PathBuf> {
    if let Some(directory) = present() {
        return Ok(directory);
    }
    let directory = directory()?;
    let _lock = lock(&directory)?;
    if let Some(directory) = present() {
        return Ok(directory);
    }
    let work = directory.join("build");
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    println!(
        "  building: SPIRE {VERSION} into {} (several minutes, once)",
        directory.display()
    );
    let started = Instant::now();
    let built = build(&work);
    // What was downloaded and compiled takes more than two gigabytes. Go's own command removes it, for the files are
    // read-only.
    let cleaned = go(&work).args(["clean", "-cache", "-modcache"]).status();
    built?;
    cleaned.context("cannot run go")?;
    for program in PROGRAMS {
        // Whole, or not there.
        fs::rename(work.join("bin").join(program), directory.join(program))?;
        let path = directory.join(program);
        ensure!(works(&path), "{} does not run", path.display());
    }
    fs::remove_dir_all(&work)?;
    println!("  built:    SPIRE {VERSION} in {} s", started.elapsed().as_secs());
    Ok(directory)
}

fn build(work: &Path) -> Result<()> {
    // A module of its own that asks for this version and nothing else; `go install …@version` would ask for the list of
    // all versions as well.
    let module = format!("module zt-spire\n\ngo {GO}\n\nrequire github.com/spiffe/spire v{VERSION}\n");
    fs::write(work.join("go.mod"), module)?;
    let bin = work.join("bin/");
    let status = go(work)
        .args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
        .arg(bin)
        .args(PROGRAMS.map(|program| format!("github.com/spiffe/spire/cmd/{program}")))
        .status()
        .with_context(|| format!("cannot run go: install Go {GO} or later, and a C compiler"))?;
    ensure!(
        status.success(),
        "SPIRE does not build; Go's messages are above. It needs Go {GO} or later, a C compiler and the Go module proxy"
    );
    Ok(())
}

fn works(program: &Path) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| output.status.success())
}
