// SPDX-License-Identifier: Apache-2.0
//! What is noted of writers beside the keys, apart from their data.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Checkpoint, KeyError, Keys, id_of, io_error, parse, write};
use crate::audit::chain::Hash;

/// What a spool need not have any more: it was shipped, given up, or never kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gone {
    /// The entry of the last checkpoint by then. One of a later entry was noted by a version that does not note this.
    pub noted: u64,
    /// Entries up to this one need not be there. What went later than the entry of the checkpoint is not noted: nothing
    /// that is left then was signed.
    pub gone: u64,
}

/// Whose chain is in a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    /// The file, for people.
    path: String,
    writer: Uuid,
}

/// `<the first 128 bits of SHA-256 of a database's path>.store`.
fn name_of(database: &Path) -> String {
    format!("{}.store", id_of(database.as_os_str().as_bytes()))
}

impl Keys {
    /// Notes a writer's last checkpoint, apart from the data.
    pub fn note(&self, checkpoint: &Checkpoint) -> Result<(), KeyError> {
        let text = serde_json::to_vec(checkpoint).unwrap_or_default();
        write(
            &self.directory,
            &format!("{}.checkpoint", checkpoint.writer),
            &text,
        )
    }

    /// The last checkpoint of a writer that was noted.
    pub fn last_of(&self, writer: Uuid) -> Result<Option<Checkpoint>, KeyError> {
        Self::last_in(&self.directory, writer)
    }

    /// The last checkpoint of a writer that was noted in a directory.
    pub fn last_in(directory: &Path, writer: Uuid) -> Result<Option<Checkpoint>, KeyError> {
        read_note(&directory.join(format!("{writer}.checkpoint")))
    }

    /// Notes what a spool need not have any more.
    pub fn note_gone(directory: &Path, writer: Uuid, gone: Gone) -> Result<(), KeyError> {
        let text = serde_json::to_vec(&gone).unwrap_or_default();
        write(directory, &format!("{writer}.gone"), &text)
    }

    /// What a spool need not have any more; `None` where no version has noted it.
    pub fn gone(&self, writer: Uuid) -> Result<Option<Gone>, KeyError> {
        Self::gone_in(&self.directory, writer)
    }

    /// The same, of a directory.
    pub fn gone_in(directory: &Path, writer: Uuid) -> Result<Option<Gone>, KeyError> {
        read_note(&directory.join(format!("{writer}.gone")))
    }

    /// Notes whose chain is in a file.
    pub fn note_writer(&self, database: &Path, writer: Uuid) -> Result<(), KeyError> {
        let path = database.display().to_string();
        let text = serde_json::to_vec(&Held { path, writer }).unwrap_or_default();
        write(&self.directory, &name_of(database), &text)
    }

    /// Whose chain was in a file when that was noted last.
    pub fn writer_in(&self, database: &Path) -> Result<Option<Uuid>, KeyError> {
        Self::writer_at(&self.directory, database)
    }

    /// The same, as a directory says.
    pub fn writer_at(directory: &Path, database: &Path) -> Result<Option<Uuid>, KeyError> {
        let held: Option<Held> = read_note(&directory.join(name_of(database)))?;
        Ok(held.map(|held| held.writer))
    }

    /// Keeps a checkpoint for good, beside the last one. Returns its file, if it was not kept before.
    pub fn keep(&self, checkpoint: &Checkpoint) -> Result<Option<PathBuf>, KeyError> {
        let name = format!("{}.{}.checkpoint", checkpoint.writer, checkpoint.hash);
        let path = self.directory.join(&name);
        if path.exists() {
            return Ok(None);
        }
        let text = serde_json::to_vec(checkpoint).unwrap_or_default();
        write(&self.directory, &name, &text)?;
        Ok(Some(path))
    }

    /// How many checkpoints are kept in a directory because their stores do not go on from them.
    pub fn kept(directory: &Path) -> Result<u64, KeyError> {
        let mut kept = 0;
        for entry in fs::read_dir(directory).map_err(io_error("read", directory))? {
            let name = entry.map_err(io_error("read", directory))?.file_name();
            kept += u64::from(name.to_str().is_some_and(is_kept));
        }
        Ok(kept)
    }

    /// The last checkpoints that were noted in a directory, and those that were kept.
    pub fn noted(directory: &Path) -> Result<Vec<Checkpoint>, KeyError> {
        let mut noted = Vec::new();
        let entries = fs::read_dir(directory).map_err(io_error("read", directory))?;
        for entry in entries {
            let path = entry.map_err(io_error("read", directory))?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "checkpoint")
            {
                noted.push(parse(&path, &fs::read(&path).map_err(io_error("read", &path))?)?);
            }
        }
        Ok(noted)
    }
}

fn read_note<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, KeyError> {
    match fs::read(path) {
        Ok(bytes) => parse(path, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// Whether a file is `<writer>.<hash>.checkpoint`.
fn is_kept(name: &str) -> bool {
    name.strip_suffix(".checkpoint")
        .and_then(|name| name.split_once('.'))
        .is_some_and(|(writer, hash)| writer.parse::<Uuid>().is_ok() && hash.parse::<Hash>().is_ok())
}
