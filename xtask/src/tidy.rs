// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask tidy`: what the compiler does not check.

mod documents;
mod imports;
mod manifests;
mod rust_paths;
mod sources;
mod unsafe_code;
mod words;

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::workspace;

/// A file of the repository.
#[derive(Debug)]
pub(crate) struct SourceFile {
    /// Its path below the root, with slashes.
    pub(crate) path: String,
    /// Its text.
    pub(crate) text: String,
}

impl SourceFile {
    /// What its name ends with, after the last dot.
    pub(crate) fn extension(&self) -> Option<&str> {
        self.path
            .rsplit('/')
            .next()?
            .rsplit_once('.')
            .map(|(_, extension)| extension)
    }

    /// Whether it is Rust.
    pub(crate) fn is_rust(&self) -> bool {
        self.extension() == Some("rs")
    }

    /// Whether it is a page of the documentation.
    pub(crate) fn is_page(&self) -> bool {
        self.extension() == Some("md")
    }
}

/// Something to mend.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    message: String,
}

impl Finding {
    /// One about a line, counted from 1; 0 for a file as a whole.
    pub(crate) fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// Runs every check and prints every finding.
pub(crate) fn run() -> Result<()> {
    let files = files()?;
    let mut findings = Vec::new();
    findings.extend(sources::check(&files));
    findings.extend(imports::check(&files));
    findings.extend(words::check(&files));
    findings.extend(unsafe_code::check(&files));
    findings.extend(manifests::check(&files));
    findings.extend(documents::check(&files, &agent_help()?));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy found {}", findings.len());
    }
    Ok(())
}

/// Prints every unsafe place of the repository and why it is sound.
pub(crate) fn unsafe_code() -> Result<()> {
    let files = files()?;
    let places = unsafe_code::inventory(&files);
    for place in &places {
        let reason = place.reason.as_deref().unwrap_or("NO REASON GIVEN");
        println!("{}:{}: {reason}", place.path, place.line);
    }
    println!("{} places", places.len());
    Ok(())
}

/// What git tracks or would track.
fn files() -> Result<Vec<SourceFile>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "--deduplicate",
        ])
        .current_dir(workspace::root())
        .output()
        .context("cannot run git")?;
    ensure!(
        output.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let mut files = Vec::new();
    for path in String::from_utf8(output.stdout)?.split_terminator('\0') {
        let full: PathBuf = workspace::root().join(path);
        // A file that was deleted and is still in the index, or one that is not text, has nothing to check.
        if let Ok(text) = fs::read_to_string(&full) {
            files.push(SourceFile {
                path: path.to_owned(),
                text,
            });
        }
    }
    Ok(files)
}

/// What `zt-agent --help` prints.
fn agent_help() -> Result<String> {
    let output = Command::new(workspace::cargo())
        .args(["run", "--quiet", "--package", "zt-agent", "--", "--help"])
        .current_dir(workspace::root())
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(
        output.status.success(),
        "zt-agent --help ended with {}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}
