// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask test`: the checks and tests, by the privilege that they need.

mod binaries;

use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

pub(crate) use self::binaries::Binary;

use crate::instructions::RECORDING;
use crate::test_report::Report;
use crate::wheels::SCHEMATHESIS;
use crate::{
    chart, containerd, controller_manager, kubernetes, package, setup, spelling, spire, supply_chain, tidy,
    upgrade, vm, workspace,
};

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Formatting, clippy, tidy, spelling, and what the dependencies are
    Lint,
    /// Tests that need no privilege
    Unit,
    /// Tests over real cgroups and network namespaces; as root
    Kernel,
    /// Core tests of the kernel tier on Linux 6.1 and 6.12, in virtual machines without the help of hardware. Not part of `all`,
    /// which says so in the end: they take longer than all others together
    Vm,
    /// Tests against real programs of others (PostgreSQL, Prometheus, SPIRE, containerd, Helm, schemathesis, Chromium), each started for itself; as root
    Services,
    /// Tests against a real API server of Kubernetes and etcd, with SPIRE and its controller manager; as root. Not part of `all`, which
    /// says so in the end: building the API server, once, takes ten minutes of two cores
    Apiserver,
    /// The Debian package, the lists of what is in the program and the container image, made as a release makes them; as root. Not part
    /// of `all`, which says so in the end: the program is built as it is released, and `cargo deb` and `cargo cyclonedx` once, which
    /// takes some minutes each
    Package,
    /// An agent of another build (`--from REVISION`) is exchanged for this one and back, under load; as root. Not part of `all`, which
    /// says so in the end: the other agent is built first
    Upgrade,
    /// Known vulnerabilities of dependencies. Not part of `all`, which says so in the end: the database is on GitHub, and changes by the
    /// day while zt stays as it is. Where it cannot be had, this has failed
    Advisories,
    /// All of these but `vm`, `apiserver`, `package`, `upgrade` and `advisories`, after setting the machine up
    All,
}

/// Runs the tiers, always in the same order and each to its end; `arguments` go to the test binaries. `from` is the commit of the other build
/// of [`Tier::Upgrade`].
///
/// Ends with the line `N passed, N failed`, where a check that failed counts as one. False if anything did.
pub(crate) fn run(
    tiers: &[Tier],
    records_instructions: bool,
    from: Option<&str>,
    arguments: &[String],
) -> bool {
    let all = tiers.is_empty() || tiers.contains(&Tier::All);
    let wanted = |tier| all || tiers.contains(&tier);
    let mut report = Report::new(records_instructions);
    if all {
        report.step("setup", |_| setup::run(false));
    }
    if wanted(Tier::Lint) {
        report.step("format", |_| format());
        report.step("clippy", |_| {
            let arguments = [
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "--deny",
                "warnings",
            ];
            cargo(&arguments, "clippy's messages are above")
        });
        report.step("tidy", |_| tidy::run());
        report.step("spelling", |_| spelling::check());
        report.step("dependencies", |_| supply_chain::check());
    }
    let tests = [Tier::Unit, Tier::Kernel, Tier::Services].map(wanted);
    if tests == [true; 3] {
        side_by_side(&mut report, arguments);
    } else {
        if wanted(Tier::Unit) {
            report.step("unit", |report| unit(report, &unit_tests()?, arguments));
        }
        if wanted(Tier::Kernel) {
            report.step("kernel", |report| kernel(report, &crossing(&["*"])?, arguments));
        }
        if wanted(Tier::Services) {
            report.step("services", |report| {
                services(report, &crossing(&SERVICE_TESTS)?, arguments)
            });
        }
    }
    if tiers.contains(&Tier::Vm) {
        report.step("vm", |report| on_older_kernels(report, arguments));
    }
    if tiers.contains(&Tier::Apiserver) {
        report.step("apiserver", |report| apiserver(report, arguments));
    } else if all {
        report.note(left_out("a real API server of Kubernetes", "apiserver"));
    }
    if tiers.contains(&Tier::Package) {
        report.step("package", |report| in_package(report, arguments));
    } else if all {
        report.note(left_out("the Debian package and the container image", "package"));
    }
    if tiers.contains(&Tier::Upgrade) || from.is_some() {
        report.step("upgrade", |report| between_builds(report, from, arguments));
    } else if all {
        report.note(left_out("an agent of another build", "upgrade --from REVISION"));
    }
    if tiers.contains(&Tier::Advisories) {
        report.step("advisories", |_| supply_chain::advisories());
    } else if all {
        report.note(
            "NOT TESTED for known vulnerabilities of dependencies: `cargo xtask test advisories`".to_owned(),
        );
    }
    if all && !tiers.contains(&Tier::Vm) {
        report.note(left_out("Linux 6.1 and 6.12", "vm"));
    }
    if records_instructions {
        report.step("record instructions", Report::record);
    }
    report.finish()
}

/// All of the first three tiers: the services' tests beside the others. Most of them wait for something most of the time.
fn side_by_side(report: &mut Report, arguments: &[String]) {
    let mut built = Vec::new();
    report.step("build", |_| {
        built = binaries::build(&["--workspace", "--tests"])?;
        Ok(())
    });
    if built.is_empty() {
        // Which is a failure, and was said.
        return;
    }
    let built = &built[..];
    let (mut one, mut other) = (report.lane("node    "), report.lane("services"));
    thread::scope(|scope| {
        scope.spawn(|| {
            one.step("kernel", |report| kernel(report, built, arguments));
            one.step("unit", |report| unit(report, built, arguments));
        });
        other.step("services", |report| services(report, built, arguments));
    });
    report.join(one);
    report.join(other);
    report.try_again();
}

/// What is said of tests that were not run, so that nobody takes them for passed.
fn left_out(with: &str, tier: &str) -> String {
    format!("NOT TESTED with {with}: `cargo xtask test {tier}`")
}

/// Tests of `tests/tests` that need a program of somebody else.
const SERVICE_TESTS: [&str; 9] = [
    "chart",
    "cluster",
    "kubernetes",
    "nri",
    "page",
    "postgres",
    "prometheus",
    "schemathesis",
    "spire",
];

/// The test of `tests/tests` that needs a real API server.
const APISERVER_TEST: &str = "apiserver";
/// The one that needs what a release is made of.
const PACKAGE_TEST: &str = "package";
/// The one that needs an agent of another build.
const UPGRADE_TEST: &str = "between_builds";

/// The tests against programs of others: what is missing is installed first.
fn services(report: &mut Report, built: &[Binary], arguments: &[String]) -> Result<()> {
    let schemathesis = SCHEMATHESIS.obtain()?;
    let spire = spire::obtain()?;
    let chart = chart::obtain()?;
    let containerd = containerd::obtain()?;
    let why = "because an agent is started, which loads programs into the kernel, and servers run as users of their own";
    let given = [
        variable("ZT_SCHEMATHESIS", &schemathesis),
        variable("ZT_SPIRE", &spire),
        variable("ZT_CONTAINERD", &containerd),
        variable("ZT_CHART", &chart),
    ];
    for binary in named(built, &SERVICE_TESTS) {
        binary.run_as_root(report, why, &given, arguments)?;
    }
    Ok(())
}

/// The tests against a real API server: what is missing is installed and built first.
fn apiserver(report: &mut Report, arguments: &[String]) -> Result<()> {
    setup::for_apiserver()?;
    let apiserver = kubernetes::obtain()?;
    let manager = controller_manager::obtain()?;
    let spire = spire::obtain()?;
    let chart = chart::obtain()?;
    let why = "because an agent is started, which loads programs into the kernel";
    let given = [
        variable("ZT_KUBE_APISERVER", &apiserver),
        variable("ZT_CONTROLLER_MANAGER", &manager),
        variable("ZT_SPIRE", &spire),
        variable("ZT_CHART", &chart),
    ];
    for binary in crossing(&[APISERVER_TEST])? {
        binary.run_as_root(report, why, &given, arguments)?;
    }
    Ok(())
}

/// The tests of what a release is made of.
fn in_package(report: &mut Report, arguments: &[String]) -> Result<()> {
    // First: what is packed is what was built.
    let built = crossing(&[PACKAGE_TEST])?;
    let made = package::make()?;
    let why = "because the package's scripts and the image's program run in mounts of their own";
    for binary in built {
        binary.run_as_root(report, why, &[variable("ZT_PACKAGE", &made)], arguments)?;
    }
    Ok(())
}

/// The test of two builds that follow each other.
fn between_builds(report: &mut Report, from: Option<&str>, arguments: &[String]) -> Result<()> {
    let from = from
        .context("say which commit's agent is the other one: `cargo xtask test upgrade --from REVISION`")?;
    let other = upgrade::obtain(from)?;
    let why = "because agents are started, which load programs into the kernel";
    for binary in crossing(&[UPGRADE_TEST])? {
        binary.run_as_root(report, why, &[variable("ZT_OTHER_AGENT", &other)], arguments)?;
    }
    Ok(())
}

/// How a test is told where something is.
fn variable(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

/// Those of the tests that cross crates that have one of these names.
fn named<'a>(built: &'a [Binary], names: &[&str]) -> impl Iterator<Item = &'a Binary> {
    let crossing = built.iter().filter(|binary| binary.crosses());
    crossing.filter(move |binary| names.contains(&&*binary.name))
}

/// Builds the programs and those of the tests that cross crates that have one of these names, all for `*`.
fn crossing(names: &[&str]) -> Result<Vec<Binary>> {
    let programs = [
        "build",
        "--package",
        "zt-agent",
        "--package",
        "zt-tests",
        "--bins",
    ];
    cargo(&programs, "the build failed")?;
    let tests = names.iter().flat_map(|name| ["--test", name]);
    let selection: Vec<&str> = ["--package", "zt-tests"].into_iter().chain(tests).collect();
    binaries::build(&selection)
}

/// Builds all tests but those that cross crates.
fn unit_tests() -> Result<Vec<Binary>> {
    let mut built = binaries::build(&["--workspace", "--exclude", "zt-tests", "--tests"])?;
    built.extend(binaries::build(&["--package", "zt-tests", "--lib", "--bins"])?);
    Ok(built)
}

/// What is no member of the workspace `--all` does not reach.
fn format() -> Result<()> {
    for manifest in [
        "Cargo.toml",
        "fuzz/Cargo.toml",
        "tests/peers/Cargo.toml",
        "zt-ebpf/Cargo.toml",
    ] {
        let arguments = ["fmt", "--all", "--manifest-path", manifest];
        let mend = format!("run `cargo {}`", arguments.join(" "));
        cargo(&[&arguments[..], &["--check"]].concat(), &mend)?;
    }
    Ok(())
}

fn cargo(arguments: &[&str], otherwise: &str) -> Result<()> {
    let status = Command::new(workspace::cargo())
        .args(arguments)
        .current_dir(workspace::root())
        .status()?;
    ensure!(status.success(), "cargo {}: {otherwise}", arguments[0]);
    Ok(())
}

/// Everything that can run as any user: all but the tests that cross crates.
fn unit(report: &mut Report, built: &[Binary], arguments: &[String]) -> Result<()> {
    for binary in built.iter().filter(|binary| !binary.crosses()) {
        binary.run(report, arguments)?;
    }
    let mut examples = Command::new(workspace::cargo());
    examples
        .args(["test", "--no-fail-fast", "--workspace", "--doc", "--"])
        .args(arguments)
        .current_dir(workspace::root());
    report.tests(examples, "the documentation's examples")
}

/// The kernel tests: built as this user, run as root. They need no program of somebody else.
fn kernel(report: &mut Report, built: &[Binary], arguments: &[String]) -> Result<()> {
    let recording = report.records_instructions().then(|| RECORDING.to_owned());
    let given: Vec<String> = recording.into_iter().collect();
    let why = "because kernel tests make cgroups and network namespaces, and load programs into the kernel";
    let others = [&SERVICE_TESTS[..], &[APISERVER_TEST, PACKAGE_TEST, UPGRADE_TEST]].concat();
    let crossing = built.iter().filter(|binary| binary.crosses());
    for binary in crossing.filter(|binary| !others.contains(&&*binary.name)) {
        binary.run_as_root(report, why, &given, arguments)?;
    }
    Ok(())
}

/// The same programs and tests, in guests that boot other kernels.
fn on_older_kernels(report: &mut Report, arguments: &[String]) -> Result<()> {
    setup::for_vm()?;
    vm::run(report, &crossing(&vm::tests())?, arguments)
}
