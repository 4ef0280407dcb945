// SPDX-License-Identifier: Apache-2.0
//! Test binaries: built all at once, and run one after the other, each in its package's directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::test_report::Report;
use crate::{privilege, workspace};

/// How long a test binary may take. The longest takes a third of it.
const MOST_SECONDS: u64 = 1200;

/// The package of the tests that cross crates.
const CROSSING: &str = "tests";

/// A test binary that cargo built.
#[derive(Debug)]
pub(crate) struct Binary {
    /// The name of its target, such as `schemathesis`.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Where its package is, and its tests run.
    directory: PathBuf,
    /// Whether it is a file of tests, and not the tests within a library or a program.
    is_file: bool,
}

impl Binary {
    /// Whether it is one of `tests/`, which need more than a user's rights or programs of others.
    pub(crate) fn crosses(&self) -> bool {
        self.is_file && self.directory == workspace::root().join(CROSSING)
    }

    /// Runs it as whoever runs this.
    pub(crate) fn run(&self, report: &mut Report, arguments: &[String]) -> Result<()> {
        self.limited(Command::new("timeout"), report, arguments)
    }

    /// Runs it as root, for this reason and with these variables.
    pub(crate) fn run_as_root(
        &self,
        report: &mut Report,
        why: &str,
        variables: &[String],
        arguments: &[String],
    ) -> Result<()> {
        // sudo passes on what it is given on the command line.
        let mut command = privilege::as_root("env", why)?;
        command.args(variables).arg("timeout");
        self.limited(command, report, arguments)
    }

    /// One that does not end is stopped, so that the others run and it is named.
    fn limited(&self, mut timeout: Command, report: &mut Report, arguments: &[String]) -> Result<()> {
        timeout
            .args(["--kill-after=30", &MOST_SECONDS.to_string()])
            .arg(&self.path)
            .args(arguments)
            .current_dir(&self.directory);
        report.tests(timeout, &self.name)
    }
}

/// Builds what `cargo test` would run for these arguments, with the programs that it starts.
pub(crate) fn build(selection: &[&str]) -> Result<Vec<Binary>> {
    let output = Command::new(workspace::cargo())
        .args(["test", "--no-run", "--message-format=json-render-diagnostics"])
        .args(selection)
        .current_dir(workspace::root())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the tests do not compile; the compiler's messages are above"
    );
    let mut binaries = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message = serde_json::from_str(line).context("cargo's messages are JSON")?;
        binaries.extend(binary(&message));
    }
    ensure!(
        !binaries.is_empty(),
        "there are no tests in {}",
        selection.join(" ")
    );
    binaries.sort_by(|a, b| (&a.directory, &a.name).cmp(&(&b.directory, &b.name)));
    Ok(binaries)
}

/// What a message of cargo says was built, if it is a test binary.
fn binary(message: &serde_json::Value) -> Option<Binary> {
    let path = message["executable"].as_str()?;
    let manifest = Path::new(message["manifest_path"].as_str()?);
    (message["profile"]["test"] == true).then_some(())?;
    Some(Binary {
        name: message["target"]["name"].as_str()?.to_owned(),
        path: PathBuf::from(path),
        directory: manifest.parent()?.to_path_buf(),
        is_file: message["target"]["kind"][0] == "test",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_told_from_what_else_is_built() {
        let mut message = serde_json::json!({
            "executable": "/target/debug/deps/spire-0123", "profile": {"test": true},
            "manifest_path": workspace::root().join("tests/Cargo.toml"), "target": {"name": "spire", "kind": ["test"]},
        });
        let spire = binary(&message).expect("a test binary");
        assert!(spire.crosses() && spire.name == "spire");
        message["target"]["kind"][0] = "lib".into();
        assert!(!binary(&message).expect("tests of a library").crosses());
        message["profile"]["test"] = false.into();
        assert!(binary(&message).is_none(), "a program");
        assert!(binary(&serde_json::json!({"reason": "build-finished"})).is_none());
    }
}
