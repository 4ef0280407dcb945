// SPDX-License-Identifier: Apache-2.0
//! Network namespaces with names, as `ip netns` has them: a file for each, which the namespace is mounted on.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::super::error::DemoError;
use super::super::names::NAMESPACES;

fn path_of(name: &str) -> PathBuf {
    Path::new(NAMESPACES).join(name)
}

/// Makes one.
pub(super) fn add(name: &str) -> Result<(), DemoError> {
    fs::create_dir_all(NAMESPACES).map_err(DemoError::at("make", Path::new(NAMESPACES)))?;
    let path = path_of(name);
    let made = OpenOptions::new().write(true).create_new(true).open(&path);
    made.map_err(DemoError::at("make", &path))?;
    // A namespace is a thread's; that of this one stays what it is.
    let mounted = thread::scope(|scope| {
        let mounting = scope.spawn(|| mount_new(&path));
        mounting
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in it panicked")))
    });
    mounted.map_err(DemoError::at("make the network namespace", &path))
}

/// Makes a namespace for this thread, and mounts it.
fn mount_new(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    mount(
        Some("/proc/thread-self/ns/net"),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

/// Opens one.
pub(in crate::demo) fn open(name: &str) -> Result<File, DemoError> {
    let path = path_of(name);
    File::open(&path).map_err(DemoError::at("open", &path))
}

/// Removes one; its interfaces go with it.
pub(in crate::demo) fn remove(name: &str) -> Result<(), DemoError> {
    let path = path_of(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // Whoever made the file was killed before anything was mounted on it.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(errno) => return Err(DemoError::at("unmount", &path)(errno.into())),
    }
    fs::remove_file(&path).map_err(DemoError::at("remove", &path))
}
