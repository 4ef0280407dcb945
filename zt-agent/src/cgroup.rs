// SPDX-License-Identifier: Apache-2.0
//! The cgroup2 hierarchy: where it is mounted, which parts of it are managed, what a cgroup's number is.

pub mod managed;
pub mod watcher;

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use managed::ManagedCgroup;
pub use watcher::{CgroupEvent, Watcher};

/// Why the cgroup hierarchy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The kernel's list of mounts cannot be read.
    #[error("cannot read {path}: {source}")]
    MountInfo {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no cgroup2 mount.
    #[error(
        "no cgroup v2 hierarchy is mounted; mount one: mkdir -p /sys/fs/cgroup/unified && \
         mount -t cgroup2 none /sys/fs/cgroup/unified"
    )]
    NotMounted,
    /// A cgroup's directory cannot be looked at.
    #[error("cannot look at the cgroup {path}: {source}")]
    Inspect {
        /// Its directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No inotify instance can be had.
    #[error("cannot watch cgroups: {source}; raise fs.inotify.max_user_instances")]
    Inotify {
        /// What the kernel said.
        source: io::Error,
    },
    /// Reading from inotify failed.
    #[error("watching cgroups failed: {source}")]
    Read {
        /// What the kernel said.
        source: io::Error,
    },
}

/// Where the cgroup2 hierarchy is mounted, from `/proc/self/mountinfo`.
pub fn mount_point() -> Result<PathBuf, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(|source| CgroupError::MountInfo {
        path: path.to_path_buf(),
        source,
    })?;
    mount_point_in(&text).ok_or(CgroupError::NotMounted)
}

/// The cgroup2 mount in the text of a `mountinfo` file (see `proc_pid_mountinfo(5)`). One that shows the whole hierarchy is
/// preferred to one that shows a part, then the one mounted first.
fn mount_point_in(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        (after.split(' ').next()? == "cgroup2").then(|| (root != "/", unescape(place)))
    });
    // The first of the equal ones.
    mounts.min_by_key(|(part, _)| *part).map(|(_, place)| place)
}

/// Undoes the kernel's `\040` for a space and the like.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        if let Some(byte) = octal {
            bytes.push(byte);
            rest = &tail[3..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// The kernel's id of the cgroup whose directory is `path`: its inode number, which is never used again.
pub fn id_of(path: &Path) -> Result<u64, CgroupError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.ino()),
        Err(source) => Err(CgroupError::Inspect {
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// How deep a cgroup lies below the root of the hierarchy, which is level 0. `cgroup` is relative to the mount.
pub fn level_of(cgroup: &Path) -> usize {
    cgroup
        .components()
        .filter(|component| matches!(component, std::path::Component::Normal(_)))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_in_hybrid_and_unified_layouts() {
        let hybrid = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";
        assert_eq!(
            mount_point_in(hybrid).as_deref(),
            Some(Path::new("/sys/fs/cgroup/unified"))
        );
        let several = "\
40 31 0:38 /kubepods /mnt/part rw - cgroup2 cgroup2 rw
41 31 0:38 / /sys/fs/a\\040b rw,relatime shared:9 master:1 - cgroup2 cgroup2 rw
42 31 0:38 / /second rw - cgroup2 cgroup2 rw
";
        assert_eq!(mount_point_in(several).as_deref(), Some(Path::new("/sys/fs/a b")));
        assert_eq!(
            mount_point_in("22 1 8:1 / / rw - ext4 /dev/sda1 rw\nnonsense\n"),
            None
        );
    }

    #[test]
    fn levels_count_from_the_root() {
        assert_eq!(level_of(Path::new("")), 0);
        assert_eq!(level_of(Path::new("kubepods.slice")), 1);
        assert_eq!(level_of(Path::new("kubepods.slice/pod/container")), 3);
    }

    #[test]
    fn an_id_is_an_inode_number() {
        let directory = tempfile::tempdir().expect("tempdir");
        let inode = fs::metadata(directory.path()).expect("metadata").ino();
        assert_eq!(id_of(directory.path()).expect("exists"), inode);
        let error = id_of(&directory.path().join("none"))
            .expect_err("missing")
            .to_string();
        assert!(error.contains("/none"), "{error}");
    }
}
