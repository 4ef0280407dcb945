// SPDX-License-Identifier: Apache-2.0
//! Processes that are born in fresh cgroups and connect before anyone can have noticed them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use zt_tests::probe::{ConnectOptions, Reply};

use crate::stream;

/// `clone3`: the child starts in the cgroup of a descriptor.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of `linux/sched.h`, up to the cgroup.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// One cgroup after the other below `parent`, each with one process; the cgroups are removed again.
pub(crate) fn births(parent: &Path, count: u32, to: SocketAddr) -> io::Result<Reply> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for number in 0..count {
        let cgroup = parent.join(format!("born-{number}"));
        fs::create_dir(&cgroup)?;
        let outcome = birth(&cgroup, to);
        fs::remove_dir(&cgroup)?;
        *counts.entry(outcome?).or_default() += 1;
    }
    Ok(Reply {
        count: Some(count.into()),
        counts,
        ..Reply::default()
    })
}

/// What the first `connect()` of the first process of a cgroup came to.
fn birth(cgroup: &Path, to: SocketAddr) -> io::Result<String> {
    let directory = File::open(cgroup)?;
    let arguments = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: directory.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    #[expect(
        unsafe_code,
        reason = "a fork with a cgroup, for which nobody has a safe wrapper"
    )]
    // SAFETY: the structure has the size given; the child is the copy of a process that has no other thread, and ends below.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArgs>()) };
    match child {
        0 => {
            let code = match stream::connect(to, &ConnectOptions::default()) {
                Ok(_) => 0,
                Err(error) => error.raw_os_error().unwrap_or(255),
            };
            #[expect(
                unsafe_code,
                reason = "ends the copy without running what the original will run"
            )]
            // SAFETY: does not return, and takes a plain number.
            unsafe {
                libc::_exit(code)
            }
        }
        error if error < 0 => Err(io::Error::last_os_error()),
        child => match waitpid(Pid::from_raw(child as i32), None)? {
            WaitStatus::Exited(_, 0) => Ok("ok".to_owned()),
            WaitStatus::Exited(_, code) => Ok(format!("{:?}", Errno::from_raw(code))),
            other => Ok(format!("{other:?}")),
        },
    }
}
