// SPDX-License-Identifier: Apache-2.0
//! How many instructions the verifier walks until it takes a program, by kernel: `zt-ebpf/instructions.json`, which the test
//! `instructions` compares with what it measures.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

use crate::workspace;

/// The variable by which that test knows that it is to measure, and not to compare.
pub(crate) const RECORDING: &str = "ZT_RECORD_INSTRUCTIONS=1";
/// What the line begins with in which that test says what it measured.
const MARK: &str = "instructions: ";

fn path() -> PathBuf {
    workspace::root().join("zt-ebpf/instructions.json")
}

/// What one kernel's verifier walked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    compiler: String,
    kernel: String,
    programs: Value,
}

impl Measured {
    /// What a line says, if it is such a line.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let said: Value = serde_json::from_str(line.strip_prefix(MARK)?).ok()?;
        Some(Self {
            compiler: said["compiler"].as_str()?.to_owned(),
            kernel: said["kernel"].as_str()?.to_owned(),
            programs: said["programs"].clone(),
        })
    }
}

fn recorded() -> Result<Value> {
    let text = fs::read_to_string(path()).with_context(|| format!("cannot read {}", path().display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path().display()))
}

/// Whether anything is recorded of a kernel, such as `6.1`.
pub(crate) fn is_recorded(kernel: &str) -> bool {
    recorded().is_ok_and(|recorded| recorded["kernels"][kernel].is_object())
}

/// Writes what was measured over what is recorded of the same kernels; of all of them, if another compiler made that.
pub(crate) fn record(measured: &[Measured]) -> Result<()> {
    let (first, rest) = measured
        .split_first()
        .context("nothing was measured: name the tier `kernel` or `vm`")?;
    ensure!(
        rest.iter().all(|other| other.compiler == first.compiler),
        "the kernel object is of more than one compiler"
    );
    let old = recorded().unwrap_or_default();
    let mut kernels = Map::new();
    if old["compiler"] == *first.compiler {
        kernels.extend(old["kernels"].as_object().cloned().unwrap_or_default());
    }
    for one in measured {
        kernels.insert(one.kernel.clone(), one.programs.clone());
    }
    let text = serde_json::to_string_pretty(&json!({ "compiler": first.compiler, "kernels": kernels }))?;
    fs::write(path(), text + "\n").with_context(|| format!("cannot write {}", path().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_line_of_the_test_and_no_other() {
        let line = r#"instructions: {"compiler":"rustc 1","kernel":"6.1","programs":{"zt_adopt":12}}"#;
        let measured = Measured::read(line).expect("it is such a line");
        assert_eq!(measured.kernel, "6.1");
        assert_eq!(measured.programs["zt_adopt"], 12);
        assert_eq!(Measured::read("test the_instructions ... ok"), None);
        assert_eq!(Measured::read("instructions: many"), None);
    }
}
