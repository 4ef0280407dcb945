// SPDX-License-Identifier: Apache-2.0
//! A kernel that does not do what policy says: each thing that does not come out is told with what came instead, the exit code is 1,
//! and nothing is left.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zt_tests::hooks::{bpftool, pins};
use zt_tests::{Cgroup, Rewriter};

use super::*;

/// One that takes longer hangs.
const LONGEST: Duration = Duration::from_mins(8);

/// A test of connectivity that runs, by the process that cleans up after it.
struct Tried(u32);

impl Tried {
    fn name(&self) -> String {
        format!("zt-connectivity-{}", self.0)
    }

    /// The cgroup of one of its workloads.
    fn workload(&self, name: &str) -> Result<Cgroup> {
        Cgroup::at(format!("{}/workloads/{name}", self.name()))
    }

    /// The process that tries everything.
    fn trial(&self) -> Result<Pid> {
        let wanted = "demo-process\0trial\0--settings\0";
        let owner = format!("\0--owner\0{}\0", self.0);
        let is_it = |line: &str| line.contains(wanted) && line.contains(&owner);
        for entry in fs::read_dir("/proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            // It may have ended since.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if is_it(&String::from_utf8_lossy(&line)) {
                return Ok(Pid::from_raw(pid));
            }
        }
        anyhow::bail!("process {} tries nothing", self.0)
    }
}

/// Runs it, and has something done while it stands still, just when it says that it has come `at` something: its report, of which
/// something failed. Nothing is left.
fn meddled<T>(at: &str, meddle: impl FnOnce(&Tried) -> Result<T>) -> Result<Value> {
    let (_directory, mut command) = command("handshake: auto\n", &["-o", "json"])?;
    let mut child = command.spawn()?;
    let tried = Tried(child.id());
    let pid = Pid::from_raw(child.id().try_into()?);
    let (done, is_done) = mpsc::channel::<()>();
    let guard = thread::spawn(move || {
        if is_done.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout) {
            // It hangs: that it ended so is seen below.
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let errors = child.stderr.take().context("a pipe")?;
    let mut lines = BufReader::new(errors).lines().map_while(std::io::Result::ok);
    ensure!(lines.any(|line| line.contains(at)), "it does not come {at}");
    let trial = tried.trial()?;
    kill(trial, Signal::SIGSTOP)?;
    let meddled = meddle(&tried);
    kill(trial, Signal::SIGCONT)?;
    let said: Vec<String> = lines.collect();
    let output = child.wait_with_output()?;
    drop(done);
    ensure!(guard.join().is_ok(), "who looks at the time");
    // What was done lasts until here.
    drop(meddled?);
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| said.join("\n"))?;
    assert_eq!(output.status.code(), Some(1), "{report:#}");
    assert_eq!(report["passed"], false);
    assert_eq!(remains(tried.0)?, Vec::<PathBuf>::new());
    let rows = report["checks"].as_array().context("checks")?;
    for row in rows.iter().filter(|row| row["result"] == "failed") {
        let told = |field: &str| row[field].as_str().is_some_and(|text| !text.is_empty());
        assert!(told("expected") && told("found"), "{row}");
    }
    // To its end, whatever came out on the way.
    assert_eq!(results(&report, "without the agent").len(), 4, "{report:#}");
    assert_eq!(results(&report, "completion"), []);
    Ok(report)
}

/// How one check came out over one way, and what was found.
fn came_out<'r>(report: &'r Value, check: &str, (ip, protocol): (&str, &str)) -> (&'r str, &'r str) {
    let rows = report["checks"].as_array().map_or(&[][..], Vec::as_slice);
    let row = rows
        .iter()
        .find(|row| row["check"] == check && row["ip"] == ip && row["protocol"] == protocol);
    let text = |field: &str| row.and_then(|row| row[field].as_str()).unwrap_or("-");
    (text("result"), text("found"))
}

/// Programs of others before ours: one sends the client of a database to a service that it may reach, one refuses what policy allows.
#[test]
fn programs_of_others_that_come_before_ours_are_noticed() -> Result<()> {
    let at = |number: u8, port: u16| SocketAddr::from((Ipv4Addr::new(10, 99, 0, number), port));
    let (database, gateway) = (at(5, 5432), at(3, 4000));
    let report = meddled("starting an agent", |tried| {
        let (chat, iam) = (tried.workload("chat")?, tried.workload("iam")?);
        Ok((
            Rewriter::attach(&chat, "elsewhere", database, gateway)?,
            Rewriter::refuse(&iam, "firewall", database)?,
        ))
    })?;
    let tcp = ("IPv4", "TCP");
    for check in ["observe", "deny", "allow", "handshake", "without the agent"] {
        let (result, found) = came_out(&report, check, tcp);
        assert_eq!(result, "failed", "{check}: {found}: {report:#}");
        assert_eq!(came_out(&report, check, ("IPv6", "TCP")).0, "passed", "{check}");
    }
    assert!(came_out(&report, "allow", tcp).1.contains("EPERM"), "{report:#}");
    assert!(
        !came_out(&report, "handshake", tcp).1.contains("mutual"),
        "{report:#}"
    );
    // It reached somebody whom policy lets it reach, and nobody says that it was refused.
    assert!(!came_out(&report, "deny", tcp).1.contains("EPERM"), "{report:#}");
    Ok(())
}

/// As where IPv6 is switched off in a pod.
#[test]
fn a_workload_without_ipv6_is_noticed() -> Result<()> {
    let report = meddled("starting an agent", |tried| {
        let namespace = format!("--net=/run/netns/{}-chat", tried.name());
        let status = Command::new("nsenter")
            .args([namespace.as_str(), "sh", "-c", NO_IPV6])
            .status()?;
        ensure!(status.success(), "nsenter {namespace}: {status}");
        Ok(())
    })?;
    for protocol in ["TCP", "UDP"] {
        for check in ["observe", "revocation"] {
            let (result, found) = came_out(&report, check, ("IPv6", protocol));
            assert_eq!(result, "failed", "{check} {protocol}: {found}: {report:#}");
            assert_eq!(
                came_out(&report, check, ("IPv4", protocol)).0,
                "passed",
                "{check} {protocol}"
            );
        }
        let (_, found) = came_out(&report, "observe", ("IPv6", protocol));
        assert!(!found.starts_with("answered"), "{found}");
        // That is of others.
        assert_eq!(
            came_out(&report, "allow", ("IPv6", protocol)).0,
            "passed",
            "{protocol}"
        );
    }
    Ok(())
}

/// The agent, which would put them back, sleeps.
#[test]
fn hooks_that_are_taken_away_while_the_agent_sleeps_are_noticed() -> Result<()> {
    let report = meddled("taking rules away", |tried| {
        for pid in Cgroup::at(format!("{}/agent", tried.name()))?.processes()? {
            kill(Pid::from_raw(pid.try_into()?), Signal::SIGSTOP)?;
        }
        let pinned = pins(&Path::new("/sys/fs/bpf").join(tried.name()))?;
        let links: Vec<&Path> = pinned
            .iter()
            .map(PathBuf::as_path)
            .filter(|pin| pin.parent().is_some_and(|parent| parent.ends_with("links")))
            .collect();
        ensure!(links.len() >= 10, "{pinned:?}");
        for link in links {
            bpftool(&[
                "link",
                "detach",
                "pinned",
                link.to_str().context("plain letters")?,
            ])?;
        }
        Ok(())
    })?;
    for protocol in ["TCP", "UDP"] {
        // That over IPv4 may have been under way.
        let (result, found) = came_out(&report, "revocation", ("IPv6", protocol));
        assert_eq!(result, "failed", "{protocol}: {found}: {report:#}");
        for ip in ["IPv4", "IPv6"] {
            let (result, found) = came_out(&report, "without the agent", (ip, protocol));
            assert!(
                result == "failed" && found.contains("denied: answered"),
                "{ip} {protocol}: {found}"
            );
            assert_eq!(
                came_out(&report, "deny", (ip, protocol)).0,
                "passed",
                "{ip} {protocol}"
            );
        }
    }
    Ok(())
}
