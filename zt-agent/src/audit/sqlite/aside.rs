// SPDX-License-Identifier: Apache-2.0
//! Damaged files, put aside whole under a name of their own: they are evidence, and what can be read of them can be
//! brought back. Nothing here removes one.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::StoreError;
use super::schema::APPLICATION_ID;
use crate::audit::record::Timestamp;
use crate::audit::seal::Keys;

/// What a database consists of. The log first: one that was left behind would be taken for that of the file that comes next.
const PARTS: [&str; 3] = ["-wal", "-shm", ""];
/// What stands between the name of a file and the time at which it was put aside.
const ASIDE: &str = ".damaged-";
/// What a database begins with, and where it says whose it is.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const ID_AT: usize = 68;

/// A path with something behind it.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Whether a file was a trail or a spool of ours, whatever it holds now: a name that leads somewhere else by mistake must not
/// have another's file moved.
pub(super) fn is_ours(path: &Path, keys: Option<&Path>) -> bool {
    let noted = keys.is_some_and(|keys| matches!(Keys::writer_at(keys, path), Ok(Some(_))));
    noted || says_so(path).unwrap_or(false)
}

/// Whether the file's first page says so.
fn says_so(path: &Path) -> io::Result<bool> {
    let mut first = [0; ID_AT + 4];
    File::open(path)?.read_exact(&mut first)?;
    Ok(first.starts_with(MAGIC) && first.ends_with(&(APPLICATION_ID as u32).to_be_bytes()))
}

/// Whether a file that is there has nothing in it, and had: `SQLite` would take it for a new one, and remove its log.
pub(super) fn is_emptied(path: &Path, keys: Option<&Path>) -> bool {
    let length = |path: &Path| fs::metadata(path).map(|found| found.len()).ok();
    length(path) == Some(0)
        && (length(&beside(path, "-wal")).is_some_and(|bytes| bytes > 0) || is_ours(path, keys))
}

/// Puts another database in the place of a damaged one, which is moved aside with all that belongs to it: both or neither,
/// as far as the file system lets us. Returns where it is now.
pub(super) fn exchange(path: &Path, new: &Path, now: Timestamp) -> Result<PathBuf, StoreError> {
    let aside = free_name(path, now);
    let mut moved: Vec<(PathBuf, PathBuf)> = Vec::new();
    let mut move_aside = |part: &str| {
        let (from, to) = (beside(path, part), beside(&aside, part));
        match fs::rename(&from, &to) {
            Ok(()) => moved.push((from, to)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    };
    let done = PARTS
        .into_iter()
        .try_for_each(&mut move_aside)
        .and_then(|()| fs::rename(new, path));
    match done.and_then(|()| File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()) {
        Ok(()) => Ok(aside),
        Err(source) => {
            for (from, to) in moved.into_iter().rev() {
                // What cannot be moved back stays under the name that it has now.
                let _ = fs::rename(to, from);
            }
            Err(StoreError::Aside {
                path: path.to_owned(),
                source,
            })
        }
    }
}

/// Removes a database that was begun and never put in place.
pub(super) fn remove_unfinished(new: &Path) -> Result<(), StoreError> {
    for part in PARTS {
        let path = beside(new, part);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::Create { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A name with the time that nothing has yet.
fn free_name(path: &Path, now: Timestamp) -> PathBuf {
    let now = now.to_string();
    let seconds = now.split(['.', 'Z']).next().unwrap_or_default();
    let time = seconds.replace(['-', ':'], "");
    let is_free = |name: &Path| {
        PARTS
            .into_iter()
            .all(|part| beside(name, part).symlink_metadata().is_err())
    };
    let first = beside(path, &format!("{ASIDE}{time}Z"));
    let (mut name, mut number) = (first.clone(), 1);
    while !is_free(&name) {
        number += 1;
        name = beside(&first, &format!("-{number}"));
    }
    name
}

/// The damaged files that lie beside a database.
pub fn damaged_beside(path: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let begin = beside(path, ASIDE);
    let begin = begin.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let file = entry?.path();
        let name = file.as_os_str().as_encoded_bytes();
        let is_part = PARTS
            .iter()
            .any(|part| !part.is_empty() && name.ends_with(part.as_bytes()));
        if name.starts_with(begin) && !is_part {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// 2026-02-23T14:30:00.5Z.
    const NOW: Timestamp = Timestamp(1_771_857_000_500_000_000);

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).expect("writes");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn a_file_goes_aside_whole_and_takes_nobodys_name() {
        let directory = tempfile::tempdir().expect("directory");
        let (path, new) = (directory.path().join("audit.db"), directory.path().join("new"));
        for round in ["first", "second"] {
            for part in PARTS {
                write(&beside(&path, part), &format!("{round}{part}"), 0o640);
            }
            write(&new, "new", 0o600);
            let aside = exchange(&path, &new, NOW).expect("moves");
            assert_eq!(fs::read_to_string(&path).expect("in place"), "new");
            for part in PARTS {
                let file = beside(&aside, part);
                assert_eq!(
                    fs::read_to_string(&file).expect("aside"),
                    format!("{round}{part}")
                );
                assert_eq!(
                    fs::metadata(&file).expect("mode").permissions().mode() & 0o777,
                    0o640
                );
                assert!(part.is_empty() || !beside(&path, part).exists());
            }
            assert!(!new.exists());
        }
        let first = directory.path().join("audit.db.damaged-20260223T143000Z");
        assert_eq!(
            damaged_beside(&path).expect("reads"),
            [first.clone(), beside(&first, "-2")]
        );
    }

    #[test]
    fn what_cannot_be_moved_stays_where_it_is() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("audit.db");
        for part in PARTS {
            write(&beside(&path, part), part, 0o600);
        }
        // Where a directory is expected there is a file.
        let error = exchange(&path, &path.join("new"), NOW).expect_err("fails");
        assert!(error.to_string().contains("audit.db"), "{error}");
        for part in PARTS {
            assert_eq!(fs::read_to_string(beside(&path, part)).expect("in place"), part);
        }
        assert!(damaged_beside(&path).expect("reads").is_empty());
    }

    #[test]
    fn another_ones_file_is_not_taken_for_ours() {
        let directory = tempfile::tempdir().expect("directory");
        let (path, keys) = (directory.path().join("audit.db"), directory.path().join("keys"));
        write(&path, "root:x:0:0::/root:/bin/sh\n", 0o600);
        assert!(!is_ours(&path, None) && !is_ours(&path, Some(&keys)));
        let held = Keys::open(&keys).expect("makes");
        assert!(!is_ours(&path, Some(&keys)));
        held.note_writer(&path, uuid::Uuid::from_u128(7)).expect("notes");
        assert!(is_ours(&path, Some(&keys)) && !is_ours(&keys.join("keys.json"), Some(&keys)));
        assert!(!is_emptied(&path, Some(&keys)));
        write(&path, "", 0o600);
        assert!(is_emptied(&path, Some(&keys)) && !is_emptied(&path, None));
        write(&beside(&path, "-wal"), "frames", 0o600);
        assert!(is_emptied(&path, None));
        let mut page = MAGIC.to_vec();
        page.resize(ID_AT, 0);
        page.extend((APPLICATION_ID as u32).to_be_bytes());
        fs::write(&path, page).expect("writes");
        assert!(is_ours(&path, None) && !is_emptied(&path, None));
    }
}
