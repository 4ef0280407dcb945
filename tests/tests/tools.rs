// SPDX-License-Identifier: Apache-2.0
//! `zt-agent doctor`, `connectivity-test` and `sysdump`, as a user runs them: what is broken is found and named, what is tried comes
//! out, and nothing is left behind.

#[path = "tools/connectivity.rs"]
mod connectivity;
#[path = "tools/engine.rs"]
mod engine;
#[path = "tools/explain.rs"]
mod explain;
#[path = "tools/mounts.rs"]
mod mounts;
#[path = "tools/sysdump.rs"]
mod sysdump;

use std::collections::BTreeMap;
use std::fs;
use std::process::Output;

use anyhow::{Context as _, Result};
use serde_json::Value;
use zt_tests::hooks::bpftool;
use zt_tests::pair::{pair, policy};
use zt_tests::rewriter::attach_alone;
use zt_tests::{Agent, Rewriter};

/// A report, by the names of checks; what is told of one several times comes together.
struct Report {
    findings: BTreeMap<String, Vec<Value>>,
    code: Option<i32>,
}

impl Report {
    fn of(agent: &Agent, arguments: &[&str]) -> Result<Self> {
        Self::through(&[], agent, arguments)
    }

    /// Of a doctor that is started by a command, whose words come before it.
    fn through(words: &[String], agent: &Agent, arguments: &[&str]) -> Result<Self> {
        let arguments: Vec<&str> = ["doctor", "-o", "json"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        let Output {
            status,
            stdout,
            stderr,
        } = agent.command_through(words, &arguments).output()?;
        let report: Value = serde_json::from_slice(&stdout)
            .with_context(|| format!("no report, but {}", String::from_utf8_lossy(&stderr)))?;
        let mut findings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for finding in report["findings"].as_array().context("findings")? {
            let check = finding["check"].as_str().context("a check")?.to_owned();
            findings.entry(check).or_default().push(finding.clone());
        }
        Ok(Self {
            findings,
            code: status.code(),
        })
    }

    /// Asserts how a check stands and what it found; whatever is not as it should be has a remedy.
    fn says(&self, check: &str, status: &str, found: &str) {
        let findings = self.findings.get(check).map_or(&[][..], Vec::as_slice);
        let fits = |finding: &&Value| {
            finding["status"] == status
                && finding["found"].as_str().is_some_and(|text| text.contains(found))
                && (!["warning", "failed"].contains(&status) || finding["remedy"].is_string())
        };
        assert!(
            findings.iter().any(|finding| fits(&finding)),
            "{check} {status} {found}: {findings:#?}"
        );
    }

    /// The checks that failed.
    fn failed(&self) -> Vec<&Value> {
        let all = self.findings.values().flatten();
        all.filter(|finding| finding["status"] == "failed").collect()
    }
}

#[test]
fn what_is_broken_is_found() -> Result<()> {
    let (scene, server, mut client) = pair("doctor")?;
    let mut agent = scene.agent(&policy())?.start()?;
    let pins = scene.sandbox().pins()?;

    let report = Report::of(&agent, &[])?;
    assert!(report.failed().is_empty(), "{:#?}", report.failed());
    assert_eq!(report.code, Some(0));
    let pid = agent.pid().context("it runs")?;
    let (hooks, packets) = if agent.decides_packet_sockets()? {
        ("13 hooks", "ok")
    } else {
        ("12 hooks", "warning")
    };
    report.says("kernel.packet_sockets", packets, "packet sockets");
    report.says("agent.alive", "ok", &format!("process {pid}"));
    for (check, found) in [
        ("agent.ready", ""),
        ("agent.policy", "revision"),
        ("agent.privileges", "has all"),
        ("kernel.programs", "verified all"),
        ("kernel.destroy_sockets", "was destroyed"),
        ("hooks.attached", hooks),
        ("hooks.in_the_way", ""),
        ("hooks.order", "nobody else"),
        ("pins.maps", "as this program makes them"),
        ("policy.files", "in force"),
        ("identity.file", "2 workloads"),
        ("audit.file", "entries"),
        ("audit.damaged", "no damaged file"),
        ("clock.steps", "was not set"),
    ] {
        report.says(check, "ok", found);
    }
    // Looked at, and left alone.
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");

    // Somebody else's program before ours, pins of another version, a map of another build, a policy that is wrong; and the
    // agent that would mend what it can is gone.
    agent.kill()?;
    let _foreign = Rewriter::attach(&client.cgroup, "cil_sock4_connect", server.v4(80), server.v4(80))?;
    fs::create_dir_all(pins.join("v0/links"))?;
    let flows = scene.sandbox().maps()?.join("zt_flows");
    fs::remove_file(&flows)?;
    let flows = flows.to_str().context("plain letters")?;
    bpftool(&[
        "map", "create", flows, "type", "hash", "key", "4", "value", "4", "entries", "1", "name", "zt_flows",
    ])?;
    fs::write(agent.files.policies().join("bad.yaml"), "kind: Nonsense\n")?;
    let report = Report::of(&agent, &[])?;
    assert_eq!(report.code, Some(1));
    report.says(
        "agent.alive",
        "failed",
        "no agent runs: the kernel goes on enforcing",
    );
    report.says("hooks.attached", "ok", "12 hooks");
    report.says("hooks.order", "warning", "cil_sock4_conne");
    report.says("hooks.order", "warning", "before ours");
    report.says("pins.other_versions", "warning", "v0");
    report.says("pins.maps", "failed", "zt_flows");
    report.says("policy.files", "failed", "bad.yaml");

    // A configuration that names another cgroup than the hooks are on, and one that makes no sense.
    let other = scene.sandbox().outside().child("other")?;
    let other = other.relative().to_str().context("plain letters")?.to_owned();
    let report = Report::of(&agent, &["--managed-cgroup", &other])?;
    report.says("hooks.attached", "failed", "links are attached to other cgroups");
    report.says("hooks.elsewhere", "failed", "");
    report.says("cgroup.managed", "warning", "0 processes");
    let report = Report::of(
        &agent,
        &["--mode", "perhaps", "--managed-cgroup", "zt-no-such-cgroup"],
    )?;
    report.says("config", "failed", "perhaps");

    // As people read it, each remedy below its finding.
    let output = agent
        .command(&["doctor", "--managed-cgroup", "zt-no-such-cgroup"])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let lines: Vec<&str> = text.lines().collect();
    let at = lines
        .iter()
        .position(|line| line.contains("there is no cgroup zt-no-such-cgroup"));
    let at = at.with_context(|| text.clone())?;
    assert!(
        lines[at].starts_with("failed ") && lines[at + 1].trim_start().starts_with("→ "),
        "{text}"
    );
    assert!(
        lines.last().is_some_and(|line| line.contains(" failed, ")),
        "{text}"
    );
    Ok(())
}

/// A program that was attached for itself alone keeps ours out, and is named.
#[test]
fn who_is_alone_at_a_hook_is_named() -> Result<()> {
    let (scene, server, _client) = pair("doctor-alone")?;
    attach_alone(scene.sandbox().managed(), "loner", server.v4(80), server.v4(80))?;
    let mut agent = scene.agent(&policy())?.launch()?;
    assert_eq!(agent.wait_exit()?.code(), Some(77));
    let report = Report::of(&agent, &[])?;
    report.says("hooks.in_the_way", "failed", "loner is attached to");
    report.says("hooks.attached", "failed", "zt_connect4");
    Ok(())
}
