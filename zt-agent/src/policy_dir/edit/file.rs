// SPDX-License-Identifier: Apache-2.0
//! Replaces, makes and removes one file, so that a crash at any moment leaves the old state or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::EditError;

/// The mode of a file that was not there before.
const NEW_MODE: u32 = 0o644;

/// Has `file` hold `text`, or be gone without one. `exists` says which of the two it is now.
pub(super) fn replace(file: &Path, text: Option<&str>, exists: bool) -> Result<(), EditError> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    let outcome = match text {
        Some(text) => write(file, directory, text, exists),
        None => fs::remove_file(file),
    };
    outcome
        // The change is durable when the directory that names the file is.
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(|source| failed(file, source))
}

fn write(file: &Path, directory: &Path, text: &str, exists: bool) -> io::Result<()> {
    let mode = fs::metadata(file).map_or(NEW_MODE, |metadata| metadata.permissions().mode() & 0o7777);
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    // Hidden: nobody reads it as a policy. One that a crash left behind is overwritten.
    let temporary = directory.join(format!(".{name}.new"));
    let result = (|| {
        let mut new = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&temporary)?;
        new.set_permissions(fs::Permissions::from_mode(mode))?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        if exists {
            return fs::rename(&temporary, file);
        }
        // Never over a file that someone made a moment ago.
        renameat2(
            AT_FDCWD,
            &temporary,
            AT_FDCWD,
            file,
            RenameFlags::RENAME_NOREPLACE,
        )
        .map_err(io::Error::from)
    })();
    if result.is_err() {
        // What matters is why writing failed.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// The error of an operation on `file`.
pub(super) fn failed(file: &Path, source: io::Error) -> EditError {
    let file = file.display().to_string();
    match source.kind() {
        io::ErrorKind::AlreadyExists => EditError::Raced(file),
        io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::PermissionDenied
        // The file itself is mounted there, as a ConfigMap is with `subPath`.
        | io::ErrorKind::ResourceBusy => EditError::ReadOnly { file, source },
        _ => EditError::Write { file, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_mounted_is_changed_where_it_comes_from() {
        for (errno, read_only) in [
            (libc::EBUSY, true),
            (libc::EROFS, true),
            (libc::EACCES, true),
            (libc::EIO, false),
            (libc::ENOSPC, false),
        ] {
            let error = failed(Path::new("/p/a.yaml"), io::Error::from_raw_os_error(errno));
            assert_eq!(matches!(error, EditError::ReadOnly { .. }), read_only, "{error}");
        }
    }
}
