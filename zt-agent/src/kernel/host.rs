// SPDX-License-Identifier: Apache-2.0
//! What this host must offer before anything is loaded: a BPF file system, a place for pins.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use zt_common::ABI_VERSION;

use super::error::KernelError;

const BPFFS: &str = "/sys/fs/bpf";

/// Where the pins of one ABI version live.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Below `bpffs` (`/sys/fs/bpf/zt` by default), in a directory of this ABI version.
    pub(super) fn below(bpffs: &Path) -> Self {
        Self::at(bpffs.join(format!("v{ABI_VERSION}")))
    }

    /// Those in this directory.
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory of them all.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of pinned maps.
    pub(super) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Where the map of this name is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// The directory of pinned links.
    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Makes what is missing in the directory of this version, and not that itself: who removes it renames it first.
    pub(super) fn complete(&self) -> Result<(), KernelError> {
        for directory in [self.maps(), self.links()] {
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(KernelError::io("create the pin directory", directory)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the directories of this version.
    pub(super) fn prepare(&self) -> Result<(), KernelError> {
        for directory in [self.maps(), self.links()] {
            fs::create_dir_all(&directory)
                .map_err(KernelError::io("create the pin directory", &directory))?;
        }
        Ok(())
    }
}

/// Whether this process is in another mount namespace than the first process that it sees: what it mounts would vanish with
/// it. Where that one may not be looked at, the first thread of the kernel stands for it; where neither may, it is not.
fn elsewhere() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    let first = namespace("1").or_else(|_| namespace("2"));
    matches!((namespace("self"), first), (Ok(own), Ok(first)) if own != first)
}

/// Makes the directory `bpffs`, and mounts the BPF file system first if nobody has. Elsewhere nothing is made.
pub(super) fn prepare(bpffs: &Path) -> Result<(), KernelError> {
    mount_bpffs()?;
    check_place(bpffs)?;
    fs::create_dir_all(bpffs).map_err(KernelError::io("create the directory of the pins", bpffs))
}

/// Whether the BPF file system is mounted where pins belong; nothing is mounted. `false`: nobody has, and an agent that starts does.
pub fn check_bpffs(bpffs: &Path) -> Result<bool, KernelError> {
    if is_bpffs(Path::new(BPFFS)) {
        return check_place(bpffs).map(|()| true);
    }
    if elsewhere() {
        return Err(not_ours());
    }
    Ok(false)
}

/// In a container nothing is mounted that would vanish with it.
fn not_ours() -> KernelError {
    KernelError::Missing {
        missing: format!("a BPF file system at {BPFFS} of the host"),
        cause:
            "in a container only the host's lasts: mount it there (`mount -t bpf bpf /sys/fs/bpf`), and the \
                directory into this container"
                .into(),
    }
}

fn check_place(bpffs: &Path) -> Result<(), KernelError> {
    let there = bpffs.ancestors().find(|path| path.exists()).unwrap_or(bpffs);
    let kind = statfs(there).map_err(|errno| KernelError::Io {
        what: "inspect",
        path: there.into(),
        source: errno.into(),
    })?;
    if kind.filesystem_type() != BPF_FS_MAGIC {
        return Err(KernelError::Missing {
            missing: format!("a BPF file system at {}", bpffs.display()),
            cause: "the path is on another file system; set `bpffs` to a path below /sys/fs/bpf".into(),
        });
    }
    Ok(())
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|kind| kind.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_bpffs() -> Result<(), KernelError> {
    let path = Path::new(BPFFS);
    if is_bpffs(path) {
        return Ok(());
    }
    if elsewhere() {
        return Err(not_ours());
    }
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|errno| KernelError::Io {
        what: "mount a BPF file system at",
        path: path.into(),
        source: errno.into(),
    })?;
    tracing::info!(path = BPFFS, "mounted the BPF file system");
    Ok(())
}
