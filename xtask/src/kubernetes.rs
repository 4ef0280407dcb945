// SPDX-License-Identifier: Apache-2.0
//! The real API server of Kubernetes for the tests, built from its Go module as `xtask/kubernetes` pins it.

use std::path::PathBuf;

use anyhow::Result;

use crate::golang::{self, Module};

/// The version that `xtask/kubernetes/go.mod` requires.
const VERSION: &str = "1.34.4";

const MODULE: Module = Module {
    directory: "xtask/kubernetes",
    sources: &["go.mod", "go.sum", "tools.go"],
    programs: &[("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver")],
    name: "kube-apiserver of Kubernetes",
    takes: "ten minutes of two cores",
};

fn directory() -> Result<PathBuf> {
    Ok(golang::cache()?.join(format!("kubernetes-{VERSION}")))
}

/// The program `kube-apiserver`, which is built if it is not there.
pub(crate) fn obtain() -> Result<PathBuf> {
    let directory = directory()?;
    MODULE.obtain(&directory)?;
    Ok(directory.join("kube-apiserver"))
}
