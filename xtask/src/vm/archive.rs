// SPDX-License-Identifier: Apache-2.0
//! The archive that a kernel unpacks into memory before it starts the first process: `cpio` of the kind `newc`, as the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst` has it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const END: &str = "TRAILER!!!";

/// An archive that is being written.
pub(super) struct Archive {
    file: BufWriter<File>,
    /// The number of the last entry.
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            file: BufWriter::new(file),
            entries: 0,
            directories: BTreeSet::new(),
        })
    }

    /// A directory, with those above it.
    pub(super) fn directory(&mut self, path: &str) -> Result<()> {
        let path = path.trim_matches('/');
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for directory in ends.map(|end| &path[..end]).filter(|path| !path.is_empty()) {
            if self.directories.insert(directory.to_owned()) {
                self.entry(directory, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    /// A file that may be read and run, with the directories above it.
    pub(super) fn file(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let path = path.trim_matches('/');
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directory(directory)?;
        }
        self.entry(path, PROGRAM, bytes)
    }

    /// The end of the archive.
    pub(super) fn finish(mut self) -> Result<()> {
        self.entry(END, 0, &[])?;
        Ok(self.file.flush()?)
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.entries += 1;
        let size =
            u32::try_from(bytes.len()).with_context(|| format!("{name} is too large for the archive"))?;
        // Number, mode, owner, group, links, time, size, the device of the file system, that of a node, length of the name, sum.
        let header = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        let mut text = b"070701".to_vec();
        for field in header {
            write!(text, "{field:08X}")?;
        }
        text.extend(name.as_bytes());
        // The name's end, and up to a multiple of four.
        let named = text.len() + 1;
        self.file.write_all(&text)?;
        self.file.write_all(&[0; 4][..=padding(named)])?;
        self.file.write_all(bytes)?;
        Ok(self.file.write_all(&[0; 3][..padding(bytes.len())])?)
    }
}

/// What is missing to a multiple of four.
fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_directories_come_before_what_is_in_them() -> Result<()> {
        let path = std::env::temp_dir().join(format!("zt-archive-{}", std::process::id()));
        let mut archive = Archive::create(&path)?;
        archive.file("/usr/b/c", b"text")?;
        archive.file("/usr/d", b"")?;
        archive.finish()?;
        let bytes = std::fs::read(&path)?;
        std::fs::remove_file(&path)?;
        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let field = |number: usize| -> Result<usize> {
                let place = at + 6 + 8 * number;
                let digits = std::str::from_utf8(&bytes[place..place + 8])?;
                Ok(usize::from_str_radix(digits, 16)?)
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, name) = (field(6)?, field(11)?);
            names.push(std::str::from_utf8(&bytes[at + 110..at + 110 + name - 1])?.to_owned());
            at += (110 + name).next_multiple_of(4);
            at += size.next_multiple_of(4);
        }
        assert_eq!(names, ["usr", "usr/b", "usr/b/c", "usr/d", END]);
        Ok(())
    }
}
