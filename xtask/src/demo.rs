// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask demo`: builds the agent and starts its tour.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{privilege, workspace};

/// Builds `zt-agent`, as this user, and runs `zt-agent demo` with the arguments given, as root.
pub(crate) fn run(release: bool, arguments: &[String]) -> Result<()> {
    let profile = if release { "release" } else { "dev" };
    let status = Command::new(workspace::cargo())
        .args(["build", "--package", "zt-agent", "--profile", profile])
        .current_dir(workspace::root())
        .status()
        .context("cannot run cargo")?;
    ensure!(
        status.success(),
        "zt-agent does not build; the compiler's messages are above"
    );
    let directory = if release { "release" } else { "debug" };
    let agent = workspace::target()?.join(directory).join("zt-agent");
    let why = "because the demo makes cgroups and network namespaces, and loads programs into the kernel";
    let status = privilege::as_root(&agent, why)?
        .arg("demo")
        .args(arguments)
        .status()?;
    ensure!(status.success(), "the demo ended with {status}");
    Ok(())
}
