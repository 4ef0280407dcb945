// SPDX-License-Identifier: Apache-2.0
//! One agent at a time works on a directory of pins: `flock(2)` on the directory itself. It is where the pins are,
//! whatever else containers see of the host, and the kernel lets go of it when its holder dies, however it dies.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::libc;
use nix::sys::stat::{major, minor};

use super::error::KernelError;
use super::host;

/// The right to work on the pins below one directory, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    bpffs: PathBuf,
    /// The directory that is at that path, and before it those that were: whoever waits for one of them goes on waiting.
    directories: Mutex<Vec<File>>,
}

/// What came of asking for the [`Lock`].
#[derive(Debug)]
pub enum Claim {
    /// It is ours.
    Held(Lock),
    /// Another process has it.
    Taken(Holder),
}

/// The process that has the lock.
#[derive(Debug)]
pub struct Holder {
    directory: PathBuf,
    pid: Option<u32>,
}

impl Lock {
    fn of(bpffs: &Path, directory: File) -> Self {
        Self {
            bpffs: bpffs.into(),
            directories: Mutex::new(vec![directory]),
        }
    }

    /// The directory that it is about.
    pub(super) fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Whether what is locked is what is at the path now.
    pub(super) fn is_in_place(&self) -> bool {
        let directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        directories.last().is_some_and(|file| is_at(file, &self.bpffs))
    }

    /// Takes the lock of the directory that has come in the place of the one that was locked: the BPF file system was unmounted,
    /// or the directory removed by hand. Mounts and makes what is missing. What was locked before stays so.
    pub(super) fn renew(&self) -> Result<(), KernelError> {
        match Self::claim(&self.bpffs)? {
            Claim::Held(lock) => {
                let renewed = lock
                    .directories
                    .into_inner()
                    .unwrap_or_else(PoisonError::into_inner);
                let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
                directories.extend(renewed);
                Ok(())
            }
            Claim::Taken(holder) => Err(KernelError::Displaced {
                directory: self.bpffs.clone(),
                holder: holder.to_string(),
            }),
        }
    }

    /// Takes the lock of `bpffs` if nobody has it. Mounts the BPF file system and makes the directory where they are
    /// missing.
    pub fn claim(bpffs: &Path) -> Result<Claim, KernelError> {
        loop {
            host::prepare(bpffs)?;
            if let Some(claim) = Self::claim_there(bpffs)? {
                return Ok(claim);
            }
        }
    }

    /// Takes the lock of `bpffs` if nobody has it; `None` if there is no such directory.
    pub fn claim_there(bpffs: &Path) -> Result<Option<Claim>, KernelError> {
        let file = match File::open(bpffs) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(KernelError::io("open", bpffs)(error)),
        };
        match file.try_lock() {
            Ok(()) if is_at(&file, bpffs) => Ok(Some(Claim::Held(Self::of(bpffs, file)))),
            // Removed between the two calls.
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(Claim::Taken(Holder {
                pid: holder(&file),
                directory: bpffs.into(),
            }))),
            Err(TryLockError::Error(source)) => Err(KernelError::io("lock", bpffs)(source)),
        }
    }

    /// Who has the lock of `bpffs`, without asking for it: whoever asks could be in the way of an agent that starts. `None` where
    /// nobody has it, or no such directory is there.
    pub fn holder(bpffs: &Path) -> Result<Option<Holder>, KernelError> {
        let metadata = match fs::metadata(bpffs) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(KernelError::io("inspect", bpffs)(error)),
        };
        let locks = fs::read_to_string("/proc/locks").map_err(KernelError::io("read", "/proc/locks"))?;
        let held = holder_in(
            &locks,
            major(metadata.dev()),
            minor(metadata.dev()),
            metadata.ino(),
        );
        Ok(held.map(|pid| Holder {
            directory: bpffs.into(),
            pid: Some(pid).filter(|pid| *pid != 0),
        }))
    }

    /// Waits for the lock as long as it takes; blocks the thread.
    pub fn wait(bpffs: &Path) -> Result<Self, KernelError> {
        loop {
            host::prepare(bpffs)?;
            let file = File::open(bpffs).map_err(KernelError::io("open", bpffs))?;
            file.lock().map_err(KernelError::io("lock", bpffs))?;
            if is_at(&file, bpffs) {
                return Ok(Self::of(bpffs, file));
            }
        }
    }
}

impl Holder {
    /// Its process id, where it can be seen from this process's PID namespace.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Asks it to end in order (`SIGTERM`). What was signalled is the process that holds the lock, or nobody.
    pub fn ask_to_end(&self) -> Result<(), KernelError> {
        const WHAT: &str = "ask the running agent to end: it holds";
        let failed = KernelError::io(WHAT, &self.directory);
        let Some(pid) = self.pid else {
            return Err(failed(io::Error::other(
                "its process is not visible here; end it where it runs, or give this container the host's PIDs",
            )));
        };
        let send = || -> io::Result<()> {
            let process = process(pid)?;
            // The number may have been given to another process since; from here on it cannot be.
            let file = File::open(&self.directory)?;
            if holder(&file) == Some(pid) {
                terminate(&process)?;
            }
            Ok(())
        };
        send().or_else(|error| match error.raw_os_error() {
            // It has ended by itself.
            Some(libc::ESRCH) => Ok(()),
            _ => Err(failed(error)),
        })
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("a process in another PID namespace"),
        }
    }
}

/// Whether `file` is what is at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => identity(ours) == identity(there),
        _ => false,
    }
}

/// The process that has `file` locked, from `/proc/locks` (see `proc_locks(5)`).
fn holder(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let (major, minor) = (major(metadata.dev()), minor(metadata.dev()));
    holder_in(&locks, major, minor, metadata.ino()).filter(|pid| *pid != 0)
}

/// Who has a file locked, if anybody; 0 where this PID namespace has no number for him.
fn holder_in(locks: &str, major: u64, minor: u64, inode: u64) -> Option<u32> {
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        // Who waits has an arrow behind the number: `1: -> FLOCK …`.
        let mut fields = line.split_whitespace().skip(1);
        let kind = fields.next()?;
        let mut fields = fields.skip(2);
        let (pid, place) = (fields.next()?, fields.next()?);
        // A process that this PID namespace does not have is 0 or -1.
        (kind == "FLOCK" && place == wanted).then(|| pid.parse().unwrap_or(0))
    })
}

#[expect(unsafe_code, reason = "nix has no pidfd_open")]
fn process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes and returns plain numbers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

#[expect(unsafe_code, reason = "nix has no pidfd_send_signal")]
fn terminate(process: &OwnedFd) -> io::Result<()> {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no information is passed along, which is what the null pointer says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::SIGTERM,
            nothing,
            0,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_read_from_the_list_of_locks() {
        let locks = "\
1: FLOCK  ADVISORY  WRITE 602 fe:00:42 0 EOF
2: POSIX  ADVISORY  WRITE 77 00:27:42 0 EOF
3: FLOCK  ADVISORY  WRITE 7460 00:27:42 0 EOF
3: -> FLOCK  ADVISORY  WRITE 7461 00:27:42 0 EOF
4: FLOCK  ADVISORY  WRITE 0 00:27:43 0 EOF
";
        assert_eq!(holder_in(locks, 0, 0x27, 42), Some(7460));
        assert_eq!(holder_in(locks, 0xfe, 0, 42), Some(602));
        // Somebody has it whom nobody here can name.
        assert_eq!(holder_in(locks, 0, 0x27, 43), Some(0));
        assert_eq!(holder_in(locks, 0, 0x27, 4), None);
    }
}
