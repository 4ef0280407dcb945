// SPDX-License-Identifier: Apache-2.0
//! What the parts of one demo, or of one connectivity test, are called, so that all of them are found again, whoever died.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::cast::Who;

/// What makes a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// `zt-agent demo`.
    Demo,
    /// `zt-agent connectivity-test`.
    Connectivity,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Demo, Self::Connectivity];

    /// What the name of everything that one makes starts with; its process id follows.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Demo => "zt-demo-",
            Self::Connectivity => "zt-connectivity-",
        }
    }

    /// In words.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Demo => "the demo",
            Self::Connectivity => "the connectivity test",
        }
    }

    /// The command that makes it.
    const fn command(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Connectivity => "connectivity-test",
        }
    }
}

/// Where named network namespaces are.
pub(super) const NAMESPACES: &str = "/run/netns";
/// Where programs, maps and links are pinned.
pub(super) const BPFFS: &str = "/sys/fs/bpf";

/// The names of one demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    name: String,
    mount: PathBuf,
}

impl Names {
    /// Those of what process `pid` makes, with cgroup2 mounted at `mount`.
    pub(super) fn of(kind: Kind, pid: u32, mount: &Path) -> Self {
        Self {
            name: format!("{}{pid}", kind.prefix()),
            mount: mount.to_path_buf(),
        }
    }

    /// Such as `zt-demo-<pid>`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The directory of the cgroup that all its processes live in.
    pub(super) fn root(&self) -> PathBuf {
        self.mount.join(&self.name)
    }

    /// The managed cgroup, relative to the mount. The agent lives next to it, not in it.
    pub(super) fn managed(&self) -> PathBuf {
        Path::new(&self.name).join("workloads")
    }

    /// The cgroup of a workload, or of the node's process, relative to the mount.
    pub(super) fn cgroup_of(&self, who: Who) -> PathBuf {
        if who == Who::Host {
            Path::new(&self.name).join(who.name())
        } else {
            self.managed().join(who.name())
        }
    }

    /// A workload's cgroup directory.
    pub(super) fn cgroup_directory(&self, who: Who) -> PathBuf {
        self.mount.join(self.cgroup_of(who))
    }

    /// The directory of the agent's cgroup.
    pub(super) fn agent_cgroup(&self) -> PathBuf {
        self.root().join("agent")
    }

    /// The network namespace of a workload; the node's process is in the bridge's.
    pub(super) fn namespace(&self, who: Who) -> String {
        match who.place() {
            Who::Host => self.bridge(),
            place => format!("{}-{}", self.name, place.name()),
        }
    }

    /// The file of a workload's network namespace.
    pub(super) fn namespace_file(&self, who: Who) -> PathBuf {
        Path::new(NAMESPACES).join(self.namespace(who))
    }

    /// The network namespace of the bridge.
    pub(super) fn bridge(&self) -> String {
        format!("{}-bridge", self.name)
    }

    /// Where its agent pins.
    pub(super) fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.name)
    }

    /// Its files.
    pub(super) fn directory(&self) -> PathBuf {
        temporary().join(&self.name)
    }

    /// Whether `name` is one of this demo's.
    pub(super) fn owns(&self, name: &str) -> bool {
        name.strip_prefix(&self.name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }
}

/// The process that made something of this name, and as what.
pub(super) fn owner(name: &str) -> Option<(Kind, u32)> {
    Kind::ALL.into_iter().find_map(|kind| {
        let pid = name.strip_prefix(kind.prefix())?.split('-').next()?;
        Some((kind, pid.parse().ok()?))
    })
}

/// Where demos have their files: the temporary directory, or `/tmp` if users without privileges, as whom the servers
/// run, could not get there.
pub(super) fn temporary() -> PathBuf {
    let directory = std::env::temp_dir();
    let open = |path: &Path| fs::metadata(path).is_ok_and(|found| found.mode() & 0o001 != 0);
    if directory.ancestors().all(open) {
        directory
    } else {
        PathBuf::from("/tmp")
    }
}

/// Whether process `pid` makes such a world. Another program may have got the number since.
pub(super) fn lives(kind: Kind, pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        line.split(|byte| *byte == 0)
            .skip(1)
            .any(|argument| argument == kind.command().as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_demos_have_an_owner() {
        assert_eq!(owner("zt-demo-12"), Some((Kind::Demo, 12)));
        assert_eq!(owner("zt-demo-12-iam"), Some((Kind::Demo, 12)));
        assert_eq!(owner("zt-connectivity-7-iam"), Some((Kind::Connectivity, 7)));
        assert_eq!(owner("zt-demo-"), None);
        assert_eq!(owner("zt-test-12"), None);
        assert_eq!(owner("zt"), None);
    }

    #[test]
    fn a_demo_owns_what_bears_its_whole_name() {
        let names = Names::of(Kind::Demo, 12, Path::new("/cg"));
        assert!(
            names.owns("zt-demo-12") && names.owns(&names.namespace(Who::Iam)) && names.owns(&names.bridge())
        );
        assert!(!names.owns("zt-demo-123") && !names.owns("zt-demo-1"));
        assert!(Kind::ALL.into_iter().all(|kind| !lives(kind, u32::MAX)));
    }

    #[test]
    fn who_is_no_service_is_where_a_workload_is_or_at_the_bridge() {
        let names = Names::of(Kind::Connectivity, 12, Path::new("/cg"));
        assert!(names.cgroup_of(Who::Nobody).starts_with(names.managed()));
        assert!(!names.cgroup_of(Who::Host).starts_with(names.managed()));
        assert!(names.cgroup_directory(Who::Host).starts_with(names.root()));
        assert_eq!(names.namespace(Who::Nobody), names.namespace(Who::Chat));
        assert_eq!(Who::Nobody.ipv4(), Who::Chat.ipv4());
        assert_eq!(names.namespace(Who::Host), names.bridge());
        for who in Who::ALL {
            assert!(who != Who::Nobody && who != Who::Host);
            assert_ne!(names.namespace(who), names.bridge());
            assert_ne!(who.ipv4(), Who::Host.ipv4());
        }
    }
}
