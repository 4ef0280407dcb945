// SPDX-License-Identifier: Apache-2.0
//! Compiles the kernel programs, which the agent carries inside itself: `$OUT_DIR/zt-ebpf.o`.
//!
//! `ZT_EBPF_OBJECT` names an object that was built elsewhere, for packagers whose builds may not install anything.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[path = "../xtask/src/ebpf_build.rs"]
mod ebpf_build;

use ebpf_build::{Install, Tools};

const PREBUILT: &str = "ZT_EBPF_OBJECT";
/// What tells the agent's sources which linker made the object, in which nothing does.
const LINKER: &str = "ZT_EBPF_LINKER";

fn main() -> ExitCode {
    match object() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn object() -> Result<(), String> {
    let variable = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .ok_or(format!("cargo did not set {name}"))
    };
    let out = variable("OUT_DIR")?;
    let output = out.join("zt-ebpf.o");
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    if let Some(prebuilt) = env::var_os(PREBUILT).map(PathBuf::from) {
        println!("cargo::rerun-if-changed={}", prebuilt.display());
        println!("cargo::rustc-env={LINKER}=unknown");
        let copied = fs::copy(&prebuilt, &output);
        return copied.map(drop).map_err(|error| {
            format!("{PREBUILT} names {}, which cannot be read ({error}): unset it, or build that file with `cargo xtask build-ebpf`", prebuilt.display())
        });
    }

    let package = variable("CARGO_MANIFEST_DIR")?;
    let workspace = package.parent().ok_or("zt-agent is not inside its workspace")?;
    let sources = [
        "zt-ebpf/src",
        "zt-ebpf/Cargo.toml",
        "zt-ebpf/Cargo.lock",
        "zt-common/src",
        "zt-common/Cargo.toml",
        "xtask/src/ebpf_build.rs",
    ];
    // A path that does not exist would make every build run this again.
    for source in sources
        .iter()
        .map(|source| workspace.join(source))
        .filter(|source| source.exists())
    {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    let scratch = target_directory(&out).join("bpf");
    let offline = env::var("CARGO_NET_OFFLINE").is_ok_and(|value| value == "true");
    let install = if offline { Install::Never } else { Install::Allowed };
    let say = |message: &str| println!("cargo::warning={message}");
    let tools = Tools::prepare(install, &say).map_err(|error| error.to_string())?;
    println!("cargo::rustc-env={LINKER}={}", tools.linker_version);
    tools
        .build(workspace, &scratch, &output)
        .map_err(|error| error.to_string())
}

/// The outer target directory, above `OUT_DIR`: the profiles of the agent share one build of the kernel object.
fn target_directory(out: &Path) -> &Path {
    out.ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").exists())
        .unwrap_or(out)
}
