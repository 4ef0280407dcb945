// SPDX-License-Identifier: Apache-2.0
//! Checkpoints: a signed statement of where a writer's chain stands; and [`Gap`]s, of what is missing from it.
//!
//! The signed bytes are `"zt-audit-checkpoint-1" ‖ writer ‖ seq ‖ hash ‖ time ‖ pruned ‖ pruned_hash`, numbers in big
//! endian. `pruned` says up to which entry the oldest were removed by then, and `pruned_hash` is the hash of that
//! entry: what is left begins behind it, and whoever removes more cannot say so. A checkpoint has a list of signatures,
//! each with its algorithm, so that a second one (post-quantum) fits beside the first; one that a verifier trusts and
//! understands must be there and hold.

mod gap;
pub mod keys;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::gap::{Cause, Gap};
pub use self::keys::{Gone, KeyError, KeyRecord, Keys};
use super::chain::{Hash, Head};
use super::record::Timestamp;

/// Where a chain stood, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Whose chain.
    pub writer: Uuid,
    /// Number of its last entry.
    pub seq: u64,
    /// The hash of that.
    pub hash: Hash,
    /// When.
    pub time: Timestamp,
    /// Entries up to this one had been removed for age or space.
    pub pruned: u64,
    /// The hash of that one.
    pub pruned_hash: Hash,
    /// Who says so.
    pub signatures: Vec<Signature>,
}

/// A signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// `ed25519`.
    pub algorithm: String,
    /// Id of the key.
    pub key: String,
    /// The signature, lower-case hexadecimal.
    pub signature: String,
}

impl Checkpoint {
    /// Signs where a chain stands.
    pub fn sign(head: Head, time: Timestamp, pruned: (u64, Hash), keys: &Keys) -> Self {
        let mut checkpoint = Self {
            writer: head.writer,
            seq: head.seq,
            hash: head.hash,
            time,
            pruned: pruned.0,
            pruned_hash: pruned.1,
            signatures: Vec::new(),
        };
        checkpoint.signatures.push(keys.sign(&checkpoint.signed()));
        checkpoint
    }

    /// The bytes that are signed.
    pub fn signed(&self) -> Vec<u8> {
        let mut bytes = b"zt-audit-checkpoint-1".to_vec();
        bytes.extend_from_slice(self.writer.as_bytes());
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&self.hash.0);
        bytes.extend_from_slice(&self.time.0.to_be_bytes());
        bytes.extend_from_slice(&self.pruned.to_be_bytes());
        bytes.extend_from_slice(&self.pruned_hash.0);
        bytes
    }
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a text does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// The bytes of lower-case hexadecimal digits.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let pair = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    let bytes = pairs.iter().map(pair).collect::<Option<Vec<u8>>>()?;
    rest.is_empty().then_some(bytes)
}
