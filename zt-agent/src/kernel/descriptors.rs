// SPDX-License-Identifier: Apache-2.0
//! Sockets in the hands of other processes.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

/// The sockets that a process has open: descriptor and inode. None where it is gone.
pub(super) fn sockets_of(pid: u32) -> Vec<(i32, u32)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let socket = |entry: fs::DirEntry| {
        let inode = socket_inode(&entry.path())?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, inode))
    };
    entries.flatten().filter_map(socket).collect()
}

fn socket_inode(path: &Path) -> Option<u32> {
    let link = fs::read_link(path).ok()?;
    link.to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// A copy of another process's descriptor of the socket with this inode. `ENOENT` where that number is another file by
/// now: the process may have closed it since, and opened something else.
pub(super) fn borrow(pid: u32, number: i32, inode: u32) -> io::Result<OwnedFd> {
    let copy = copy(pid, number)?;
    let file = nix::sys::stat::fstat(&copy)?;
    if file.st_ino == u64::from(inode) {
        Ok(copy)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

#[expect(unsafe_code, reason = "nix offers neither pidfd_open nor pidfd_getfd")]
fn copy(pid: u32, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain system calls; the results are descriptors that nobody else owns.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if process < 0 {
            return Err(io::Error::last_os_error());
        }
        let process = OwnedFd::from_raw_fd(process as i32);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0);
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(copy as i32))
    }
}
