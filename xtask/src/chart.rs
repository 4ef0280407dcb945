// SPDX-License-Identifier: Apache-2.0
//! What renders and checks the Helm chart in tests: Helm's own packages and the types of Kubernetes, put together in
//! `xtask/chart` and built with Go. The whole program `helm` takes three times as long to build.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::{spire, workspace};

const SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];

/// Where the program is: another one for other sources.
fn place() -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    for source in SOURCES {
        let path = workspace::root().join("xtask/chart").join(source);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.hash(&mut hasher);
    }
    let directory = spire::cache()?.join(format!("chart-{:016x}", hasher.finish()));
    Ok(directory.join("zt-chart"))
}

/// The program, if it is there.
pub(crate) fn present() -> Option<PathBuf> {
    place().ok().filter(|program| program.is_file())
}

/// The program, which is built if it is not there.
pub(crate) fn obtain() -> Result<PathBuf> {
    let program = place()?;
    if program.is_file() {
        return Ok(program);
    }
    let directory = program.parent().context("it is in a directory")?;
    let work = directory.join("build");
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    println!(
        "  building: what checks the Helm chart, into {} (a minute or two, once)",
        directory.display()
    );
    let started = Instant::now();
    for source in SOURCES {
        fs::copy(
            workspace::root().join("xtask/chart").join(source),
            work.join(source),
        )?;
    }
    let built = spire::go(&work)
        .args(["build", "-trimpath", "-ldflags=-s -w", "-o", "zt-chart", "."])
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .status();
    let cleaned = spire::go(&work).args(["clean", "-cache", "-modcache"]).status();
    let built = built.context("cannot run go")?;
    ensure!(
        built.success(),
        "xtask/chart does not build; Go's messages are above. It needs the Go of SPIRE and the Go module proxy"
    );
    cleaned.context("cannot run go")?;
    // Whole, or not there.
    fs::rename(work.join("zt-chart"), &program)?;
    fs::remove_dir_all(&work)?;
    println!("  built:    in {} s", started.elapsed().as_secs());
    Ok(program)
}
