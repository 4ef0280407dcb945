// SPDX-License-Identifier: Apache-2.0
//! The machine, the agent's process, and its log.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::archive::Archive;
use super::commands::said_by;
use super::{pods, separated};

/// Files of the machine that say what it is like.
const FILES: [(&str, &str); 8] = [
    ("/etc/os-release", "host/os-release.txt"),
    ("/proc/version", "host/version.txt"),
    ("/proc/meminfo", "host/meminfo.txt"),
    ("/proc/loadavg", "host/loadavg.txt"),
    ("/proc/uptime", "host/uptime.txt"),
    ("/proc/self/mountinfo", "host/mountinfo.txt"),
    ("/sys/kernel/security/lsm", "host/lsm.txt"),
    ("/sys/kernel/security/lockdown", "host/lockdown.txt"),
];
/// Settings of the kernel that zt has to do with.
const SETTINGS: [&str; 12] = [
    "fs/inotify/max_queued_events",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "kernel/bpf_stats_enabled",
    "kernel/unprivileged_bpf_disabled",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/ipv4/tcp_fastopen",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_timestamps",
    "net/ipv6/conf/all/disable_ipv6",
    "net/mptcp/enabled",
];
/// Of the agent's process. Its environment is not among them.
const PROCESS: [&str; 4] = ["status", "limits", "cgroup", "mountinfo"];
/// Most bytes that are read from the end of a log.
const LOG_BYTES: u64 = 8 << 20;

pub(super) fn gather<W: Write>(archive: &mut Archive<W>, pid: Option<u32>, lines: usize) -> io::Result<()> {
    for (path, name) in FILES {
        archive.text_or_why(name, fs::read_to_string(path))?;
    }
    let setting = |name: &&str| {
        let value = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
        Some(format!("{} = {}\n", name.replace('/', "."), value.trim()))
    };
    let settings: String = SETTINGS.iter().filter_map(setting).collect();
    archive.text("host/sysctl.txt", &settings)?;
    for (arguments, name) in [
        (&["address"][..], "host/addresses.txt"),
        (&["route", "show", "table", "all"], "host/routes.txt"),
        (&["rule"], "host/rules.txt"),
        (&["netns", "list"], "host/namespaces.txt"),
    ] {
        archive.text_or_why(name, said_by("ip", arguments))?;
    }
    if let Some(pid) = pid {
        for file in PROCESS {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}"));
            archive.text_or_why(&format!("agent/process/{file}.txt"), text)?;
        }
        let command = separated(&format!("/proc/{pid}/cmdline"));
        archive.text_or_why("agent/process/cmdline.txt", command)?;
    }
    logs(archive, pid, lines)
}

/// The end of the agent's log, from wherever it goes.
fn logs<W: Write>(archive: &mut Archive<W>, pid: Option<u32>, lines: usize) -> io::Result<()> {
    let count = lines.to_string();
    let journal = [
        "--unit",
        "zt-agent",
        "--lines",
        &count,
        "--no-pager",
        "--output",
        "short-iso",
    ];
    archive.text_or_why("logs/journal.txt", said_by("journalctl", &journal))?;
    // Its standard error, where that is a file.
    let own = pid.and_then(|pid| fs::read_link(format!("/proc/{pid}/fd/2")).ok());
    match own.filter(|path| path.is_file()) {
        Some(path) => {
            let text = File::open(path).and_then(|file| last_lines(file, lines));
            archive.text_or_why("logs/stderr.txt", text)?;
        }
        None => archive.missing(
            "logs/stderr.txt",
            "the agent does not run, or does not write to a file",
        ),
    }
    pod_logs(archive, lines)
}

/// The logs of agents that run as pods here.
fn pod_logs<W: Write>(archive: &mut Archive<W>, lines: usize) -> io::Result<()> {
    let found = pods::find(&pods::ROOTS.map(Path::new));
    if found.logs.is_empty() {
        let mut why = "no agent that runs as a pod has a log here; `kubectl logs`, and `kubectl logs --previous` of the one that ran \
            before, may have it"
            .to_owned();
        for unseen in &found.unseen {
            why.push_str("; ");
            why.push_str(unseen);
        }
        archive.missing("logs/pod", &why);
    }
    for (number, log) in found.logs.into_iter().enumerate() {
        archive.text_or_why(&format!("logs/pod-{number}.txt"), last_lines(log, lines))?;
    }
    Ok(())
}

/// The last lines of a file that may be long.
fn last_lines(mut file: File, lines: usize) -> io::Result<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};

    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let kept = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
    Ok(kept.iter().flat_map(|line| [*line, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_the_last_lines_are_taken() {
        let directory = tempfile::tempdir().expect("tempdir");
        let log = directory.path().join("a.log");
        fs::write(&log, "one\ntwo\nthree\n").expect("write");
        let last = |lines| {
            File::open(&log)
                .and_then(|file| last_lines(file, lines))
                .expect("read")
        };
        assert_eq!(last(2), "two\nthree\n");
        assert_eq!(last(9), "one\ntwo\nthree\n");
    }
}
