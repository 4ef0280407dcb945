// SPDX-License-Identifier: Apache-2.0
//! Running one command as root, when this runs as somebody else.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use anyhow::{Result, bail};

/// What a command run as root may know of the caller's environment: `sudo` clears the rest.
const KEPT: [&str; 4] = ["RUST_BACKTRACE", "RUST_LOG", "TERM", "NO_COLOR"];

/// Whether this runs as root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// A command that runs as root; through `sudo`, after saying why, when this does not.
pub(crate) fn as_root(program: impl AsRef<OsStr>, why: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if Command::new("sudo").arg("--version").output().is_err() {
        bail!("root is needed, {why}, and sudo is not installed: run this again as root");
    }
    eprintln!("asking sudo for root, {why}");
    let mut command = Command::new("sudo");
    command.args(["--", "env"]);
    for (name, value) in std::env::vars() {
        if KEPT.contains(&name.as_str()) || name.starts_with("ZT_") {
            command.arg(format!("{name}={value}"));
        }
    }
    command.arg(program);
    Ok(command)
}
