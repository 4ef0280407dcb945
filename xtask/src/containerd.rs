// SPDX-License-Identifier: Apache-2.0
//! Real containerd for the tests, with what asks it and what is in its image, built from their Go modules as
//! `xtask/containerd` pins them. Debian's containerd is older than NRI.

use std::path::PathBuf;

use anyhow::Result;

use crate::golang::{self, Module};

/// The version that `xtask/containerd/go.mod` requires.
const VERSION: &str = "2.2.1";

const MODULE: Module = Module {
    directory: "xtask/containerd",
    sources: &["go.mod", "go.sum", "tools.go", "pause/main.go"],
    programs: &[
        ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
        (
            "containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        ),
        ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ("crictl", "sigs.k8s.io/cri-tools/cmd/crictl"),
        ("pause", "./pause"),
    ],
    name: "containerd and crictl",
    takes: "two to five minutes",
};

fn directory() -> Result<PathBuf> {
    Ok(golang::cache()?.join(format!("containerd-{VERSION}")))
}

/// The directory with the programs, if they are there.
pub(crate) fn present() -> Option<PathBuf> {
    directory().ok().filter(|directory| MODULE.is_built(directory))
}

/// The directory with the programs, which are built if they are not there.
pub(crate) fn obtain() -> Result<PathBuf> {
    let directory = directory()?;
    MODULE.obtain(&directory)?;
    Ok(directory)
}
