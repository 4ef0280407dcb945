// SPDX-License-Identifier: Apache-2.0
//! Removes what sandboxes left behind whose process is gone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{cgroup, network};

/// What every name that a sandbox gives starts with; the process id of its owner follows.
pub const PREFIX: &str = "zt-test-";
/// Where programs, maps and links are pinned.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The process that made something of this name, if a sandbox made it.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Removes cgroups, network namespaces, pins and directories of sandboxes whose process no longer lives.
pub fn sweep() -> Result<()> {
    remove_if(|name| owner(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()))
}

/// Removes everything whose name is `name` or starts with `name-`.
pub(crate) fn remove_all_of(name: &str) -> Result<()> {
    remove_if(|found| {
        found
            .strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

/// Processes go first: they hold the namespaces, and an agent would pin again. Goes on after a failure, so that one
/// stuck thing does not leave the others; returns the first.
fn remove_if(ours: impl Fn(&str) -> bool) -> Result<()> {
    let mut first = Ok(());
    let mut each = |directory: &Path, remove: &dyn Fn(&Path, &str) -> Result<()>| {
        for (path, name) in entries(directory) {
            if ours(&name)
                && let Err(error) = remove(&path, &name)
                // Another sweep may have been faster.
                && path.exists()
                && first.is_ok()
            {
                first = Err(error.context(format!("cannot remove {}", path.display())));
            }
        }
    };
    each(&cgroup::mount_point()?, &|path, _| cgroup::remove_tree(path));
    for mount in cgroup::older_mounts() {
        each(&mount, &|path, _| cgroup::remove_directories(path));
    }
    each(Path::new(network::NAMESPACES), &|_, name| {
        network::remove_namespace(name)
    });
    each(Path::new(BPFFS), &|path, _| remove_pins(path));
    each(&std::env::temp_dir(), &|path, _| {
        fs::remove_dir_all(path).context("not removable")
    });
    first
}

/// A pin on bpffs is a file that is neither regular nor a directory; symbolic links are followed nowhere.
fn remove_pins(path: &Path) -> Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for (child, _) in entries(path) {
            remove_pins(&child)?;
        }
        Ok(fs::remove_dir(path)?)
    } else {
        Ok(fs::remove_file(path)?)
    }
}

/// What is in a directory; a directory that is not there holds nothing.
fn entries(directory: &Path) -> Vec<(PathBuf, String)> {
    let listed = fs::read_dir(directory).into_iter().flatten().flatten();
    listed
        .map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_sandboxes_have_an_owner() {
        assert_eq!(owner("zt-test-12-3-birth"), Some(12));
        assert_eq!(owner("zt-test-12"), Some(12));
        assert_eq!(owner("zt-test-x-1"), None);
        assert_eq!(owner("zt"), None);
        assert_eq!(owner("kubepods.slice"), None);
    }
}
