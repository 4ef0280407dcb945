// SPDX-License-Identifier: Apache-2.0
//! A live process of a cgroup, held by a descriptor: while it lives its number means nobody else.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Of a cgroup with more processes than this, the oldest of so many is taken.
const MOST: usize = 128;
/// The field of `/proc/PID/stat` that says when a process began, counted behind the name in parentheses.
const STARTED: usize = 19;

/// A process that was in the cgroup when it was taken hold of.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    /// In ticks since boot.
    began: u64,
    /// A pidfd. It is readable when the process has ended.
    descriptor: AsyncFd<OwnedFd>,
    directory: PathBuf,
    cgroup: u64,
}

impl Process {
    /// The process of a cgroup that has lived longest: a container's first. `None` where nobody is in it who can be
    /// attested; an error where that cannot be found out.
    ///
    /// `directory` is the cgroup's directory and `cgroup` its id. Must be called inside a tokio runtime.
    pub(super) fn oldest(directory: &Path, cgroup: u64) -> io::Result<Option<Self>> {
        let mut aged = Vec::new();
        for pid in members(directory)?.into_iter().take(MOST) {
            if let Some(began) = gone_is_none(started(pid))? {
                aged.push((began, pid));
            }
        }
        aged.sort_unstable();
        for (began, pid) in aged {
            if let Some(process) = Self::hold(pid, began, directory, cgroup)? {
                return Ok(Some(process));
            }
        }
        Ok(None)
    }

    fn hold(pid: u32, began: u64, directory: &Path, cgroup: u64) -> io::Result<Option<Self>> {
        let Some(descriptor) = gone_is_none(open(pid))? else {
            return Ok(None);
        };
        let process = Self {
            pid,
            began,
            descriptor,
            directory: directory.to_path_buf(),
            cgroup,
        };
        Ok(process.look()?.then_some(process))
    }

    /// Its number. It is this process's as long as [`Process::is_there`] afterwards.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Tells it from others that had its number, or will have it.
    pub(super) fn birth(&self) -> (u32, u64) {
        (self.pid, self.began)
    }

    /// Whether it lives, in that very cgroup, as one user. False where that cannot be found out.
    pub(super) fn is_there(&self) -> bool {
        self.look().unwrap_or(false)
    }

    /// The order matters: what was found out about a number was found out about this process only if it has not
    /// ended by then. The cgroup's own list is asked and not `/proc/PID/cgroup`, which shows another path to an agent
    /// in a cgroup namespace. A cgroup with a process in it is not removed, so that path, id and list are those of one.
    fn look(&self) -> io::Result<bool> {
        let there = members(&self.directory)?.contains(&self.pid)
            && gone_is_none(fs::metadata(&self.directory))?.is_some_and(|found| found.ino() == self.cgroup)
            && gone_is_none(is_one_user(self.pid))?.unwrap_or(false);
        Ok(there && !self.has_ended())
    }

    fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(self.descriptor.get_ref().as_fd(), PollFlags::POLLIN)];
        // Where it cannot be asked, it is not relied upon.
        poll(&mut polled, PollTimeout::ZERO).map_or(true, |ready| ready > 0)
    }

    /// Completes when it has ended.
    pub(super) async fn ended(&self) {
        if self.descriptor.readable().await.is_err() {
            // The runtime is going down.
            std::future::pending::<()>().await;
        }
    }
}

/// The processes of a cgroup, not of those nested in it; nobody where it is gone, or holds threads.
fn members(directory: &Path) -> io::Result<Vec<u32>> {
    let text = gone_is_none(fs::read_to_string(directory.join("cgroup.procs")))?.unwrap_or_default();
    let pids = text.lines().filter_map(|line| line.parse().ok());
    // 0 is a process that this pid namespace does not see.
    Ok(pids.filter(|pid| *pid > 0).collect())
}

/// What cannot be had because it, or the process, or the cgroup is not there; any other error is one.
fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        // EINVAL: a number that is not a process's.
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP | libc::ESRCH | libc::EINVAL) => Ok(None),
            _ => Err(error),
        },
    }
}

/// When a process began, in ticks since boot.
fn started(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold anything, parentheses too.
    let field = stat
        .rsplit_once(')')
        .and_then(|(_, fields)| fields.split_whitespace().nth(STARTED)?.parse().ok());
    field.ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood")))
}

/// Whether it acts as the user who started it. Whoever runs a program with the setuid bit must not be taken for its owner.
fn is_one_user(pid: u32) -> io::Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(same_user(&status))
}

/// Of the text of `/proc/PID/status`: the real user and the effective one.
fn same_user(status: &str) -> bool {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let mut uids = uids.unwrap_or_default().split_whitespace();
    uids.next().is_some_and(|real| uids.next() == Some(real))
}

#[expect(unsafe_code, reason = "nix has no pidfd_open")]
fn open(pid: u32) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: a plain system call; its result is a descriptor that nobody else owns, and that nobody closes or replaces
    // before the registration is dropped.
    unsafe {
        let descriptor = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        let descriptor = OwnedFd::from_raw_fd(descriptor as i32);
        Ok(AsyncFd::register_with_interest(descriptor, Interest::READABLE)?)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::cgroup;

    fn child() -> Child {
        Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat")
    }

    fn oldest(directory: &Path, cgroup: u64) -> Option<Process> {
        Process::oldest(directory, cgroup).expect("it can be found out")
    }

    fn directory(pids: &[u32]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path(), pids);
        directory
    }

    fn write(directory: &Path, pids: &[u32]) {
        let lines: Vec<String> = pids.iter().map(u32::to_string).collect();
        fs::write(directory.join("cgroup.procs"), lines.join("\n")).expect("written");
    }

    #[tokio::test]
    async fn the_oldest_live_process_is_held_until_it_ends() {
        let mut first = child();
        // The clock of `stat` ticks a hundred times a second.
        while started(first.id()).expect("it lives") == started(std::process::id()).expect("we live") {
            std::thread::yield_now();
        }
        let ours = std::process::id();
        let directory = directory(&[first.id(), ours]);
        let id = cgroup::id_of(directory.path()).expect("id");
        assert_eq!(oldest(directory.path(), id).expect("we live").pid(), ours);

        write(directory.path(), &[first.id()]);
        let held = oldest(directory.path(), id).expect("it lives");
        assert_eq!(held.pid(), first.id());
        assert!(held.is_there());
        drop(first.stdin.take());
        tokio::time::timeout(Duration::from_secs(30), held.ended())
            .await
            .expect("it ends");
        // Its number is still its own, since nobody has waited for it: dead is dead.
        assert!(!held.is_there());
        assert!(oldest(directory.path(), id).is_none());
        first.wait().expect("waited");
    }

    #[tokio::test]
    async fn who_moved_away_or_whose_cgroup_is_another_by_now_is_not_there() {
        let ours = std::process::id();
        let directory = directory(&[ours]);
        let id = cgroup::id_of(directory.path()).expect("id");
        let held = oldest(directory.path(), id).expect("we live");
        assert!(oldest(directory.path(), id + 1).is_none());
        write(directory.path(), &[]);
        assert!(!held.is_there());
        assert!(oldest(directory.path(), id).is_none());
        // Processes of another pid namespace, and numbers of nobody.
        write(directory.path(), &[0, u32::MAX]);
        assert!(oldest(directory.path(), id).is_none());
    }

    #[tokio::test]
    async fn what_cannot_be_found_out_is_not_nobody() {
        let directory = directory(&[std::process::id()]);
        let id = cgroup::id_of(directory.path()).expect("id");
        let held = oldest(directory.path(), id).expect("we live");
        let list = directory.path().join("cgroup.procs");
        fs::remove_file(&list).expect("removed");
        assert!(oldest(directory.path(), id).is_none(), "that is nobody");
        // A directory cannot be read.
        fs::create_dir(&list).expect("made");
        Process::oldest(directory.path(), id).expect_err("that is not");
        assert!(!held.is_there());
    }

    #[test]
    fn who_acts_as_another_user_is_found_out() {
        assert!(same_user("Name:\tcat\nUid:\t1000\t1000\t0\t0\n"));
        assert!(!same_user("Name:\tsudo\nUid:\t1000\t0\t0\t0\n"));
        assert!(!same_user(""));
    }
}
