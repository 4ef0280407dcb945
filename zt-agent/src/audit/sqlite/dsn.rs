// SPDX-License-Identifier: Apache-2.0
//! The DSN, and the directory and file that it names.

use std::fs::{DirBuilder, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::StoreError;

/// The file that a DSN names.
pub(super) fn path(dsn: &str) -> Result<PathBuf, StoreError> {
    let refuse = |problem| Err(StoreError::Dsn { problem });
    let Some(path) = dsn.strip_prefix("sqlite://") else {
        return refuse("not a SQLite DSN");
    };
    if path.is_empty() || path.ends_with('/') {
        return refuse("names no file");
    }
    if path.contains('?') || path.contains(":memory:") {
        return refuse("takes a path and nothing else");
    }
    if !path.starts_with('/') {
        return refuse("the path must be absolute, with three slashes in all");
    }
    Ok(PathBuf::from(path))
}

/// Makes what is missing, readable by this user only. What exists keeps its permissions.
pub(super) fn create(path: &Path) -> Result<(), StoreError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Create { path, source }
    };
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(failed(parent))?;
    }
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed(path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_absolute_path_is_taken() {
        assert_eq!(
            path("sqlite:///var/lib/zt/audit.db").expect("path"),
            Path::new("/var/lib/zt/audit.db")
        );
        for (dsn, problem) in [
            ("postgres://user:secret@db/zt", "not a SQLite DSN"),
            ("sqlite://", "names no file"),
            ("sqlite:///var/lib/zt/", "names no file"),
            ("sqlite://audit.db", "absolute"),
            ("sqlite:///audit.db?mode=memory", "nothing else"),
            ("sqlite://:memory:", "nothing else"),
            ("/var/lib/zt/audit.db", "not a SQLite DSN"),
        ] {
            let error = path(dsn).expect_err(dsn).to_string();
            assert!(error.contains(problem), "{dsn}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
