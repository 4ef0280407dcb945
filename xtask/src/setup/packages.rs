// SPDX-License-Identifier: Apache-2.0
//! Programs that come in packages of the distribution.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::privilege;

/// A program that comes in a package of the distribution.
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
    pub(super) purpose: &'static str,
    pub(super) required: bool,
}

pub(super) const PROGRAMS: [Program; 8] = [
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

/// What the tests on other kernels need besides that; not needed for anything else.
pub(super) const FOR_VM: [Program; 6] = [
    Program {
        name: "bridge",
        package: "iproute2",
        purpose: "network namespaces of tests on older kernels",
        required: true,
    },
    Program {
        name: "ss",
        package: "iproute2",
        purpose: "sockets of tests on older kernels",
        required: true,
    },
    Program {
        name: "qemu-system-x86_64",
        package: "qemu-system-x86",
        purpose: "tests on older kernels",
        required: true,
    },
    Program {
        name: "busybox",
        package: "busybox-static",
        purpose: "what starts tests on older kernels",
        required: true,
    },
    Program {
        name: "strip",
        package: "binutils",
        purpose: "programs that fit into a virtual machine",
        required: true,
    },
    Program {
        name: "xz",
        package: "xz-utils",
        purpose: "modules of older kernels",
        required: true,
    },
];

/// What asks the API in the benchmark; not needed for anything else.
pub(super) const WRK: Program = Program {
    name: "wrk",
    package: "wrk",
    purpose: "the benchmark's requests over HTTP",
    required: false,
};

/// What the tests against a real API server need besides that; not needed for anything else.
pub(super) const FOR_APISERVER: [Program; 2] = [
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

/// Where a program is that this installs.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let mut programs = PROGRAMS.iter().chain(&FOR_VM);
    let program = programs.find(|program| program.name == name);
    let program = program.with_context(|| format!("{name} is not among the programs of setup"))?;
    find(program).with_context(|| lacks(program))
}

/// Installs those of these programs that are missing, all of which are required.
pub(super) fn install(programs: &[Program]) -> Result<()> {
    let absent = || programs.iter().filter(|program| find(program).is_none());
    if absent().next().is_some() {
        install_packages(&absent().collect::<Vec<_>>())?;
    }
    match absent().next() {
        Some(program) => bail!(lacks(program)),
        None => Ok(()),
    }
}

/// What is missing, and what to do.
pub(super) fn lacks(program: &Program) -> String {
    format!(
        "{} ({}): run `{}`",
        program.name,
        program.purpose,
        by_hand(program)
    )
}

/// Where a program is. System directories count also for users whose path lacks them.
pub(super) fn find(program: &Program) -> Option<PathBuf> {
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

pub(super) fn by_hand(program: &Program) -> String {
    if Path::new("/usr/bin/apt-get").exists() {
        format!("apt-get install --no-install-recommends {}", program.package)
    } else {
        format!("your package manager for {}", program.package)
    }
}

pub(super) fn install_packages(programs: &[&Program]) -> Result<()> {
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
