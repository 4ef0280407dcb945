// SPDX-License-Identifier: Apache-2.0
//! The doctor where what it looks at is not mounted: it says so, mounts nothing, and claims nothing of what it does not see.

use anyhow::Result;
use zt_tests::mounts::Mounts;
use zt_tests::pair::{pair, policy};

use super::Report;

/// No BPF file system is mounted.
const NO_BPFFS: [&str; 3] = [
    "sh",
    "-c",
    "! grep -q ' /sys/fs/bpf .* - bpf ' /proc/self/mountinfo",
];

#[test]
fn where_there_is_no_bpffs_the_doctor_says_who_has_to_mount_it() -> Result<()> {
    let (scene, server, mut client) = pair("doctor-no-bpffs")?;
    let agent = scene.agent(&policy())?.start()?;

    // In a container: the agent beside it is out of sight, and so is what it has pinned.
    let container = Mounts::of_container(scene.sandbox())?;
    container.unmount()?;
    let report = Report::through(&container.enter(), &agent, &[])?;
    assert_eq!(report.code, Some(1));
    report.says("bpffs", "failed", "a BPF file system at /sys/fs/bpf of the host");
    report.says(
        "agent.alive",
        "warning",
        "it cannot be told whether an agent runs here",
    );
    report.says("cgroup.mount", "ok", "cgroup v2 is at ");
    report.says("cgroup.managed", "ok", "processes");
    container.run(&NO_BPFFS)?;

    // On a machine that nobody has mounted it on yet, whose first process has the same mounts.
    let machine = Mounts::of_machine(scene.sandbox())?;
    machine.unmount()?;
    let report = Report::through(&machine.enter(), &agent, &[])?;
    report.says("bpffs", "ok", "an agent that starts does");
    report.says("agent.alive", "warning", "no agent runs here");
    machine.run(&NO_BPFFS)?;
    assert_eq!(client.tcp(server.v4(80))?, "ok");
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    Ok(())
}

#[test]
fn where_there_is_no_cgroup2_the_doctor_says_how_to_mount_it() -> Result<()> {
    let (scene, server, mut client) = pair("doctor-no-cgroup2")?;
    let agent = scene.agent(&policy())?.start()?;
    let pid = agent.pid().unwrap_or_default();
    let words = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "umount --all --lazy --types cgroup2; exec \"$@\"",
        "sh",
    ];
    let report = Report::through(&words.map(str::to_owned), &agent, &[])?;
    assert_eq!(report.code, Some(1));
    report.says("cgroup.mount", "failed", "no cgroup v2 hierarchy is mounted");
    report.says("cgroup.managed", "failed", "there is no cgroup");
    report.says("hooks.attached", "failed", "none of the managed cgroups is there");
    report.says("agent.alive", "ok", &format!("process {pid}"));
    report.says("bpffs", "ok", "is on the BPF file system");
    // Elsewhere all is as it was.
    let report = Report::of(&agent, &[])?;
    report.says("cgroup.mount", "ok", "cgroup v2 is at ");
    report.says("hooks.attached", "ok", "12 hooks");
    assert_eq!(client.tcp(server.v4(81))?, "EPERM");
    Ok(())
}
