// SPDX-License-Identifier: Apache-2.0
//! Control groups below the machine's cgroup2 mount.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::wait::eventually;

/// How long killed processes may take to leave their cgroup.
const KILL_DEADLINE: Duration = Duration::from_secs(60);

/// A directory of the cgroup2 hierarchy. The [`Sandbox`](crate::Sandbox) above it removes it; the handle does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
    relative: PathBuf,
}

impl Cgroup {
    /// Makes `relative` (and its parents) below the cgroup2 mount, if it is not there.
    pub fn create(relative: impl Into<PathBuf>) -> Result<Self> {
        let relative = relative.into();
        let path = mount_point()?.join(&relative);
        fs::create_dir_all(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self { path, relative })
    }

    /// The cgroup `relative` below the cgroup2 mount, which need not be there.
    pub fn at(relative: impl Into<PathBuf>) -> Result<Self> {
        let relative = relative.into();
        Ok(Self {
            path: mount_point()?.join(&relative),
            relative,
        })
    }

    /// Makes a cgroup inside this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.relative.join(name))
    }

    /// The handle of a cgroup inside another that need not exist.
    pub fn absent(parent: &Self, name: &str) -> Self {
        Self {
            path: parent.path.join(name),
            relative: parent.relative.join(name),
        }
    }

    /// The absolute path of its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path below the cgroup2 mount, as `workloads.yaml` and `managedCgroup` have it.
    pub fn relative(&self) -> &Path {
        &self.relative
    }

    /// The kernel's number for it: the inode number of its directory.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path)
            .with_context(|| format!("{}", self.path.display()))?
            .ino())
    }

    /// The processes in it, not those in cgroups below.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let text = fs::read_to_string(self.path.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("cannot move process {pid} to {}", self.path.display()))
    }

    /// Kills every process in it and below, and waits until they are gone.
    pub fn kill(&self) -> Result<()> {
        kill_tree(&self.path)
    }

    /// Kills what runs in it and below, and removes it with all that is below.
    pub fn remove(&self) -> Result<()> {
        remove_tree(&self.path)
    }
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` next to version 1.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    cgroup2_mount(&mounts).context("cgroup2 is not mounted: run `mount -t cgroup2 none /sys/fs/cgroup`")
}

/// The mount point of the first cgroup2 in the text of a `mountinfo` file.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let is_cgroup2 = filesystem.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Where the hierarchies of version 1 are mounted, where there are any. Container runtimes make cgroups there as well.
pub(crate) fn older_mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_older = |line: &&str| line.contains(" - cgroup ");
    let place = |line: &str| line.split(' ').nth(4).map(PathBuf::from);
    mounts.lines().filter(is_older).filter_map(place).collect()
}

/// Where the hierarchy of version 1 with a controller, such as `memory`, is mounted, where there is one.
pub fn older_mount(controller: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    controller_mount(&mounts, controller)
}

/// The mount point of the controller in the text of a `mountinfo` file.
fn controller_mount(mountinfo: &str, controller: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let options = filesystem.strip_prefix("cgroup ")?.split(' ').nth(1)?;
        let place = || mount.split(' ').nth(4).map(PathBuf::from);
        options
            .split(',')
            .any(|option| option == controller)
            .then(place)?
    })
}

/// Kills every process in a cgroup directory and below, and waits until they are gone.
pub(crate) fn kill_tree(path: &Path) -> Result<()> {
    fs::write(path.join("cgroup.kill"), "1").with_context(|| format!("cannot kill {}", path.display()))?;
    eventually(&format!("{} to be empty", path.display()), KILL_DEADLINE, || {
        Ok(fs::read_to_string(path.join("cgroup.events"))?
            .lines()
            .any(|line| line == "populated 0"))
    })
}

/// Kills and removes a cgroup directory with all that is below. One that is not there is no error.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    kill_tree(path)?;
    remove_directories(path)
}

/// Removes a cgroup directory in which nobody runs, with all that is below.
pub(crate) fn remove_directories(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_directories(&entry.path())?;
        }
    }
    // A process that was just reaped may hold the directory busy for a moment longer.
    eventually(
        &format!("{} to be removable", path.display()),
        KILL_DEADLINE,
        || Ok(fs::remove_dir(path).is_ok()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hybrid_mount_and_not_version_one() {
        let text = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(text), Some(PathBuf::from("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn finds_a_controller_of_version_one_by_its_whole_name() {
        let text = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                    35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = |controller| controller_mount(text, controller);
        assert_eq!(found("memory"), Some(PathBuf::from("/sys/fs/cgroup/memory")));
        assert_eq!(
            found("cpuacct"),
            Some(PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"))
        );
        assert_eq!(found("mem"), None);
    }

    #[test]
    fn finds_nothing_where_only_version_one_is_mounted() {
        assert_eq!(
            cgroup2_mount("40 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"),
            None
        );
    }
}
