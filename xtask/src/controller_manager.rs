// SPDX-License-Identifier: Apache-2.0
//! The real spire-controller-manager for the tests, built from its Go module as `xtask/controller-manager` pins it.

use std::path::PathBuf;

use anyhow::Result;

use crate::golang::{self, Module};

/// The version that `xtask/controller-manager/go.mod` requires and `deploy/spire/server.yaml` runs.
const VERSION: &str = "0.6.3";

const MODULE: Module = Module {
    directory: "xtask/controller-manager",
    sources: &["go.mod", "go.sum", "tools.go"],
    programs: &[(
        "spire-controller-manager",
        "github.com/spiffe/spire-controller-manager/cmd",
    )],
    name: "spire-controller-manager",
    takes: "a few minutes",
};

fn directory() -> Result<PathBuf> {
    Ok(golang::cache()?.join(format!("spire-controller-manager-{VERSION}")))
}

/// The program `spire-controller-manager`, which is built if it is not there.
pub(crate) fn obtain() -> Result<PathBuf> {
    let directory = directory()?;
    MODULE.obtain(&directory)?;
    Ok(directory.join("spire-controller-manager"))
}
