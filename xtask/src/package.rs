// SPDX-License-Identifier: Apache-2.0
//! What a release is made of, as it is made: the Debian package by `cargo deb`, the lists of what is in the program by the
//! command of the Dockerfile, and the container image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{golang, image, workspace};

/// The `cargo deb` that `zt-agent/Cargo.toml` is written for.
const DEB: &str = "cargo-deb@3.8.0";
const DOCKERFILE: &str = "deploy/Dockerfile";
/// Where the Dockerfile's commands put what they make.
const OUT: &str = "/opt/out";

/// The programs that make it, each with its version.
fn tools() -> Result<[String; 2]> {
    let text = dockerfile()?;
    let mut words = text.split_whitespace();
    let cyclonedx = words.rfind(|word| word.starts_with("cargo-cyclonedx@"));
    let cyclonedx = cyclonedx.context("the Dockerfile installs no cargo-cyclonedx")?;
    Ok([DEB.to_owned(), cyclonedx.to_owned()])
}

fn dockerfile() -> Result<String> {
    let path = workspace::root().join(DOCKERFILE);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Where a tool is installed, once for every checkout of this user.
fn place(tool: &str) -> Result<PathBuf> {
    Ok(golang::cache()?.join(tool.replace('@', "-")))
}

fn is_there(tool: &str) -> bool {
    let name = tool.split('@').next().unwrap_or(tool);
    place(tool).is_ok_and(|place| place.join("bin").join(name).is_file())
}

/// Installs the tools that are not there; the directories with the programs.
fn obtain() -> Result<Vec<PathBuf>> {
    let tools = tools()?;
    let mut directories = Vec::new();
    for tool in &tools {
        let root = place(tool)?;
        if !is_there(tool) {
            println!("  installing: {tool} into {} (two minutes, once)", root.display());
            // Optimized they would take twice as long to build, and are run once.
            let status = Command::new(workspace::cargo())
                .args(["install", "--debug", "--locked", "--quiet", tool, "--root"])
                .arg(&root)
                .env("CARGO_TARGET_DIR", root.join("build"))
                .status()?;
            let _ = fs::remove_dir_all(root.join("build"));
            ensure!(
                status.success(),
                "cannot install {tool}: run `cargo install --locked {tool}` to see why"
            );
        }
        directories.push(root.join("bin"));
    }
    Ok(directories)
}

/// Makes the package and the lists, of programs that are built, and the image: the directory that has them.
pub(crate) fn make() -> Result<PathBuf> {
    let tools = obtain()?;
    let target = workspace::target()?;
    let out = target.join("package");
    // What is there is of another build.
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(tools.into_iter().chain(std::env::split_paths(&inherited)))?;
    let status = Command::new(workspace::cargo())
        .args([
            "deb",
            "--package",
            "zt-agent",
            "--no-build",
            "--no-strip",
            "--profile",
            "dev",
            "--quiet",
            "--output",
        ])
        .arg(out.join("zt-agent.deb"))
        .env("PATH", &path)
        .current_dir(workspace::root())
        .status()?;
    ensure!(status.success(), "cargo deb failed: its messages are above");

    let context = out.join("context");
    copy_context(&context)?;
    let text = dockerfile()?;
    let script = command(&text, "cargo cyclonedx ")?.replace(OUT, out.to_str().context("a plain path")?);
    let status = Command::new("sh")
        .args(["-euxc", &script])
        .env("PATH", &path)
        .current_dir(&context)
        .status()?;
    ensure!(
        status.success(),
        "the command of the Dockerfile failed: its messages are above"
    );
    image::make(&out, &context, &text)?;
    fs::remove_dir_all(&context)?;
    Ok(out)
}

/// What the Dockerfile runs that begins so, in one line.
pub(crate) fn command(dockerfile: &str, begin: &str) -> Result<String> {
    let joined = dockerfile.replace("\\\n", " ");
    let mut runs = joined.lines().filter_map(|line| line.strip_prefix("RUN "));
    let found = runs.find(|run| run.starts_with(begin));
    let found = found.with_context(|| format!("{DOCKERFILE} does not run `{}`", begin.trim()))?;
    Ok(found.to_owned())
}

/// What `.dockerignore` lets through.
fn copy_context(to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let ignore = fs::read_to_string(workspace::root().join(".dockerignore"))?;
    let names = ignore.lines().filter_map(|line| line.strip_prefix('!'));
    let status = Command::new("sh")
        .args([
            "-euc",
            "into=$1; shift; tar --create --exclude=target \"$@\" | tar --extract --directory \"$into\"",
            "sh",
        ])
        .arg(to)
        .args(names)
        .current_dir(workspace::root())
        .status()?;
    ensure!(status.success(), "cannot copy what the image is built from");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dockerfile_says_how_its_content_is_listed() -> Result<()> {
        let text = dockerfile()?;
        let command = command(&text, "cargo cyclonedx ")?;
        for part in ["zt-agent/Cargo.toml", "zt-ebpf/Cargo.toml", OUT] {
            assert!(command.contains(part), "{command}");
        }
        assert!(tools()?[1].starts_with("cargo-cyclonedx@0."));
        Ok(())
    }
}
