// SPDX-License-Identifier: Apache-2.0
//! `zt-agent connectivity-test`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use zt_tests::contained::{granted, through};
use zt_tests::{Sandbox, agent, cgroup, wait};

#[path = "connectivity/broken.rs"]
mod broken;

const DEADLINE: Duration = Duration::from_secs(60);
/// For a shell in a network namespace.
const NO_IPV6: &str = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6";
/// Of the tests in a container one looks at the mode of the root of the cgroups, which each changes for a moment.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Everything on this machine that bears the name of the test of `pid`.
fn remains(pid: u32) -> Result<Vec<PathBuf>> {
    let name = format!("zt-connectivity-{pid}");
    let mount = cgroup::mount_point()?;
    let mut found = Vec::new();
    for directory in [
        mount.as_path(),
        Path::new("/run/netns"),
        Path::new("/sys/fs/bpf"),
        &std::env::temp_dir(),
    ] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let found_name = entry.file_name().to_string_lossy().into_owned();
            let rest = found_name.strip_prefix(&name);
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn command(config: &str, arguments: &[&str]) -> Result<(tempfile::TempDir, Command)> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("agent.yaml");
    fs::write(&file, config)?;
    let mut command = Command::new(agent::binary()?);
    command
        .arg("connectivity-test")
        .args(arguments)
        .arg("--config")
        .arg(&file);
    Ok((directory, piped(command)))
}

fn piped(mut command: Command) -> Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs it, and gives its report; nothing is left.
fn report(config: &str) -> Result<Value> {
    let (_directory, mut command) = command(config, &["-o", "json"])?;
    reported(&mut command)
}

fn reported(command: &mut Command) -> Result<Value> {
    let child = command.spawn()?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| said.to_string())?;
    assert!(output.status.success(), "{report:#}\n{said}");
    // What takes its time says so.
    assert!(said.contains("the kernel verifies its programs"), "{said}");
    assert_eq!(remains(pid)?, Vec::<PathBuf>::new());
    Ok(report)
}

/// How each check came out, in the order in which they were made.
fn results<'a>(report: &'a Value, check: &str) -> Vec<(&'a str, &'a str, &'a str)> {
    let rows = report["checks"].as_array().map_or(&[][..], Vec::as_slice).iter();
    let text = |row: &'a Value, field: &str| row[field].as_str().unwrap_or("-");
    rows.filter(|row| row["check"] == check)
        .map(|row| (text(row, "ip"), text(row, "protocol"), text(row, "result")))
        .collect()
}

/// The command as `kubectl exec` runs it in the agent's container: with no other program, with what the container has as capabilities,
/// nowhere to write, and a part of the cgroups, which are read-only.
fn contained(alone: &Command) -> Result<Command> {
    let mut words = through(&granted()?)?.into_iter();
    let mut command = Command::new(words.next().context("a program")?);
    command.args(words);
    command.args(["env", "PATH=/nonexistent", "TMPDIR=/var/tmp"]);
    command.arg(alone.get_program()).args(alone.get_args());
    Ok(piped(command))
}

/// What had to come out of a check, each time that it was made.
fn expected<'a>(report: &'a Value, check: &str) -> Vec<&'a str> {
    let rows = report["checks"].as_array().map_or(&[][..], Vec::as_slice).iter();
    rows.filter(|row| row["check"] == check)
        .filter_map(|row| row["expected"].as_str())
        .collect()
}

/// Whoever has no name, the workload itself and the host came out as they must under these settings.
fn configured(report: &Value, [unknown, itself, host]: [&str; 3]) {
    for (check, setting, ways) in [
        ("unknown workload", unknown, &BOTH[..]),
        ("to itself", itself, &BOTH[..]),
        ("from the host", host, &BOTH[..2]),
    ] {
        assert_eq!(results(report, check), ways, "{check}: {report:#}");
        let expected = expected(report, check);
        assert!(
            expected.iter().all(|expected| expected.contains(setting)),
            "{check}: {expected:?}"
        );
    }
}

const BOTH: [(&str, &str, &str); 4] = [
    ("IPv4", "TCP", "passed"),
    ("IPv6", "TCP", "passed"),
    ("IPv4", "UDP", "passed"),
    ("IPv6", "UDP", "passed"),
];

#[test]
fn everything_that_it_tries_comes_out() -> Result<()> {
    everything_comes_out("handshake: auto\nclusterCIDRs: [10.0.0.0/8]\n").map(drop)
}

/// Fails where the test has an agent without the guard that the node's has.
#[test]
fn everything_comes_out_with_the_packet_guard_in_place() -> Result<()> {
    let report = everything_comes_out("handshake: auto\npacketGuard: true\n")?;
    let guarded = "carries on without the agent (packetGuard: true)";
    assert_eq!(expected(&report, "live connection"), [guarded; 2]);
    Ok(())
}

/// Runs it with a configuration that has all be tried.
fn everything_comes_out(config: &str) -> Result<Value> {
    let report = report(config)?;
    assert_eq!(
        (&report["passed"], &report["handshake"]),
        (&true.into(), &"auto".into())
    );
    for check in [
        "observe",
        "allow",
        "deny",
        "deny at the destination",
        "without the agent",
    ] {
        assert_eq!(results(&report, check), BOTH, "{check}: {report:#}");
    }
    let tcp = [("IPv4", "TCP", "passed"), ("IPv6", "TCP", "passed")];
    for check in ["handshake", "live connection"] {
        assert_eq!(results(&report, check), tcp, "{check}: {report:#}");
    }
    assert_eq!(results(&report, "borrowed address"), tcp[..1]);
    let each = |ip| [(ip, "TCP", "passed"), (ip, "UDP", "passed")];
    assert_eq!(
        results(&report, "revocation"),
        [each("IPv4"), each("IPv6")].concat()
    );
    configured(
        &report,
        ["unknownWorkload: observe", "allowSelf: true", "allowHost: true"],
    );
    Ok(report)
}

/// Fails where the test has an agent that knows less of the configuration than the node's.
#[test]
fn what_the_configuration_forbids_is_refused() -> Result<()> {
    let settings = ["unknownWorkload: deny", "allowSelf: false", "allowHost: false"];
    configured(&report(&settings.join("\n"))?, settings);
    Ok(())
}

/// As on a node that has IPv6 switched off.
#[test]
fn without_ipv6_the_rest_is_tried_and_the_table_says_why() -> Result<()> {
    let sandbox = Sandbox::new("no-ipv6")?;
    let node = sandbox.host("node")?;
    let switched = node.command("sh").args(["-c", NO_IPV6]).status()?;
    ensure!(switched.success(), "{switched}");
    let (_directory, alone) = command("handshake: auto\n", &["-o", "json"])?;
    let mut there = node.command(alone.get_program());
    there.args(alone.get_args());
    let report = reported(&mut piped(there))?;
    assert_eq!(report["passed"], true, "{report:#}");
    let half = BOTH.map(|(ip, protocol, result)| match ip {
        "IPv6" => (ip, protocol, "not_applicable"),
        _ => (ip, protocol, result),
    });
    for check in [
        "observe",
        "unknown workload",
        "allow",
        "deny",
        "to itself",
        "deny at the destination",
        "without the agent",
    ] {
        assert_eq!(results(&report, check), half, "{check}: {report:#}");
    }
    for check in ["handshake", "from the host", "live connection"] {
        assert_eq!(results(&report, check), half[..2], "{check}: {report:#}");
    }
    assert_eq!(
        results(&report, "revocation"),
        [half[0], half[2], half[1], half[3]],
        "{report:#}"
    );
    assert_eq!(results(&report, "borrowed address"), half[..1]);
    for row in report["checks"].as_array().context("checks")? {
        let found = row["found"].as_str().context("what was found")?;
        let says_why = found.contains("net.ipv6.conf.all.disable_ipv6");
        assert_eq!(row["result"] == "not_applicable", says_why, "{row}");
    }
    Ok(())
}

#[test]
fn what_the_configuration_leaves_out_is_not_tried() -> Result<()> {
    let report = report("handshake: off\n")?;
    let without = [
        ("IPv4", "TCP", "not_applicable"),
        ("IPv6", "TCP", "not_applicable"),
    ];
    assert_eq!(results(&report, "handshake"), without);
    assert_eq!(results(&report, "borrowed address"), without[..1]);
    assert_eq!(results(&report, "deny at the destination"), BOTH);
    Ok(())
}

#[test]
fn in_the_container_of_the_agent_it_works_as_well() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock();
    let mount = cgroup::mount_point()?;
    let mode = || Ok::<_, std::io::Error>(fs::metadata(&mount)?.permissions().mode());
    let before = mode()?;
    let (_directory, alone) = command("handshake: auto\n", &["-o", "json"])?;
    let report = reported(&mut contained(&alone)?)?;
    assert_eq!(report["passed"], true, "{report:#}");
    for check in ["allow", "deny", "deny at the destination", "without the agent"] {
        assert_eq!(results(&report, check), BOTH, "{check}: {report:#}");
    }
    // Of the directory that all cgroups are in, too, nothing is changed.
    assert_eq!(mode()?, before);
    Ok(())
}

#[test]
fn nothing_is_left_even_when_it_is_killed() -> Result<()> {
    let _alone = ONE_AT_A_TIME.lock();
    let (_directory, alone) = command("handshake: auto\n", &[])?;
    let contained = contained(&alone)?;
    for command in [alone, contained] {
        killed(command)?;
    }
    Ok(())
}

fn killed(mut command: Command) -> Result<()> {
    let mut child = command.spawn()?;
    let pid = child.id();
    let errors = child.stderr.take().context("a pipe")?;
    let begun = BufReader::new(errors)
        .lines()
        .map_while(std::io::Result::ok)
        .any(|line| line.contains("observing"));
    assert!(begun, "it comes that far");
    assert!(!remains(pid)?.is_empty());
    child.kill()?;
    child.wait()?;
    wait::wait_for("everything to be removed", DEADLINE, || {
        Ok(remains(pid)?.is_empty().then_some(()))
    })
}
