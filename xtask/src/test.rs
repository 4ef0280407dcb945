// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask test`: the checks and tests, by the privilege that they need.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::instructions::RECORDING;
use crate::test_report::Report;
use crate::{
    chart, containerd, controller_manager, kubernetes, package, privilege, services, setup, spire, tidy, vm,
    workspace,
};

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Formatting, clippy and tidy
    Lint,
    /// Tests that need no privilege
    Unit,
    /// Tests over real cgroups and network namespaces; as root
    Kernel,
    /// Core tests of the kernel tier on Linux 6.1 and 6.12, in virtual machines without the help of hardware. Not part of `all`,
    /// which says so in the end: they take longer than all others together
    Vm,
    /// Tests against real programs of others (PostgreSQL, Prometheus, SPIRE, containerd, Helm, schemathesis), each started for itself; as root
    Services,
    /// Tests against a real API server of Kubernetes and etcd, with SPIRE and its controller manager; as root. Not part of `all`, which
    /// says so in the end: building the API server, once, takes ten minutes of two cores
    Apiserver,
    /// The Debian package and the lists of what is in the program, made as a release makes them; as root. Not part of `all`, which says
    /// so in the end: building `cargo deb` and `cargo cyclonedx`, once, takes some minutes
    Package,
    /// All of these but `vm`, `apiserver` and `package`, after setting the machine up
    All,
}

/// Runs the tiers, always in the same order and each to its end; `arguments` go to the test binaries.
///
/// Ends with the line `N passed, N failed`, where a check that failed counts as one. False if anything did.
pub(crate) fn run(tiers: &[Tier], records_instructions: bool, arguments: &[String]) -> bool {
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
    }
    if wanted(Tier::Unit) {
        report.step("unit", |report| unit(report, arguments));
    }
    if wanted(Tier::Kernel) {
        report.step("kernel", |report| kernel(report, arguments));
    }
    if tiers.contains(&Tier::Vm) {
        report.step("vm", |report| on_older_kernels(report, arguments));
    }
    if wanted(Tier::Services) {
        report.step("services", |report| services(report, arguments));
    }
    if tiers.contains(&Tier::Apiserver) {
        report.step("apiserver", |report| apiserver(report, arguments));
    } else if all {
        report.note(left_out("a real API server of Kubernetes", "apiserver"));
    }
    if tiers.contains(&Tier::Package) {
        report.step("package", |report| in_package(report, arguments));
    } else if all {
        report.note(left_out("the Debian package", "package"));
    }
    if all && !tiers.contains(&Tier::Vm) {
        report.note(left_out("Linux 6.1 and 6.12", "vm"));
    }
    if records_instructions {
        report.step("record instructions", Report::record);
    }
    report.finish()
}

/// What is said of tests that were not run, so that nobody takes them for passed.
fn left_out(with: &str, tier: &str) -> String {
    format!("NOT TESTED with {with}: `cargo xtask test {tier}`")
}

/// Tests of `tests/tests` that need a program of somebody else.
const SERVICE_TESTS: [&str; 8] = [
    "chart",
    "cluster",
    "kubernetes",
    "nri",
    "postgres",
    "prometheus",
    "schemathesis",
    "spire",
];

/// The test of `tests/tests` that needs a real API server.
const APISERVER_TEST: &str = "apiserver";
/// The one that needs what a release is made of.
const PACKAGE_TEST: &str = "package";

/// How long a test binary may take. The longest takes a third of it.
const MOST_SECONDS: u64 = 1200;

/// The name of the test in a binary such as `schemathesis-0123abc`.
fn test_name(binary: &Path) -> String {
    let name = binary.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('-').map_or(&*name, |(name, _)| name).to_owned()
}

/// Whether a test binary is of the services tier.
fn is_service_test(binary: &Path) -> bool {
    SERVICE_TESTS.contains(&&*test_name(binary))
}

/// Whether a test binary is of the kernel tier: it needs no program of somebody else.
fn is_kernel_test(binary: &Path) -> bool {
    !is_service_test(binary) && ![APISERVER_TEST, PACKAGE_TEST].contains(&&*test_name(binary))
}

/// The tests against programs of others: what is missing is installed first.
fn services(report: &mut Report, arguments: &[String]) -> Result<()> {
    let schemathesis = services::schemathesis()?;
    let spire = spire::obtain()?;
    let chart = chart::obtain()?;
    let containerd = containerd::obtain()?;
    build_binaries()?;
    for binary in kernel_tests(&["*"])?
        .iter()
        .filter(|binary| is_service_test(binary))
    {
        let why = "because an agent is started, which loads programs into the kernel, and servers run as users of their own";
        let given = [
            variable("ZT_SCHEMATHESIS", &schemathesis),
            variable("ZT_SPIRE", &spire),
            variable("ZT_CONTAINERD", &containerd),
            variable("ZT_CHART", &chart),
        ];
        as_root(report, binary, why, &given, arguments)?;
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
    build_binaries()?;
    for binary in kernel_tests(&["*"])?
        .iter()
        .filter(|binary| test_name(binary) == APISERVER_TEST)
    {
        let why = "because an agent is started, which loads programs into the kernel";
        let given = [
            variable("ZT_KUBE_APISERVER", &apiserver),
            variable("ZT_CONTROLLER_MANAGER", &manager),
            variable("ZT_SPIRE", &spire),
            variable("ZT_CHART", &chart),
        ];
        as_root(report, binary, why, &given, arguments)?;
    }
    Ok(())
}

/// The tests of what a release is made of.
fn in_package(report: &mut Report, arguments: &[String]) -> Result<()> {
    build_binaries()?;
    let made = package::make()?;
    for binary in kernel_tests(&[PACKAGE_TEST])? {
        let why = "because the package's scripts run in mounts of their own";
        as_root(report, &binary, why, &[variable("ZT_PACKAGE", &made)], arguments)?;
    }
    Ok(())
}

/// How a test is told where something is.
fn variable(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

/// Runs a test binary as root, with these variables. One that does not end is stopped, so that the others run and it is named.
fn as_root(
    report: &mut Report,
    binary: &Path,
    why: &str,
    variables: &[String],
    arguments: &[String],
) -> Result<()> {
    // sudo passes on what it is given on the command line.
    let mut command = privilege::as_root("env", why)?;
    limited(command.args(variables).arg("timeout"))
        .arg(binary)
        .args(arguments)
        .current_dir(workspace::root().join("tests"));
    report.tests(command, &test_name(binary))
}

/// The arguments of `timeout`.
fn limited(command: &mut Command) -> &mut Command {
    command.args(["--kill-after=30", &MOST_SECONDS.to_string()])
}

fn build_binaries() -> Result<()> {
    let packages = ["--package", "zt-agent", "--package", "zt-tests", "--bins"];
    cargo(&[&["build"], &packages[..]].concat(), "the build failed")
}

/// What is no member of the workspace `--all` does not reach.
fn format() -> Result<()> {
    for manifest in ["Cargo.toml", "tests/peers/Cargo.toml", "zt-ebpf/Cargo.toml"] {
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

/// Everything that `cargo test` can run as any user: all but the kernel tests.
fn unit(report: &mut Report, arguments: &[String]) -> Result<()> {
    let selections: [&[&str]; 3] = [
        &["--workspace", "--exclude", "zt-tests", "--tests"],
        &["--package", "zt-tests", "--lib", "--bins"],
        &["--workspace", "--doc"],
    ];
    for selection in selections {
        // Building may take what it takes. Examples in the documentation are built as they are run.
        if !selection.contains(&"--doc") {
            let build = [&["test", "--no-run"], selection].concat();
            cargo(&build, "the tests do not compile")?;
        }
        let mut command = Command::new("timeout");
        limited(&mut command)
            .arg(workspace::cargo())
            .args(["test", "--no-fail-fast"])
            .args(selection)
            .arg("--")
            .args(arguments)
            .current_dir(workspace::root());
        report.tests(command, &format!("cargo test {}", selection.join(" ")))?;
    }
    Ok(())
}

/// The kernel tests: built as this user, run as root.
fn kernel(report: &mut Report, arguments: &[String]) -> Result<()> {
    build_binaries()?;
    let binaries = kernel_tests(&["*"])?;
    let recording = report.records_instructions().then(|| RECORDING.to_owned());
    let given: Vec<String> = recording.into_iter().collect();
    for binary in binaries.iter().filter(|binary| is_kernel_test(binary)) {
        let why =
            "because kernel tests make cgroups and network namespaces, and load programs into the kernel";
        as_root(report, binary, why, &given, arguments)?;
    }
    Ok(())
}

/// The same programs and tests, in guests that boot other kernels.
fn on_older_kernels(report: &mut Report, arguments: &[String]) -> Result<()> {
    setup::for_vm()?;
    build_binaries()?;
    let binaries = kernel_tests(&vm::tests())?;
    vm::run(report, &binaries, &test_name, arguments)
}

/// Builds tests of `tests/tests`, all for `*`, and returns the binaries.
fn kernel_tests(names: &[&str]) -> Result<Vec<PathBuf>> {
    let tests = names.iter().flat_map(|name| ["--test", name]);
    let output = Command::new(workspace::cargo())
        .args(["test", "--package", "zt-tests", "--no-run"])
        .args(tests)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(workspace::root())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the kernel tests do not compile; the compiler's messages are above"
    );
    let mut binaries = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("cargo's messages are JSON")?;
        let is_test = message["profile"]["test"] == true && message["target"]["kind"][0] == "test";
        if let Some(path) = message["executable"].as_str().filter(|_| is_test) {
            binaries.push(PathBuf::from(path));
        }
    }
    ensure!(!binaries.is_empty(), "there are no kernel tests in tests/tests");
    binaries.sort();
    Ok(binaries)
}
