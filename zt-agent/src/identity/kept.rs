// SPDX-License-Identifier: Apache-2.0
//! Files in which an agent leaves what it knows to the next one. Only root may read them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::de::DeserializeOwned;

/// Replaces what `path` says, whole or not at all as long as the machine runs.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    write(path, text, false)
}

/// The same, also across a crash of the machine.
pub fn replace_synced(path: &Path, text: &[u8]) -> io::Result<()> {
    write(path, text, true)
}

/// What `path` says; `None` where it cannot be read, or there is none: that costs the next agent what it could have known.
/// `what` is called so in the log.
pub fn read<T: DeserializeOwned>(path: &Path, max_bytes: u64, what: &str) -> Option<T> {
    match try_read(path, max_bytes) {
        Ok(read) => read,
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "{what} that were known before cannot be read");
            None
        }
    }
}

/// What `path` says; `None` where there is no such file.
pub fn try_read<T: DeserializeOwned>(path: &Path, max_bytes: u64) -> io::Result<Option<T>> {
    let read = || -> io::Result<T> {
        if fs::metadata(path)?.len() > max_bytes {
            return Err(io::Error::other("it is too large"));
        }
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    };
    match read() {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which start of the machine this is; `None` where the kernel does not say.
pub fn boot() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

fn write(path: &Path, text: &[u8], synced: bool) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text)?;
    if synced {
        file.sync_all()?;
    }
    fs::rename(&new, path)
}
