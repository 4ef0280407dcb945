// SPDX-License-Identifier: Apache-2.0
//! The agent of another commit, which `cargo xtask test upgrade` exchanges for that of this checkout and back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

/// Builds the agent of a commit, in a checkout and a target directory of its own. What is built stays: a commit is always the same.
pub(crate) fn obtain(revision: &str) -> Result<PathBuf> {
    let commit = git(&["rev-parse", "--verify", &format!("{revision}^{{commit}}")])
        .with_context(|| format!("`--from {revision}` names no commit of this checkout"))?;
    let place = workspace::target()?.join("upgrade").join(&commit);
    let (tree, target) = (place.join("tree"), place.join("target"));
    let agent = target.join("debug").join("zt-agent");
    if !agent.is_file() {
        println!("  building: the agent of {commit} in {}", place.display());
        check_out(&commit, &tree)?;
        build(&tree, &target)?;
        ensure!(
            agent.is_file(),
            "the build of {commit} has left no {}",
            agent.display()
        );
    }
    if tree.exists() {
        git(&["worktree", "remove", "--force", path(&tree)?])?;
    }
    Ok(agent)
}

/// A run that broke off may have left the checkout.
fn check_out(commit: &str, tree: &Path) -> Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    git(&["worktree", "prune"])?;
    git(&["worktree", "add", "--detach", path(tree)?, commit]).map(drop)
}

fn build(tree: &Path, target: &Path) -> Result<()> {
    let status = Command::new(workspace::cargo())
        .args(["build", "--locked", "--package", "zt-agent", "--bin", "zt-agent"])
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", target)
        .status()
        .context("cannot run cargo")?;
    ensure!(
        status.success(),
        "the agent of that commit does not build; the compiler's messages are above"
    );
    Ok(())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is no text", path.display()))
}

/// What a git command of this checkout prints.
fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(workspace::root())
        .output()
        .context("cannot run git")?;
    ensure!(
        output.status.success(),
        "git {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
