// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask build-ebpf`: compiles the kernel programs to `target/bpf/zt-ebpf.o`.

use anyhow::Result;

use crate::ebpf_build::{Install, Tools};
use crate::workspace;

/// Builds the object and prints its path.
pub(crate) fn run() -> Result<()> {
    let say = |message: &str| eprintln!("installing: {message}");
    let tools = Tools::prepare(Install::Allowed, &say)?;
    let scratch = workspace::target()?.join("bpf");
    let output = scratch.join("zt-ebpf.o");
    eprintln!("building zt-ebpf with {tools}");
    tools.build(workspace::root(), &scratch, &output)?;
    println!("{}", output.display());
    Ok(())
}
