// SPDX-License-Identifier: Apache-2.0
//! Removes what a test made whose process was killed, and so could not do it itself.
//!
//! It waits for the end of a pipe that nobody writes to: the kernel closes the other end however its holder dies.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};

use clap::Args;

use super::super::cleanup;
use super::super::error::DemoError;
use super::super::names::{Kind, Names};
use super::super::process;

/// How often it is looked whether anything is left: what was being made when the test was killed may come a little later.
const ROUNDS: usize = 5;

/// Waits, and cleans up.
#[derive(Debug, Args)]
pub struct JanitorArgs {
    /// The process after which it cleans up.
    #[arg(long)]
    owner: u32,
    /// Where cgroup2 is mounted.
    #[arg(long)]
    mount: PathBuf,
    /// It is nobody's child any more.
    #[arg(long)]
    detached: bool,
}

/// The janitor of this process: it goes to work when this is dropped, or the process is gone.
#[derive(Debug)]
pub(crate) struct Janitor {
    _line: ChildStdin,
}

impl Janitor {
    /// Starts it.
    pub(crate) fn start(mount: &Path) -> Result<Self, DemoError> {
        let failed = || DemoError::io("start who cleans up");
        let mut child = command(std::process::id(), mount)?
            .stdin(Stdio::piped())
            .spawn()
            .map_err(failed())?;
        let line = child.stdin.take();
        // It has only started the one that stays.
        child.wait().map_err(failed())?;
        let line = line.ok_or_else(|| failed()(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self { _line: line })
    }
}

fn command(owner: u32, mount: &Path) -> Result<std::process::Command, DemoError> {
    let mut command = process::hidden("janitor")?;
    command
        .arg("--owner")
        .arg(owner.to_string())
        .arg("--mount")
        .arg(mount);
    // Whoever reads the test's output must not wait for the janitor.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

/// The janitor's process. The first one starts the second and ends, so that the test has no child that it would wait for.
pub(crate) fn keep_clean(arguments: &JanitorArgs) -> Result<(), DemoError> {
    if !arguments.detached {
        let mut command = command(arguments.owner, &arguments.mount)?;
        command.arg("--detached").stdin(Stdio::inherit());
        return command
            .spawn()
            .map(drop)
            .map_err(DemoError::io("start who cleans up"));
    }
    let waited = io::stdin().read_to_end(&mut Vec::new());
    waited.map_err(DemoError::io("wait for the end of the test"))?;
    let names = Names::of(Kind::Connectivity, arguments.owner, &arguments.mount);
    let mut removed = Ok(());
    for _ in 0..ROUNDS {
        if !cleanup::is_left(&names) {
            return Ok(());
        }
        removed = cleanup::remove(&names);
    }
    removed
}
