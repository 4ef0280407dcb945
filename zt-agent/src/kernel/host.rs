// SPDX-License-Identifier: Apache-2.0
//! What this host must offer before anything is loaded: privileges, a BPF file system, a place for pins.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use zt_common::ABI_VERSION;

use super::error::KernelError;
use super::sys;

const BPFFS: &str = "/sys/fs/bpf";

/// Where the pins of one ABI version live.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Below `bpffs` (`/sys/fs/bpf/zt` by default), in a directory of this ABI version.
    pub fn below(bpffs: &Path) -> Self {
        Self {
            root: bpffs.join(format!("v{ABI_VERSION}")),
        }
    }

    /// The directory of pinned maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// The directory of pinned links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Makes the directories, and mounts the BPF file system first if nobody has.
    pub fn prepare(&self) -> Result<(), KernelError> {
        mount_bpffs()?;
        for directory in [self.maps(), self.links()] {
            fs::create_dir_all(&directory)
                .map_err(KernelError::io("create the pin directory", &directory))?;
        }
        let kind = statfs(&self.root).map_err(|errno| KernelError::Io {
            what: "inspect",
            path: self.root.clone(),
            source: errno.into(),
        })?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            return Err(KernelError::Missing {
                missing: format!("a BPF file system at {}", self.root.display()),
                cause: "the path is on another file system; set `bpffs` to a path below /sys/fs/bpf".into(),
            });
        }
        Ok(())
    }

    /// Removes every pin and the directories; what the pins held is freed by the kernel.
    ///
    /// Returns the number of pins removed.
    pub fn remove(&self) -> Result<usize, KernelError> {
        let mut removed = 0;
        // Links first: hooks go before the maps that they read.
        for directory in [self.links(), self.maps()] {
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                if directory == self.links() {
                    // An agent that still runs holds the link open: removing the pin alone would leave the hook.
                    sys::open_pin(&entry.path())
                        .and_then(|link| sys::link_detach(link.as_fd()))
                        .map_err(KernelError::io("detach the link", entry.path()))?;
                }
                fs::remove_file(entry.path()).map_err(KernelError::io("remove the pin", entry.path()))?;
                removed += 1;
            }
            fs::remove_dir(&directory).map_err(KernelError::io("remove", &directory))?;
        }
        // Absent when nothing was pinned, or shared with another version's pins.
        let _ = fs::remove_dir(&self.root);
        if let Some(parent) = self.root.parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(removed)
    }
}

fn mount_bpffs() -> Result<(), KernelError> {
    let path = Path::new(BPFFS);
    if statfs(path).is_ok_and(|kind| kind.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
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

/// Refuses early, with one sentence, what would fail later with many.
pub fn check_privileges() -> Result<(), KernelError> {
    // Linux capabilities by number: include/uapi/linux/capability.h.
    const NEEDED: [(u32, &str); 4] = [
        (39, "CAP_BPF (load programs and maps)"),
        (12, "CAP_NET_ADMIN (attach hooks, destroy sockets)"),
        (21, "CAP_SYS_ADMIN (enter the network namespaces of workloads)"),
        (19, "CAP_SYS_PTRACE (see the namespaces of workloads' processes)"),
    ];
    let status =
        fs::read_to_string("/proc/self/status").map_err(KernelError::io("read", "/proc/self/status"))?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    for (bit, missing) in NEEDED {
        if effective & (1 << bit) == 0 {
            return Err(KernelError::Privilege { missing });
        }
    }
    Ok(())
}
