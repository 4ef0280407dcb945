// SPDX-License-Identifier: Apache-2.0
//! One change of a directory at a time, among all the processes that share it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::EditError;

/// Hidden: nobody reads it as a policy. It stays: removing it would let two hold it.
const NAME: &str = ".zt.lock";
/// How long another process may hold it: a change takes milliseconds, and network file systems their time.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(3);

/// Held while a change is planned and made; dropping it lets the next one begin.
#[derive(Debug)]
pub struct Turn {
    _file: Option<Flock<File>>,
}

impl Turn {
    /// Where nobody needs to wait.
    pub(super) fn none() -> Self {
        Self { _file: None }
    }

    /// Waits for the turn to change `directory`; what is no directory that one can write to needs none.
    pub(super) fn wait(directory: &Path) -> Result<Self, EditError> {
        let path = directory.join(NAME);
        let mut file = match open(&path) {
            Ok(file) => file,
            // It is not there and cannot be made: nothing can be written there by anybody like us, and the change itself
            // will say so, and better.
            Err(error) if path.symlink_metadata().is_err() && is_no_place(&error) => {
                return Ok(Self { _file: None });
            }
            Err(source) => {
                let file = path.display().to_string();
                return Err(EditError::Write { file, source });
            }
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Self { _file: Some(lock) }),
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < deadline => file = back,
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => {
                    return Err(EditError::Busy(path.display().to_string()));
                }
                Err((_, error)) => {
                    let file = path.display().to_string();
                    return Err(EditError::Write {
                        file,
                        source: error.into(),
                    });
                }
            }
            thread::sleep(PAUSE);
        }
    }
}

/// The lock file, made if it is missing. One that somebody else made need only be read to be locked.
fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(flags)
        .open(path);
    match made {
        Err(error) if is_no_place(&error) && path.symlink_metadata().is_ok() => {
            OpenOptions::new().read(true).custom_flags(flags).open(path)
        }
        made => made,
    }
}

/// Whether an error says that nothing can be made there.
fn is_no_place(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::NotADirectory
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_cannot_be_had_is_an_error_and_no_permission() {
        let directory = tempfile::tempdir().expect("directory");
        let lock = directory.path().join(NAME);
        std::os::unix::fs::symlink("/dev/null", &lock).expect("link");
        assert!(matches!(
            Turn::wait(directory.path()),
            Err(EditError::Write { .. })
        ));
        std::fs::remove_file(&lock).expect("removed");
        // Made by another user: it is read.
        std::fs::write(&lock, "").expect("made");
        let read_only = std::os::unix::fs::PermissionsExt::from_mode(0o444);
        std::fs::set_permissions(&lock, read_only).expect("modes");
        let turn = Turn::wait(directory.path()).expect("its turn");
        let another = Flock::lock(File::open(&lock).expect("opens"), FlockArg::LockExclusiveNonblock);
        assert!(another.is_err(), "it is held");
        drop(turn);
    }

    #[test]
    fn one_at_a_time_and_a_directory_that_is_read_only_needs_no_turn() {
        let directory = tempfile::tempdir().expect("directory");
        let first = Turn::wait(directory.path()).expect("free");
        let path = directory.path().to_path_buf();
        let (sender, receiver) = std::sync::mpsc::channel();
        let second = thread::spawn(move || {
            let turn = Turn::wait(&path);
            sender.send(()).expect("sent");
            turn
        });
        assert!(
            receiver.recv_timeout(Duration::from_millis(100)).is_err(),
            "both have it"
        );
        drop(first);
        receiver.recv_timeout(PATIENCE).expect("its turn");
        assert!(second.join().expect("ends").is_ok());
        assert!(Turn::wait(Path::new("/proc/self")).is_ok());
    }
}
