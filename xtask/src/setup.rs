// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask setup`: installs what building, testing and the demo need, and skips what is there.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::ebpf_build::{Install, Tools};
use crate::{chart, containerd, privilege, spire};

/// A program that comes in a package of the distribution.
struct Program {
    name: &'static str,
    package: &'static str,
    purpose: &'static str,
    required: bool,
}

const PROGRAMS: [Program; 8] = [
    Program {
        name: "ip",
        package: "iproute2",
        purpose: "network namespaces of tests and demo",
        required: true,
    },
    Program {
        name: "nsenter",
        package: "util-linux",
        purpose: "commands inside those namespaces",
        required: true,
    },
    Program {
        name: "bpftool",
        package: "bpftool",
        purpose: "tests that look at the kernel from outside",
        required: true,
    },
    Program {
        name: "redis-server",
        package: "redis-server",
        purpose: "the demo's real Redis",
        required: false,
    },
    Program {
        name: "postgres",
        package: "postgresql",
        purpose: "tests of the audit trail, and the demo's real PostgreSQL",
        required: true,
    },
    Program {
        name: "prometheus",
        package: "prometheus",
        purpose: "tests of the metrics, scraped by a real Prometheus",
        required: true,
    },
    Program {
        name: "runc",
        package: "runc",
        purpose: "tests of containers that wait for their identity, under a real containerd",
        required: true,
    },
    Program {
        name: "promtool",
        package: "prometheus",
        purpose: "tests of the alerts",
        required: true,
    },
];

/// What asks the API in the benchmark; not needed for anything else.
const WRK: Program = Program {
    name: "wrk",
    package: "wrk",
    purpose: "the benchmark's requests over HTTP",
    required: false,
};

/// What the tests against a real API server need besides that; not needed for anything else.
const FOR_APISERVER: [Program; 2] = [
    Program {
        name: "etcd",
        package: "etcd-server",
        purpose: "where the API server of Kubernetes keeps its objects",
        required: true,
    },
    Program {
        name: "curl",
        package: "curl",
        purpose: "the tests' requests to it over TLS",
        required: true,
    },
];

/// Services that these packages would start and enable; nobody asked for them.
const SERVICES: [&str; 4] = [
    "etcd.service",
    "redis-server.service",
    "postgresql.service",
    "prometheus.service",
];

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
        install_packages(&absent)?;
    }
    for program in absent.iter().filter(|program| find(program).is_none()) {
        let line = format!(
            "{} ({}): run `{}`",
            program.name,
            program.purpose,
            by_hand(program)
        );
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

/// Installs what only the tests against a real API server need. No service is left running.
pub(crate) fn for_apiserver() -> Result<()> {
    let absent = || FOR_APISERVER.iter().filter(|program| find(program).is_none());
    if absent().next().is_some() {
        install_packages(&absent().collect::<Vec<_>>())?;
    }
    match absent().next() {
        Some(program) => bail!(
            "{} ({}): run `{}`",
            program.name,
            program.purpose,
            by_hand(program)
        ),
        None => Ok(()),
    }
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

/// Where a program is. System directories count also for users whose path lacks them.
fn find(program: &Program) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    directories.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    // Debian keeps each version of PostgreSQL in a directory of its own.
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        directories.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    directories
        .into_iter()
        .map(|directory| directory.join(program.name))
        .find(|file| file.is_file())
}

fn by_hand(program: &Program) -> String {
    if Path::new("/usr/bin/apt-get").exists() {
        format!("apt-get install --no-install-recommends {}", program.package)
    } else {
        format!("your package manager for {}", program.package)
    }
}

fn install_packages(programs: &[&Program]) -> Result<()> {
    if !Path::new("/usr/bin/apt-get").exists() {
        // Said program by program afterwards.
        return Ok(());
    }
    let why = "to install packages with apt-get";
    let _held = HeldServices::hold()?;
    let updated = privilege::as_root("apt-get", why)?
        .args(["update", "--quiet"])
        .status()?;
    if !updated.success() {
        eprintln!("  apt-get update failed; trying with the package lists that are there");
    }
    // One by one: a package that cannot be had must not keep the others away.
    for program in programs {
        println!("  installing: {} ({})", program.package, program.purpose);
        // Without systemd, this runlevel tells Debian's scripts not to start services.
        let status = privilege::as_root("env", why)?
            .args([
                "RUNLEVEL=1",
                "DEBIAN_FRONTEND=noninteractive",
                "apt-get",
                "install",
                "--yes",
            ])
            .args(["--quiet", "--no-install-recommends", program.package])
            .status()
            .context("cannot run apt-get")?;
        if !status.success() && program.required {
            bail!(
                "apt-get could not install {}: run `{}`",
                program.package,
                by_hand(program)
            );
        }
    }
    Ok(())
}

/// Keeps systemd from starting the services of packages that are being installed: masked until a reboot at most, and
/// not enabled afterwards. Services that were there before are left alone.
struct HeldServices {
    services: Vec<&'static str>,
}

impl HeldServices {
    fn hold() -> Result<Self> {
        let mut services = Vec::new();
        if Path::new("/run/systemd/system").exists() {
            let known = |service: &&str| {
                let cat = Command::new("systemctl").args(["cat", service]).output();
                cat.is_ok_and(|output| output.status.success())
            };
            services = SERVICES
                .iter()
                .copied()
                .filter(|service| !known(service))
                .collect();
        }
        let held = Self { services };
        held.systemctl(&["mask", "--runtime"])?;
        Ok(held)
    }

    fn systemctl(&self, arguments: &[&str]) -> Result<()> {
        if self.services.is_empty() {
            return Ok(());
        }
        let why = "to keep new packages from starting services";
        let status = privilege::as_root("systemctl", why)?
            .args(arguments)
            .args(&self.services)
            .status()?;
        ensure!(
            status.success(),
            "systemctl {} {} failed",
            arguments.join(" "),
            self.services.join(" ")
        );
        Ok(())
    }
}

impl Drop for HeldServices {
    fn drop(&mut self) {
        for arguments in [&["unmask", "--runtime"][..], &["disable"]] {
            if let Err(error) = self.systemctl(arguments) {
                // A service of a package that did not get installed cannot be disabled either.
                eprintln!("  {error:#}");
            }
        }
    }
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
