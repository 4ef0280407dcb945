// SPDX-License-Identifier: Apache-2.0
//! What renders and checks the Helm chart in tests: Helm's own packages and the types of Kubernetes, put together in
//! `xtask/chart` and built with Go. The whole program `helm` takes three times as long to build.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::golang::{self, Module};

const MODULE: Module = Module {
    directory: "xtask/chart",
    sources: &["go.mod", "go.sum", "main.go"],
    programs: &[("zt-chart", ".")],
    name: "what checks the Helm chart",
    takes: "a minute or two",
};

/// In which directory the program is: another one for other sources.
fn place() -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    for source in MODULE.sources {
        let path = MODULE.source(source);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.hash(&mut hasher);
    }
    Ok(golang::cache()?.join(format!("chart-{:016x}", hasher.finish())))
}

/// The program, if it is there.
pub(crate) fn present() -> Option<PathBuf> {
    let directory = place().ok().filter(|directory| MODULE.is_built(directory))?;
    Some(directory.join("zt-chart"))
}

/// The program, which is built if it is not there.
pub(crate) fn obtain() -> Result<PathBuf> {
    let directory = place()?;
    MODULE.obtain(&directory)?;
    Ok(directory.join("zt-chart"))
}
