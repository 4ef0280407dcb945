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
/// What the line begins with in which it says that it had nothing like it to compare with.
pub(crate) const NOT_COMPARED: &str = "not compared: ";

fn path() -> PathBuf {
    workspace::root().join("zt-ebpf/instructions.json")
}

/// What one kernel's verifier walked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    tools: Tools,
    kernel: String,
    programs: Value,
}

/// What made the kernel object. Of others it is another object.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tools {
    compiler: String,
    linker: String,
}

impl Tools {
    /// Those that a line or the record names.
    fn of(said: &Value) -> Option<Self> {
        Some(Self {
            compiler: said["compiler"].as_str()?.to_owned(),
            linker: said["linker"].as_str()?.to_owned(),
        })
    }
}

impl Measured {
    /// What a line says, if it is such a line.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let said: Value = serde_json::from_str(line.strip_prefix(MARK)?).ok()?;
        Some(Self {
            tools: Tools::of(&said)?,
            kernel: said["kernel"].as_str()?.to_owned(),
            programs: said["programs"].clone(),
        })
    }

    /// Whether it is of this kernel, such as `6.1`.
    pub(crate) fn is_of(&self, kernel: &str) -> bool {
        self.kernel == kernel
    }

    /// Whether the same kernel is recorded.
    pub(crate) fn is_recorded(&self) -> Known {
        let recorded = recorded().unwrap_or_default();
        if !recorded["kernels"][&self.kernel].is_object() {
            Known::Not
        } else if Tools::of(&recorded).as_ref() == Some(&self.tools) {
            Known::OfThese
        } else {
            Known::OfOthers
        }
    }
}

/// Whether there is something to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing of this kernel.
    Not,
    /// What this kernel walked of an object that another compiler or linker made.
    OfOthers,
    /// What it walked of an object that these made.
    OfThese,
}

fn recorded() -> Result<Value> {
    let text = fs::read_to_string(path()).with_context(|| format!("cannot read {}", path().display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path().display()))
}

/// Writes what was measured over what is recorded of the same kernels; of all of them, if other tools made that object. Returns
/// what was dropped.
pub(crate) fn record(measured: &[Measured]) -> Result<Vec<String>> {
    let old = recorded()?;
    let (new, dropped) = merged(&old, measured)?;
    let text = serde_json::to_string_pretty(&new)? + "\n";
    // Whole, or as it was.
    let aside = path().with_extension("json.new");
    fs::write(&aside, text).with_context(|| format!("cannot write {}", aside.display()))?;
    fs::rename(&aside, path()).with_context(|| format!("cannot replace {}", path().display()))?;
    Ok(dropped)
}

/// The record with what was measured, and what is no longer in it.
fn merged(old: &Value, measured: &[Measured]) -> Result<(Value, Vec<String>)> {
    let (first, rest) = measured
        .split_first()
        .context("nothing was measured: name the tier `kernel` or `vm`")?;
    ensure!(
        rest.iter().all(|other| other.tools == first.tools),
        "the kernel object is of more than one compiler or linker"
    );
    let known = old["kernels"].as_object().cloned().unwrap_or_default();
    let same = Tools::of(old).as_ref() == Some(&first.tools);
    let is_measured = |kernel: &String| measured.iter().any(|one| one.kernel == *kernel);
    let dropped = known.keys().filter(|kernel| !same && !is_measured(kernel));
    let dropped = dropped.map(|kernel| {
        format!(
            "instructions of Linux {kernel} are no longer recorded: they were of another compiler or linker"
        )
    });
    let dropped = dropped.collect();
    let mut kernels = if same { known } else { Map::new() };
    for one in measured {
        kernels.insert(one.kernel.clone(), one.programs.clone());
    }
    let Tools { compiler, linker } = &first.tools;
    let new = json!({ "compiler": compiler, "linker": linker, "kernels": kernels });
    Ok((new, dropped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_line_of_the_test_and_no_other() {
        let line =
            r#"instructions: {"compiler":"rustc 1","linker":"2","kernel":"6.1","programs":{"zt_adopt":12}}"#;
        let measured = Measured::read(line).expect("it is such a line");
        assert_eq!(measured.kernel, "6.1");
        assert_eq!(measured.programs["zt_adopt"], 12);
        assert_eq!(Measured::read("test the_instructions ... ok"), None);
        assert_eq!(Measured::read("instructions: many"), None);
    }

    #[test]
    fn what_other_tools_made_is_dropped_and_said() {
        let old =
            json!({ "compiler": "a", "linker": "1", "kernels": { "6.1": { "p": 1 }, "6.12": { "p": 2 } } });
        let measured = |linker: &str| Measured {
            tools: Tools {
                compiler: "a".to_owned(),
                linker: linker.to_owned(),
            },
            kernel: "6.12".to_owned(),
            programs: json!({ "p": 3 }),
        };
        let (new, dropped) = merged(&old, &[measured("1")]).expect("of one compiler");
        assert_eq!(new["kernels"], json!({ "6.1": { "p": 1 }, "6.12": { "p": 3 } }));
        assert_eq!(dropped, [""; 0]);
        let (new, dropped) = merged(&old, &[measured("2")]).expect("of one compiler");
        assert_eq!(new["kernels"], json!({ "6.12": { "p": 3 } }));
        assert_eq!(new["linker"], "2");
        assert!(
            dropped.len() == 1 && dropped[0].contains("Linux 6.1 "),
            "{dropped:?}"
        );
        assert!(merged(&old, &[]).is_err() && merged(&old, &[measured("1"), measured("2")]).is_err());
    }
}
