// SPDX-License-Identifier: Apache-2.0
//! The machine: its kernel's release and settings, the cgroup tree, the disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::finding::Finding;
use crate::cgroup::{CgroupError, ManagedCgroup};

/// The oldest kernel that every program loads on.
const OLDEST: (u32, u32) = (6, 1);
/// Free bytes below which a file system is as good as full.
const FULL: u64 = 64 << 20;
/// What an agent with its maps takes at the most, as a rule.
const MEMORY: u64 = 256 << 20;

pub(super) const MIB: u64 = 1 << 20;

/// Release of the running kernel.
pub(super) fn release() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    )
}

/// A file below `/sys` or `/proc`, trimmed; `None` where it is not there.
pub(super) fn value(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

pub(super) fn version(release: &str) -> Finding {
    const CHECK: &str = "kernel.version";
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|digits| digits.parse::<u32>().ok());
    let found = format!("Linux {release}");
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST => Finding::ok(CHECK, found),
        (Some(_), Some(_)) => Finding::failed(
            CHECK,
            format!("{found} is older than {}.{}", OLDEST.0, OLDEST.1),
            "boot a kernel of 6.1 or later: older ones refuse some of the programs",
        ),
        _ => Finding::warning(
            CHECK,
            found,
            "its number is not understood: `kernel.programs` says whether it will do",
        ),
    }
}

pub(super) fn types(there: bool) -> Finding {
    const CHECK: &str = "kernel.btf";
    if there {
        Finding::ok(CHECK, "/sys/kernel/btf/vmlinux is there")
    } else {
        Finding::failed(
            CHECK,
            "/sys/kernel/btf/vmlinux is missing",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF; those of the distributions have it",
        )
    }
}

/// `text`: of `/sys/kernel/security/lockdown`, where the chosen word is in brackets.
pub(super) fn lockdown(text: Option<&str>) -> Finding {
    const CHECK: &str = "kernel.lockdown";
    let Some(text) = text else {
        return Finding::not_applicable(CHECK, "this kernel has no lockdown, or securityfs is not mounted");
    };
    let chosen = text.split(['[', ']']).nth(1).unwrap_or(text);
    if chosen == "confidentiality" {
        Finding::warning(
            CHECK,
            "lockdown is `confidentiality`: programs that read memory of the kernel are refused",
            "see `kernel.programs`; where it has failed, boot with `lockdown=integrity`",
        )
    } else {
        Finding::ok(CHECK, format!("lockdown is `{chosen}`"))
    }
}

/// `text`: of `/sys/kernel/security/lsm`.
pub(super) fn modules(text: Option<&str>) -> Finding {
    const CHECK: &str = "kernel.lsm";
    match text {
        Some(text) if text.split(',').any(|name| name == "selinux") => Finding::warning(
            CHECK,
            text,
            "where the agent is refused, look for `bpf` in the audit log of SELinux: its domain needs map_create, prog_load and prog_run",
        ),
        Some(text) if text.split(',').any(|name| name == "bpf") => Finding::ok(
            CHECK,
            format!("{text}; zt uses bpf, see `kernel.packet_sockets`, and needs none of them"),
        ),
        Some(text) => Finding::ok(CHECK, format!("{text}; zt needs none of them")),
        None => Finding::not_applicable(CHECK, "securityfs is not mounted"),
    }
}

/// `enabled`: `net.core.bpf_jit_enable`.
pub(super) fn jit(enabled: Option<&str>) -> Finding {
    const CHECK: &str = "sysctl.bpf_jit_enable";
    match enabled {
        Some("0") => Finding::warning(
            CHECK,
            "net.core.bpf_jit_enable is 0: programs are interpreted",
            "`sysctl -w net.core.bpf_jit_enable=1`, and in /etc/sysctl.d; then start the agent anew",
        ),
        Some(value) => Finding::ok(CHECK, format!("net.core.bpf_jit_enable is {value}")),
        None => Finding::not_applicable(CHECK, "this kernel has no such setting: it always compiles"),
    }
}

/// `enabled`: `kernel.bpf_stats_enabled`.
pub(super) fn statistics(enabled: Option<&str>) -> Finding {
    const CHECK: &str = "sysctl.bpf_stats_enabled";
    match enabled {
        Some(value) if value != "0" => Finding::warning(
            CHECK,
            "kernel.bpf_stats_enabled is 1: each run of a program is timed, and costs more than the program",
            "`sysctl -w kernel.bpf_stats_enabled=0` unless somebody measures",
        ),
        _ => Finding::ok(CHECK, "programs are not timed"),
    }
}

/// `instances` and `watches`: what one user may have; `cgroups`: how many are below the managed roots.
pub(super) fn inotify(instances: Option<u64>, watches: Option<u64>, cgroups: usize) -> Finding {
    const CHECK: &str = "sysctl.inotify";
    let (Some(instances), Some(watches)) = (instances, watches) else {
        return Finding::not_applicable(CHECK, "fs.inotify is not there");
    };
    let found =
        format!("max_user_instances {instances}, max_user_watches {watches}; {cgroups} cgroups are managed");
    // Others of the same user watch, too; and a cgroup is a directory.
    let wanted = (2 * cgroups as u64).max(1024);
    if instances < 16 || watches < wanted {
        let remedy = format!(
            "`sysctl -w fs.inotify.max_user_instances=128 fs.inotify.max_user_watches={}`, and in /etc/sysctl.d",
            wanted.max(65_536)
        );
        Finding::warning(CHECK, found, remedy)
    } else {
        Finding::ok(CHECK, found)
    }
}

/// `values`: what `net.ipv4.tcp_fastopen` is in each network namespace of workloads, with a process that is in it. `wanted`: whether
/// handshakes bear identities; `running`: whether an agent runs.
pub(super) fn fast_open(values: &[(u32, io::Result<u32>)], wanted: bool, running: bool) -> Finding {
    const CHECK: &str = "sysctl.tcp_fastopen";
    if !wanted {
        return Finding::not_applicable(
            CHECK,
            "`handshake` is off: data in a SYN matters only to identities in handshakes",
        );
    }
    if values.is_empty() {
        return Finding::not_applicable(CHECK, "no process lives below the managed cgroups");
    }
    let on: Vec<u32> = values
        .iter()
        .filter(|(_, value)| value.as_ref().is_ok_and(|value| *value != 0))
        .map(|(pid, _)| *pid)
        .collect();
    let found = format!(
        "{} of {} network namespaces have Fast Open",
        on.len(),
        values.len()
    );
    match on.first() {
        None => Finding::ok(CHECK, found),
        Some(pid) if running => Finding::warning(
            CHECK,
            format!("{found}; process {pid} lives in one"),
            format!(
                "data of a client may arrive there before it has shown who it is: `nsenter --net=/proc/{pid}/ns/net sysctl -w net.ipv4.tcp_fastopen=0`; the agent's log says why it could not"
            ),
        ),
        Some(_) => Finding::ok(
            CHECK,
            format!("{found}; the agent switches it off when it starts"),
        ),
    }
}

/// `mount`: where cgroup2 is mounted.
pub(super) fn cgroup_mount(mount: &Result<PathBuf, CgroupError>) -> Finding {
    const CHECK: &str = "cgroup.mount";
    match mount {
        Ok(mount) => Finding::ok(CHECK, format!("cgroup v2 is at {}", mount.display())),
        Err(error) => Finding::failed(
            CHECK,
            error.to_string(),
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
    }
}

/// `controllers`: of the root of the hierarchy.
pub(super) fn controllers(controllers: Option<&str>) -> Finding {
    const CHECK: &str = "cgroup.controllers";
    match controllers {
        Some("") => Finding::ok(
            CHECK,
            "none: they are version 1's (a hybrid layout); zt needs none",
        ),
        Some(names) => Finding::ok(CHECK, format!("{names}; zt needs none of them")),
        None => Finding::not_applicable(CHECK, "cgroup v2 is not mounted"),
    }
}

/// `present` and `absent`: the managed roots, below the mount; `cgroups` and `processes`: how many are below them.
pub(super) fn managed(
    managed: &ManagedCgroup,
    present: &[PathBuf],
    absent: &[PathBuf],
    cgroups: usize,
    processes: usize,
) -> Finding {
    const CHECK: &str = "cgroup.managed";
    let names = |paths: &[PathBuf]| {
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        names.join(", ")
    };
    let is_auto = *managed == ManagedCgroup::Auto;
    if present.is_empty() || (!is_auto && !absent.is_empty()) {
        let remedy = if is_auto {
            "start the kubelet, or name the cgroup whose workloads are meant: `managedCgroup` (kind: kubelet.slice/kubelet-kubepods.slice)"
        } else {
            "correct `managedCgroup`, or start what makes the cgroup: the agent waits for it"
        };
        return Finding::failed(CHECK, format!("there is no cgroup {}", names(absent)), remedy);
    }
    let found = format!(
        "{}: {cgroups} cgroups below, {processes} processes",
        names(present)
    );
    if processes == 0 {
        Finding::warning(
            CHECK,
            found,
            "nobody lives there: if workloads run on this machine, `managedCgroup` names another place",
        )
    } else {
        Finding::ok(CHECK, found)
    }
}

/// What there is room for on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Bytes that may be written.
    pub(super) free: u64,
    /// It is mounted read-only.
    pub(super) read_only: bool,
}

/// The room at a path, or at the nearest directory above it that is there.
pub(super) fn room(path: &Path) -> io::Result<Room> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let found = statvfs(there).map_err(io::Error::from)?;
    Ok(Room {
        free: found.blocks_available() * found.fragment_size(),
        read_only: found.flags().contains(FsFlags::ST_RDONLY),
    })
}

/// `limit`: how much the agent may still write there by its configuration.
pub(super) fn disk(check: &'static str, path: &Path, room: &io::Result<Room>, limit: u64) -> Finding {
    let shown = path.display();
    match room {
        Err(error) => Finding::failed(
            check,
            format!("{shown} cannot be looked at: {error}"),
            "make the directory",
        ),
        Ok(Room { read_only: true, .. }) => Finding::failed(
            check,
            format!("{shown} is on a file system that is read-only"),
            "mount it read-write, or name another place",
        ),
        Ok(Room { free, .. }) => {
            let found = format!("{} MiB free at {shown}", free / MIB);
            if *free < FULL {
                Finding::failed(
                    check,
                    found,
                    "make room: decisions that find none are lost, and counted",
                )
            } else if *free < limit {
                let found = format!(
                    "{found}, and `audit.maxDiskBytes` lets the agent write {} MiB more",
                    limit / MIB
                );
                Finding::warning(check, found, "make room, or lower `audit.maxDiskBytes`")
            } else {
                Finding::ok(check, found)
            }
        }
    }
}

/// `limit`: the lowest `memory.max` of the agent's cgroup and those around it; `None` where there is none.
pub(super) fn memory(limit: Option<u64>) -> Finding {
    const CHECK: &str = "agent.memory";
    match limit {
        None => Finding::ok(
            CHECK,
            "no limit; programs and maps are charged to the agent's cgroup, RLIMIT_MEMLOCK does not matter",
        ),
        Some(limit) if limit < MEMORY => Finding::warning(
            CHECK,
            format!("its cgroup may have {} MiB", limit / MIB),
            format!(
                "give it {} MiB: maps are charged to it, and an agent that is killed for memory starts over",
                MEMORY / MIB
            ),
        ),
        Some(limit) => Finding::ok(CHECK, format!("its cgroup may have {} MiB", limit / MIB)),
    }
}

/// The lowest `memory.max` of a process's cgroup and those around it.
pub(super) fn memory_limit(mount: &Path, pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let all = mount.join(own);
    let around = all.ancestors().take_while(|path| path.starts_with(mount));
    around
        .filter_map(|path| {
            fs::read_to_string(path.join("memory.max"))
                .ok()?
                .trim()
                .parse()
                .ok()
        })
        .min()
}

#[cfg(test)]
mod tests;
