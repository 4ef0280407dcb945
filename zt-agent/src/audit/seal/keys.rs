// SPDX-License-Identifier: Apache-2.0
//! The keys that checkpoints are signed with: a directory apart from the data.
//!
//! * `keys.json`: every key there ever was, public parts only, oldest first. Each is signed by the one before it, the
//!   first by itself: whoever trusts the first can follow to the last.
//! * `<id>.key`: the private part of the last key (PKCS #8, mode 0600). Those before it are deleted.
//! * `<writer>.checkpoint`: the last checkpoint of each writer, so that a store whose end was cut off shows.
//! * `<writer>.<hash>.checkpoint`: one that its store does not go on from, kept for whoever asks what became of it.
//! * `<hash of a path>.store`: whose chain is in the file at that path.
//! * `<writer>.gone`: up to which entry a spool need not have them any more, so that nobody takes out more.

mod notes;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::notes::Gone;
use super::{Checkpoint, Signature, hex, unhex};
use crate::audit::clock;
use crate::audit::record::Timestamp;

/// What [`Signature::algorithm`] says of ours.
pub const ALGORITHM: &str = "ed25519";
const LIST: &str = "keys.json";

/// A key, its public part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// The first 128 bits of SHA-256 of the public key, hexadecimal.
    pub key: String,
    /// `ed25519`.
    pub algorithm: String,
    /// The public key, hexadecimal.
    pub public: String,
    /// When it was made.
    pub created: Timestamp,
    /// By the key before it, or by itself.
    pub signatures: Vec<Signature>,
}

impl KeyRecord {
    /// The bytes that are signed.
    pub fn signed(&self) -> Vec<u8> {
        let mut bytes = b"zt-audit-key-1".to_vec();
        bytes.extend_from_slice(&self.created.0.to_be_bytes());
        bytes.extend_from_slice(self.algorithm.as_bytes());
        bytes.extend_from_slice(&unhex(&self.public).unwrap_or_default());
        bytes
    }

    /// Whether `key` is the id of its public key.
    pub fn has_id(&self) -> bool {
        self.key == id_of(&unhex(&self.public).unwrap_or_default())
    }

    /// Whether `key` is the id of its public key, and one of these keys, or itself, has signed it.
    pub fn is_signed_by(&self, trusted: &[Self]) -> bool {
        let by_itself = std::slice::from_ref(self);
        let signers = if trusted.is_empty() { by_itself } else { trusted };
        self.has_id()
            && signers
                .iter()
                .any(|key| key.has_signed(&self.signed(), &self.signatures))
    }

    /// Whether one of the signatures is this key's, and holds. Never for a key of an algorithm that we do not know.
    pub fn has_signed(&self, bytes: &[u8], signatures: &[Signature]) -> bool {
        let Some(public) = unhex(&self.public).filter(|_| self.algorithm == ALGORITHM) else {
            return false;
        };
        let public = UnparsedPublicKey::new(&ED25519, public);
        signatures
            .iter()
            .filter(|signature| signature.algorithm == ALGORITHM && signature.key == self.key)
            .filter_map(|signature| unhex(&signature.signature))
            .any(|signature| public.verify(bytes, &signature).is_ok())
    }
}

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file operation failed.
    #[error("audit keys: cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The private key can be read by others.
    #[error("audit keys: {} may be read by others (mode {mode:o}): chmod 600 it, and rotate the key (zt-agent audit rotate-key) if somebody may have", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file is not what it should be.
    #[error("audit keys: {} is damaged ({cause}): put it back from a backup; with another directory (audit.keys) a new key begins, and `audit verify` needs both", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// The keys of a directory, the last of which signs.
pub struct Keys {
    directory: PathBuf,
    records: Vec<KeyRecord>,
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// Opens the directory; makes it and the first key where there is none.
    pub fn open(directory: &Path) -> Result<Self, KeyError> {
        if let Some(keys) = Self::latest(directory, || read(directory))? {
            return Ok(keys);
        }
        let failed = io_error("create", directory);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let _lock = lock(directory)?;
        // Another process may have been faster.
        if let Some(records) = read(directory)? {
            return Self::of(directory, records);
        }
        let keys = Self::make(directory, Vec::new())?;
        tracing::info!(key = %keys.current().key, directory = %directory.display(), "made the first key of the audit trail's checkpoints");
        Ok(keys)
    }

    /// The keys that a list names; `None` where there is none. Who rotates meanwhile deletes the key that was the last one:
    /// then the list has become another, and is read again.
    fn latest(
        directory: &Path,
        mut list: impl FnMut() -> Result<Option<Vec<KeyRecord>>, KeyError>,
    ) -> Result<Option<Self>, KeyError> {
        let Some(mut records) = list()? else {
            return Ok(None);
        };
        loop {
            match Self::of(directory, records.clone()) {
                Ok(keys) => return Ok(Some(keys)),
                Err(error) => match list()? {
                    Some(now) if now != records => records = now,
                    _ => return Err(error),
                },
            }
        }
    }

    fn of(directory: &Path, records: Vec<KeyRecord>) -> Result<Self, KeyError> {
        let damaged = |path: &Path, cause: &str| KeyError::Damaged {
            path: path.to_owned(),
            cause: cause.to_owned(),
        };
        let Some(last) = records.last() else {
            return Err(damaged(&directory.join(LIST), "it lists no key"));
        };
        let path = directory.join(format!("{}.key", last.key));
        let mode = fs::metadata(&path).map_err(io_error("read", &path))?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open { path, mode });
        }
        let private = fs::read(&path).map_err(io_error("read", &path))?;
        let pair =
            Ed25519KeyPair::from_pkcs8(&private).map_err(|error| damaged(&path, &error.to_string()))?;
        if id_of(pair.public_key().as_ref()) != last.key {
            return Err(damaged(&path, "it is another key than its name says"));
        }
        Ok(Self {
            directory: directory.to_owned(),
            records,
            pair,
        })
    }

    /// Makes a key, signed by the last of `records`. The caller holds the lock.
    fn make(directory: &Path, mut records: Vec<KeyRecord>) -> Result<Self, KeyError> {
        let random = |_| KeyError::Damaged {
            path: directory.to_owned(),
            cause: "no key could be made".to_owned(),
        };
        let pair = Ed25519KeyPair::generate().map_err(random)?;
        let public = pair.public_key().as_ref();
        let mut record = KeyRecord {
            key: id_of(public),
            algorithm: ALGORITHM.to_owned(),
            public: hex(public),
            created: Timestamp(clock::now()),
            signatures: Vec::new(),
        };
        let bytes = record.signed();
        record.signatures.push(if records.is_empty() {
            sign(&pair, &record.key, &bytes)
        } else {
            Self::of(directory, records.clone())?.sign(&bytes)
        });
        let private = pair.to_pkcs8().map_err(random)?;
        let current = format!("{}.key", record.key);
        write(directory, &current, private.as_ref())?;
        records.push(record);
        let list = serde_json::to_vec_pretty(&records).unwrap_or_default();
        write(directory, LIST, &list)?;
        // That of the key before; and those that a crash left between two steps of an earlier call.
        remove_keys_but(directory, &current)?;
        Self::of(directory, records)
    }

    /// Puts a new key in the place of the current one, which signs it.
    pub fn rotate(directory: &Path) -> Result<Self, KeyError> {
        Self::open(directory)?;
        let _lock = lock(directory)?;
        let records = read(directory)?.unwrap_or_default();
        Self::make(directory, records)
    }

    /// The public parts of a directory's keys, oldest first; `None` where there are none.
    pub fn list(directory: &Path) -> Result<Option<Vec<KeyRecord>>, KeyError> {
        read(directory)
    }

    /// The public parts of all keys, oldest first.
    pub fn records(&self) -> &[KeyRecord] {
        &self.records
    }

    /// The key that signs.
    pub fn current(&self) -> &KeyRecord {
        // `of` has refused an empty list.
        self.records
            .last()
            .unwrap_or_else(|| unreachable!("a list of keys has a last one"))
    }

    /// Signs with the current key.
    pub fn sign(&self, bytes: &[u8]) -> Signature {
        sign(&self.pair, &self.current().key, bytes)
    }

    /// Whether one of these keys has signed a checkpoint.
    pub fn have_signed(&self, checkpoint: &Checkpoint) -> bool {
        let bytes = checkpoint.signed();
        self.records
            .iter()
            .any(|key| key.has_signed(&bytes, &checkpoint.signatures))
    }
}

fn sign(pair: &Ed25519KeyPair, key: &str, bytes: &[u8]) -> Signature {
    Signature {
        algorithm: ALGORITHM.to_owned(),
        key: key.to_owned(),
        signature: hex(pair.sign(bytes).as_ref()),
    }
}

fn id_of(public: &[u8]) -> String {
    hex(Sha256::digest(public).get(..16).unwrap_or_default())
}

fn read(directory: &Path) -> Result<Option<Vec<KeyRecord>>, KeyError> {
    let path = directory.join(LIST);
    match fs::read(&path) {
        Ok(bytes) => parse(&path, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, KeyError> {
    serde_json::from_slice(bytes).map_err(|error| KeyError::Damaged {
        path: path.to_owned(),
        cause: error.to_string(),
    })
}

/// One process at a time makes keys.
fn lock(directory: &Path) -> Result<Flock<File>, KeyError> {
    let file = File::open(directory).map_err(io_error("open", directory))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io_error("lock", directory)(errno.into()))
}

/// Deletes every private key but the one in that file.
fn remove_keys_but(directory: &Path, current: &str) -> Result<(), KeyError> {
    for entry in fs::read_dir(directory).map_err(io_error("read", directory))? {
        let path = entry.map_err(io_error("read", directory))?.path();
        if !path.ends_with(current) && path.extension().is_some_and(|extension| extension == "key") {
            fs::remove_file(&path).map_err(io_error("delete", &path))?;
        }
    }
    Ok(())
}

/// Writes a file whole or not at all, readable by this user only.
fn write(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), KeyError> {
    let (path, new) = (directory.join(name), directory.join(format!(".{name}.new")));
    let mut open = OpenOptions::new();
    let file = open
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new);
    file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, &path))
        // Else a power cut may leave the list of keys without the key that it names last.
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(io_error("write", &path))
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> KeyError {
    let path = path.to_owned();
    move |source| KeyError::Io {
        what,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests;
