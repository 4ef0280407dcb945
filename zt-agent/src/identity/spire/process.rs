// SPDX-License-Identifier: Apache-2.0
//! A live process of a cgroup, held by a descriptor: while it lives its number means nobody else.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::cgroup;

/// Of a cgroup with more processes than this, the oldest of so many is taken.
const MOST: usize = 128;
/// The field of `/proc/PID/stat` that says when a process began, counted behind the name in parentheses.
const STARTED: usize = 19;

/// A process that was in the cgroup when it was taken hold of.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    /// A pidfd. It is readable when the process has ended.
    descriptor: AsyncFd<OwnedFd>,
    directory: PathBuf,
    cgroup: u64,
}

impl Process {
    /// The process of a cgroup that has lived longest: a container's first. `None` where nobody is in it.
    ///
    /// `directory` is the cgroup's directory and `cgroup` its id. Must be called inside a tokio runtime.
    pub(super) fn oldest(directory: &Path, cgroup: u64) -> Option<Self> {
        let mut aged: Vec<(u64, u32)> = members(directory)
            .take(MOST)
            .filter_map(|pid| Some((started(pid)?, pid)))
            .collect();
        aged.sort_unstable();
        aged.into_iter()
            .find_map(|(_, pid)| Self::hold(pid, directory, cgroup))
    }

    fn hold(pid: u32, directory: &Path, cgroup: u64) -> Option<Self> {
        let process = Self {
            pid,
            descriptor: open(pid).ok()?,
            directory: directory.to_path_buf(),
            cgroup,
        };
        process.is_there().then_some(process)
    }

    /// Its number. It is this process's as long as [`Process::is_there`] afterwards.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it lives, and in that very cgroup.
    ///
    /// The order matters: what was found out about a number was found out about this process only if it has not
    /// ended by then. The cgroup's own list is asked and not `/proc/PID/cgroup`, which shows another path to an agent
    /// in a cgroup namespace. A cgroup with a process in it is not removed, so that path, id and list are those of one.
    pub(super) fn is_there(&self) -> bool {
        members(&self.directory).any(|pid| pid == self.pid)
            && cgroup::id_of(&self.directory).is_ok_and(|id| id == self.cgroup)
            && !self.has_ended()
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
fn members(directory: &Path) -> impl Iterator<Item = u32> + use<> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    // 0 is a process that this pid namespace does not see.
    pids.into_iter().filter(|pid| *pid > 0)
}

/// When a process began, in ticks since boot.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, parentheses too.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(STARTED)?.parse().ok()
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

    fn child() -> Child {
        Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat")
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
        while started(first.id()) == started(std::process::id()) {
            std::thread::yield_now();
        }
        let ours = std::process::id();
        let directory = directory(&[first.id(), ours]);
        let id = cgroup::id_of(directory.path()).expect("id");
        assert_eq!(
            Process::oldest(directory.path(), id).expect("we live").pid(),
            ours
        );

        write(directory.path(), &[first.id()]);
        let held = Process::oldest(directory.path(), id).expect("it lives");
        assert_eq!(held.pid(), first.id());
        assert!(held.is_there());
        drop(first.stdin.take());
        tokio::time::timeout(Duration::from_secs(30), held.ended())
            .await
            .expect("it ends");
        // Its number is still its own, since nobody has waited for it: dead is dead.
        assert!(!held.is_there());
        assert!(Process::oldest(directory.path(), id).is_none());
        first.wait().expect("waited");
    }

    #[tokio::test]
    async fn who_moved_away_or_whose_cgroup_is_another_by_now_is_not_there() {
        let ours = std::process::id();
        let directory = directory(&[ours]);
        let id = cgroup::id_of(directory.path()).expect("id");
        let held = Process::oldest(directory.path(), id).expect("we live");
        assert!(Process::oldest(directory.path(), id + 1).is_none());
        write(directory.path(), &[]);
        assert!(!held.is_there());
        assert!(Process::oldest(directory.path(), id).is_none());
        // Processes of another pid namespace, and numbers of nobody.
        write(directory.path(), &[0, u32::MAX]);
        assert!(Process::oldest(directory.path(), id).is_none());
    }
}
