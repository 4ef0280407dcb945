// SPDX-License-Identifier: Apache-2.0
//! Programs that come in packages of the distribution.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::privilege;

/// A program that comes in a package of the distribution.
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
    pub(super) purpose: &'static str,
    pub(super) required: bool,
    /// With what arguments it must succeed to be whole, where a package has but a part of it.
    works: &'static [&'static str],
}

impl Program {
    const fn of(package: &'static str, name: &'static str, purpose: &'static str) -> Self {
        Self {
            name,
            package,
            purpose,
            required: true,
            works: &[],
        }
    }

    const fn optional(mut self) -> Self {
        self.required = false;
        self
    }

    const fn if_works(mut self, arguments: &'static [&'static str]) -> Self {
        self.works = arguments;
        self
    }
}

pub(super) const PROGRAMS: [Program; 15] = [
    Program::of("iproute2", "ip", "network namespaces of tests"),
    Program::of("iproute2", "ss", "sockets of tests and demo"),
    Program::of("util-linux", "nsenter", "commands inside those namespaces"),
    Program::of("bpftool", "bpftool", "tests that look at the kernel from outside"),
    Program::of("iptables", "iptables", "tests of translated addresses"),
    Program::of("systemd", "systemd-analyze", "tests of the units"),
    Program::of("redis-server", "redis-server", "the demo's real Redis").optional(),
    Program::of(
        "postgresql",
        "postgres",
        "tests of the audit trail, and the demo's real PostgreSQL",
    ),
    Program::of(
        "prometheus",
        "prometheus",
        "tests of the metrics, scraped by a real Prometheus",
    ),
    Program::of("prometheus", "promtool", "tests of the alerts"),
    Program::of("tmux", "tmux", "tests of the terminal view"),
    Program::of("chromium", "chromium", "tests of the page, in a real browser"),
    Program::of(
        "chromium-driver",
        "chromedriver",
        "tests of the page: what steers that browser",
    ),
    Program::of(
        "runc",
        "runc",
        "tests of containers that wait for their identity, under a real containerd",
    ),
    Program::of(
        "python3-venv",
        "python3",
        "schemathesis, which tries the API, and programs of the lints",
    )
    .if_works(&["-c", "import ensurepip, venv"]),
];

/// What the tests on other kernels need besides what is put into a guest; not needed for anything else.
pub(super) const FOR_VM: [Program; 5] = [
    Program::of(
        "iproute2",
        "bridge",
        "network namespaces of tests on older kernels",
    ),
    Program::of("qemu-system-x86", "qemu-system-x86_64", "tests on older kernels"),
    Program::of("busybox-static", "busybox", "what starts tests on older kernels"),
    Program::of("binutils", "strip", "programs that fit into a virtual machine"),
    Program::of("xz-utils", "xz", "modules of older kernels"),
];

/// What the container image is built with; not needed for anything else.
pub(super) const FOR_IMAGE: [Program; 2] = [
    Program::of("buildah", "buildah", "the container image, without a daemon"),
    Program::of("binutils", "strip", "the container image's program"),
];

/// What asks the API in the benchmark; not needed for anything else.
pub(super) const WRK: Program = Program::of("wrk", "wrk", "the benchmark's requests over HTTP").optional();

/// What is measured beside zt; not needed for anything else.
pub(super) const NFT: Program =
    Program::of("nftables", "nft", "the benchmark of nftables beside zt").optional();

/// What the tests against a real API server need besides that; not needed for anything else.
pub(super) const FOR_APISERVER: [Program; 2] = [
    Program::of(
        "etcd-server",
        "etcd",
        "where the API server of Kubernetes keeps its objects",
    ),
    Program::of("curl", "curl", "the tests' requests to it over TLS"),
];

/// Services that these packages would start and enable; nobody asked for them.
const SERVICES: [&str; 5] = [
    "etcd.service",
    "nftables.service",
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

/// Those of setup's programs that have one of these names.
pub(super) fn named(names: &[&str]) -> Vec<&'static Program> {
    let all = PROGRAMS.iter().chain(&FOR_VM);
    all.filter(|program| names.contains(&program.name)).collect()
}

/// Installs those of these programs that are missing, all of which are required.
pub(super) fn install(programs: &[&Program]) -> Result<()> {
    let absent = programs.iter().copied();
    let absent: Vec<&Program> = absent.filter(|program| find(program).is_none()).collect();
    if !absent.is_empty() {
        install_packages(&absent)?;
    }
    ensure_all(programs)
}

fn ensure_all(programs: &[&Program]) -> Result<()> {
    let programs = programs.iter().copied();
    let lacks: Vec<String> = programs
        .filter(|program| find(program).is_none())
        .map(lacks)
        .collect();
    ensure!(lacks.is_empty(), "something is missing\n  {}", lacks.join("\n  "));
    Ok(())
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
        .filter(|file| is_whole(program, file))
}

/// Whether a program does what is asked of it. One of which nothing is asked is not run: it may be a server, which stays.
fn is_whole(program: &Program, file: &Path) -> bool {
    if program.works.is_empty() {
        return true;
    }
    let mut command = Command::new(file);
    command.args(program.works).stdin(Stdio::null());
    command.output().is_ok_and(|output| output.status.success())
}

pub(super) fn by_hand(program: &Program) -> String {
    if Path::new("/usr/bin/apt-get").exists() {
        format!("apt-get install --no-install-recommends {}", program.package)
    } else {
        format!("your package manager for {}", program.package)
    }
}

/// Tries to install each of them. What could not be installed is seen by whether it is there.
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
        if !status.success() {
            eprintln!("  apt-get could not install {}", program.package);
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::vm;

    #[test]
    fn what_a_guest_is_given_is_installed_for_it() {
        let installed = named(&vm::INSIDE);
        assert_eq!(installed.len(), vm::INSIDE.len(), "{:?}", vm::INSIDE);
    }

    #[test]
    fn a_program_that_is_there_and_does_not_work_is_not_there() {
        let shell = Program::of("dash", "sh", "a test");
        assert!(find(&shell).is_some());
        assert!(find(&shell.if_works(&["-c", "exit 1"])).is_none());
    }

    #[test]
    fn a_program_of_which_nothing_is_asked_is_not_run() -> Result<()> {
        // A server would stay for ever, and setup with it.
        let directory = env::temp_dir().join(format!("zt-xtask-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let trace = directory.join("was-run");
        let script = directory.join("server");
        fs::write(&script, format!("#!/bin/sh\ntouch {}\n", trace.display()))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let server = Program::of("a", "server", "a test");
        assert!(is_whole(&server, &script));
        assert!(!trace.exists(), "it was run");
        assert!(is_whole(&server.if_works(&["--version"]), &script));
        assert!(trace.exists(), "it was not run");
        fs::remove_dir_all(&directory)?;
        Ok(())
    }

    #[test]
    fn what_is_missing_is_said_of_all() {
        // Nothing is installed where nothing is asked for.
        let error = ensure_all(&[
            &Program::of("a", "zt-none-1", "x"),
            &Program::of("b", "zt-none-2", "y"),
        ]);
        let error = error.expect_err("neither is there").to_string();
        assert!(
            error.contains("zt-none-1 (x)") && error.contains("zt-none-2 (y)"),
            "{error}"
        );
    }
}
