// SPDX-License-Identifier: Apache-2.0
//! `zt-agent doctor`: what this machine, its configuration and the agent's surroundings are like, what is wrong with them, and what
//! to do about it. Nothing is changed, and no agent has to run.
//!
//! Each file looks at one part and judges it: what is looked at is handed to a function that only judges, and has its tests beside
//! it.

mod abilities;
mod agent;
mod clock;
mod engine;
mod files;
mod finding;
mod hooks;
mod host;
mod kubernetes;
mod rollout;
mod spire;
mod store;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use self::agent::{address, ask};
pub use self::finding::{Counts, Finding, Report, Status};

use self::hooks::Agent;
use crate::app;
use crate::audit::clock as wall;
use crate::audit::record::Timestamp;
use crate::cgroup;
use crate::config::{Config, ConfigError, Handshake};
use crate::kernel::{self, Holder, KernelError, Lock, ManagedRoot, PinnedVersion, Wanted, netns};

/// How far below a managed cgroup is looked for programs of others.
const DEPTH: usize = 4;
/// Cgroups that are looked at.
const MOST_CGROUPS: usize = 4096;

const SECOND: i64 = 1_000_000_000;

/// Whom the doctor looks at.
#[derive(Debug)]
pub struct Patient {
    /// The configuration file that was named.
    pub file: Option<PathBuf>,
    /// What is in it; where that cannot be used, the defaults are looked at.
    pub loaded: Result<Config, ConfigError>,
}

/// Looks at everything. `progress` is told before what may take a second.
pub async fn examine(patient: &Patient, progress: &dyn Fn(&str)) -> Report {
    let defaults = Config::default();
    let config = patient.loaded.as_ref().unwrap_or(&defaults);
    let now = wall::now();
    let mut findings = files::configuration(patient.file.as_deref(), &patient.loaded);
    let around = Surroundings::look(config);
    let status = if around.agent == Agent::Runs {
        progress("asking the agent");
        ask(config, "/v1/status").await
    } else {
        Err("no agent runs".to_owned())
    };
    findings.extend(machine(config, &around));
    progress("the kernel verifies the programs, on maps of their own");
    findings.extend(enforcement(config, &around));
    findings.push(agent::alive(around.agent, around.holder.as_ref(), &status));
    let pid = around.holder.as_ref().and_then(Holder::pid);
    findings.extend(pid.map(|pid| {
        let absent = kernel::absent_of(pid);
        abilities::privileges("agent.privileges", "the agent", &absent)
    }));
    if let (Some(pid), Ok(mount)) = (pid, &around.mount) {
        findings.push(host::memory(host::memory_limit(mount, pid)));
    }
    if let Ok(status) = &status {
        findings.extend(agent::said(status));
        findings.extend(rollout::look(&ask(config, "/v1/rollout").await));
    }
    let in_force = status
        .as_ref()
        .ok()
        .and_then(|status| status["policy"]["digest"].as_str());
    findings.push(files::policies(config, in_force));
    findings.push(files::identities(config));
    findings.extend(files::certificates(config, now / SECOND));
    progress("asking the policy engine, SPIRE, Kubernetes and the database, where there are any");
    findings.push(engine::look(config, in_force).await);
    findings.extend(spire::look(config, pid, now / SECOND).await);
    findings.extend(kubernetes::look(config).await);
    findings.extend(store::look(config, now).await);
    findings.extend(disks(config));
    findings.push(clock::synchronized(&clock::kept(), now / SECOND));
    let age = pid.and_then(clock::age_of);
    findings.push(clock::stepped(age, uptime(status.as_ref().ok())));
    Report::new(config.node.clone(), host::release(), now, findings)
}

/// What is around: looked at once, and judged by several.
struct Surroundings {
    mount: Result<PathBuf, cgroup::CgroupError>,
    roots: Vec<ManagedRoot>,
    /// Below the roots.
    cgroups: Vec<PathBuf>,
    processes: Vec<u32>,
    pinned: Result<Vec<PinnedVersion>, KernelError>,
    holder: Option<Holder>,
    agent: Agent,
}

impl Surroundings {
    fn look(config: &Config) -> Self {
        let mount = cgroup::mount_point();
        let roots = mount
            .as_ref()
            .map_or_else(|_| Vec::new(), |mount| app::managed_roots(config, mount));
        let pinned = kernel::pinned(&config.bpffs);
        let holder = Lock::holder(&config.bpffs);
        // Where the machine's pins cannot be seen, that there are none says nothing.
        let seen = kernel::check_bpffs(&config.bpffs).is_ok();
        let agent = match (&holder, &pinned) {
            (Ok(Some(_)), _) => Agent::Runs,
            (Ok(None), Ok(versions)) if !versions.is_empty() => Agent::Gone,
            (Ok(None), Ok(_)) if seen => Agent::Absent,
            (Ok(None), Ok(_)) | (Err(_), _) | (_, Err(_)) => Agent::Unknown,
        };
        let holder = holder.ok().flatten();
        Self {
            cgroups: below(&roots),
            processes: roots
                .iter()
                .flat_map(|root| netns::processes(&root.path))
                .collect(),
            mount,
            roots,
            pinned,
            holder,
            agent,
        }
    }

    /// What is pinned of this program's version.
    fn own(&self) -> Option<&PinnedVersion> {
        self.pinned.as_ref().ok()?.iter().find(|version| version.own)
    }
}

/// The cgroups below some roots, those of pods and containers.
fn below(roots: &[ManagedRoot]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending: Vec<(PathBuf, usize)> = roots.iter().map(|root| (root.path.clone(), 0)).collect();
    while let Some((directory, depth)) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if found.len() >= MOST_CGROUPS {
                return found;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                if depth + 1 < DEPTH {
                    pending.push((entry.path(), depth + 1));
                }
            }
        }
    }
    found
}

/// The machine itself.
fn machine(config: &Config, around: &Surroundings) -> Vec<Finding> {
    let number = |path: &str| host::value(path).and_then(|text| text.parse().ok());
    let security = |name: &str| host::value(&format!("/sys/kernel/security/{name}"));
    let setting = |name: &str| host::value(&format!("/proc/sys/{name}"));
    let mount = around.mount.as_ref().ok();
    let controllers = mount.and_then(|mount| fs::read_to_string(mount.join("cgroup.controllers")).ok());
    let roots = config.managed_cgroup.roots();
    let (present, absent): (Vec<_>, Vec<_>) = roots
        .into_iter()
        .partition(|root| mount.is_some_and(|mount| mount.join(root).is_dir()));
    let wanted = config.handshake == Handshake::Auto;
    let fast_open = if wanted {
        kernel::fast_open_of(&around.processes)
    } else {
        Vec::new()
    };
    vec![
        host::version(&host::release()),
        host::types(Path::new("/sys/kernel/btf/vmlinux").exists()),
        host::lockdown(security("lockdown").as_deref()),
        host::modules(security("lsm").as_deref()),
        host::jit(setting("net/core/bpf_jit_enable").as_deref()),
        host::statistics(setting("kernel/bpf_stats_enabled").as_deref()),
        host::inotify(
            number("/proc/sys/fs/inotify/max_user_instances"),
            number("/proc/sys/fs/inotify/max_user_watches"),
            around.cgroups.len(),
        ),
        host::fast_open(&fast_open, wanted, around.agent == Agent::Runs),
        abilities::privileges("privileges", "this process", &kernel::absent()),
        host::cgroup_mount(&around.mount),
        host::controllers(controllers.as_deref().map(str::trim)),
        host::managed(
            &config.managed_cgroup,
            &present,
            &absent,
            around.cgroups.len(),
            around.processes.len(),
        ),
        bpffs(&config.bpffs, kernel::check_bpffs(&config.bpffs)),
    ]
}

/// `mounted`: whether the BPF file system is there.
fn bpffs(path: &Path, mounted: Result<bool, KernelError>) -> Finding {
    const CHECK: &str = "bpffs";
    match mounted {
        Ok(true) => Finding::ok(CHECK, format!("{} is on the BPF file system", path.display())),
        Ok(false) => Finding::ok(
            CHECK,
            "nobody has mounted the BPF file system: an agent that starts does",
        ),
        Err(error) => {
            let remedy = "`mount -t bpf bpf /sys/fs/bpf` on the host, and `bpffs` below it";
            Finding::failed(CHECK, error.to_string(), remedy)
        }
    }
}

/// What the kernel takes, and what is in it.
fn enforcement(config: &Config, around: &Surroundings) -> Vec<Finding> {
    let wanted = Wanted {
        handshakes: config.handshake == Handshake::Auto,
        packet_guard: config.packet_guard,
    };
    let rehearsal = kernel::rehearse(wanted, around.mount.as_deref().ok());
    let mut findings = abilities::programs(&rehearsal);
    findings.push(abilities::destroying(&kernel::destroy_one()));
    findings.extend(hooks::pins(&config.bpffs, &around.pinned, around.agent));
    let wanted = rehearsal.map_or_else(|_| Vec::new(), |rehearsal| rehearsal.maps);
    let own = around.own();
    findings.push(hooks::maps(own, &wanted, &zt_common::names::MAPS));
    let there = kernel::hooks_at(&config.bpffs, &around.roots, config.packet_guard);
    findings.push(hooks::attached(&there, &around.roots, own, around.agent));
    findings.extend(hooks::elsewhere(own, &around.roots));
    if let Ok(mount) = &around.mount {
        let alone: Vec<_> = around
            .roots
            .iter()
            .flat_map(|root| kernel::in_the_way(mount, &root.path, config.packet_guard))
            .collect();
        findings.push(hooks::in_the_way(&alone));
    }
    let attached = there.iter().any(|hook| hook.attached);
    findings.extend(hooks::order(
        &kernel::foreign_beside(&there, &around.cgroups),
        attached,
    ));
    findings
}

/// The file systems that the agent writes to.
fn disks(config: &Config) -> Vec<Finding> {
    let state = config.state_directory();
    let used = directory_bytes(&state);
    let left = config.audit.max_disk_bytes.saturating_sub(used);
    let mut findings = vec![host::disk("disk.state", &state, &host::room(&state), left)];
    if let Some(run) = config.api.socket.as_deref().and_then(Path::parent) {
        findings.push(host::disk("disk.run", run, &host::room(run), 0));
    }
    findings
}

/// Bytes of the files in a directory.
fn directory_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}

/// Seconds of the wall clock since the agent started, by what it says.
fn uptime(status: Option<&Value>) -> Option<f64> {
    let started: Timestamp = status?["started"].as_str()?.parse().ok()?;
    Some((wall::now() - started.0) as f64 / SECOND as f64)
}
