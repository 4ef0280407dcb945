// SPDX-License-Identifier: Apache-2.0
//! The hash chain: each entry's hash covers what the entry says and the hash of the entry before it.
//!
//! A *writer* is one store that gives entries their places, known by a random id that is made with the store. Its
//! entries are numbered from 1 without a gap. With `‖` for concatenation and numbers in big endian:
//!
//! * digest of an entry: `SHA-256(canonical form)`, see [`canonical`];
//! * hash of an entry: `SHA-256("zt-audit-1" ‖ writer ‖ seq ‖ hash of seq − 1 ‖ digest)`; before the first there is
//!   [`START`].
//!
//! Whoever changes, removes, inserts or moves an entry has to write every hash behind it anew, and cannot sign the
//! checkpoints that lie there.

pub mod canonical;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use super::record::Entry;

/// A SHA-256; 64 lower-case hexadecimal digits outside.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

/// What the hash of an entry begins with.
const FORMAT: &[u8; 10] = b"zt-audit-1";
/// What it covers: the format, writer and number, and two hashes.
const PLACE_BYTES: usize = FORMAT.len() + 16 + 8 + 2 * 32;

/// The hash before the first entry.
pub const START: Hash = Hash([0; 32]);

/// An entry's place in its writer's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Who gave it its place.
    pub writer: Uuid,
    /// Its number, from 1.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

/// Where a writer's chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whose chain.
    pub writer: Uuid,
    /// Number of the last entry; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// A chain without an entry.
    pub const fn new(writer: Uuid) -> Self {
        Self {
            writer,
            seq: 0,
            hash: START,
        }
    }

    /// Appends an entry.
    pub fn link(&mut self, entry: &Entry) -> Link {
        self.link_digest(digest(entry))
    }

    /// Appends entries; the hash of each.
    pub fn link_all(&mut self, entries: &[Entry]) -> Vec<Hash> {
        let mut bytes = Vec::with_capacity(512);
        let link = |entry| {
            bytes.clear();
            canonical::write(entry, &mut bytes);
            self.link_digest(sha256(&bytes)).hash
        };
        entries.iter().map(link).collect()
    }

    /// Appends an entry of which only the digest is known.
    pub fn link_digest(&mut self, digest: Hash) -> Link {
        self.seq += 1;
        let mut place = [0; PLACE_BYTES];
        let mut rest = place.as_mut_slice();
        for part in [
            FORMAT.as_slice(),
            self.writer.as_bytes(),
            &self.seq.to_be_bytes(),
            &self.hash.0,
            &digest.0,
        ] {
            let (to, behind) = rest.split_at_mut(part.len());
            to.copy_from_slice(part);
            rest = behind;
        }
        self.hash = sha256(&place);
        Link {
            writer: self.writer,
            seq: self.seq,
            hash: self.hash,
        }
    }
}

/// What an entry says, as a hash.
pub fn digest(entry: &Entry) -> Hash {
    let mut bytes = Vec::with_capacity(512);
    canonical::write(entry, &mut bytes);
    sha256(&bytes)
}

/// By the crypto library's assembler: hashing is what costs most about a record.
fn sha256(bytes: &[u8]) -> Hash {
    let mut hash = [0; SHA256_OUTPUT_LEN];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&SHA256, bytes).as_ref());
    Hash(hash)
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A text that is not a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a hash: 64 lower-case hexadecimal digits")]
pub struct HashError;

impl std::str::FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(HashError),
        };
        let text = <&[u8; 64]>::try_from(text.as_bytes()).map_err(|_| HashError)?;
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(text.as_chunks::<2>().0) {
            let [high, low] = *digits;
            *byte = digit(high)? << 4 | digit(low)?;
        }
        Ok(Self(hash))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}
