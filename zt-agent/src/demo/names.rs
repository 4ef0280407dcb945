// SPDX-License-Identifier: Apache-2.0
//! What the parts of one demo are called, so that all of them are found again, whoever died.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::cast::Who;

/// What the name of everything that a demo makes starts with; its process id follows.
const PREFIX: &str = "zt-demo-";
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
    /// Those of the demo of process `pid`, with cgroup2 mounted at `mount`.
    pub(super) fn of(pid: u32, mount: &Path) -> Self {
        Self {
            name: format!("{PREFIX}{pid}"),
            mount: mount.to_path_buf(),
        }
    }

    /// `zt-demo-<pid>`.
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

    /// A workload's cgroup, relative to the mount.
    pub(super) fn cgroup_of(&self, who: Who) -> PathBuf {
        self.managed().join(who.name())
    }

    /// A workload's cgroup directory.
    pub(super) fn cgroup_directory(&self, who: Who) -> PathBuf {
        self.mount.join(self.cgroup_of(who))
    }

    /// The directory of the agent's cgroup.
    pub(super) fn agent_cgroup(&self) -> PathBuf {
        self.root().join("agent")
    }

    /// The network namespace of a workload.
    pub(super) fn namespace(&self, who: Who) -> String {
        format!("{}-{}", self.name, who.name())
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

/// The process whose demo made something of this name.
pub(super) fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
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

/// Whether process `pid` is a demo. Another program may have got the number since.
pub(super) fn lives(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        line.split(|byte| *byte == 0)
            .skip(1)
            .any(|argument| argument == b"demo")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_demos_have_an_owner() {
        assert_eq!(owner("zt-demo-12"), Some(12));
        assert_eq!(owner("zt-demo-12-iam"), Some(12));
        assert_eq!(owner("zt-demo-"), None);
        assert_eq!(owner("zt-test-12"), None);
        assert_eq!(owner("zt"), None);
    }

    #[test]
    fn a_demo_owns_what_bears_its_whole_name() {
        let names = Names::of(12, Path::new("/cg"));
        assert!(
            names.owns("zt-demo-12") && names.owns(&names.namespace(Who::Iam)) && names.owns(&names.bridge())
        );
        assert!(!names.owns("zt-demo-123") && !names.owns("zt-demo-1"));
        assert!(!lives(u32::MAX));
    }
}
