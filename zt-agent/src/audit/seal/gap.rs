// SPDX-License-Identifier: Apache-2.0
//! Gaps: a signed statement that entries of a chain are not there, and why.
//!
//! The signed bytes are `"zt-audit-gap-1" ‖ writer ‖ first ‖ last ‖ before ‖ after ‖ time ‖ cause`, numbers in big endian;
//! `before` is the byte 1 and the hash of the entry before `first`, or the byte 0 where the signer does not know it;
//! `after` is the hash of entry `last`. So the chain goes on behind a gap as if the entries were there.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Keys, Signature};
use crate::audit::chain::Hash;
use crate::audit::clock;
use crate::audit::record::Timestamp;

/// Why entries are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The spool was full and they had waited longest.
    SpoolOldest,
    /// The spool was full when they came.
    SpoolNewest,
    /// The spool had them and could not read them: damaged, or written by a later version.
    SpoolUnreadable,
    /// The spool as a whole was damaged, and was put aside with them.
    SpoolDamaged,
    /// The server refused what they say.
    ServerRefused,
    /// They were too old.
    Pruned,
}

impl Cause {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::SpoolOldest,
        Self::SpoolNewest,
        Self::SpoolUnreadable,
        Self::SpoolDamaged,
        Self::ServerRefused,
        Self::Pruned,
    ];

    /// Its name in statements, reports and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SpoolOldest => "spool_oldest",
            Self::SpoolNewest => "spool_newest",
            Self::SpoolUnreadable => "spool_unreadable",
            Self::SpoolDamaged => "spool_damaged",
            Self::ServerRefused => "server_refused",
            Self::Pruned => "pruned",
        }
    }

    /// The one with that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.name() == name)
    }

    /// Whether the entries were lost, and did not just become too old.
    pub const fn is_loss(self) -> bool {
        !matches!(self, Self::Pruned)
    }
}

/// Entries that are not there, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// Whose chain.
    pub writer: Uuid,
    /// Number of the first of them.
    pub first: u64,
    /// Number of the last.
    pub last: u64,
    /// The hash of the entry before the first, where the signer knows it.
    pub before: Option<Hash>,
    /// The hash of the last.
    pub after: Hash,
    /// Why they are not there.
    pub cause: Cause,
    /// When that was stated.
    pub time: Timestamp,
    /// Who says so: the writer, or for entries that were pruned on a server its maintainer.
    pub signatures: Vec<Signature>,
}

impl Gap {
    /// Signs that entries from `first` to `last` are not there.
    pub fn sign(
        writer: Uuid,
        (first, last): (u64, u64),
        (before, after): (Option<Hash>, Hash),
        cause: Cause,
        keys: &Keys,
    ) -> Self {
        let mut gap = Self {
            writer,
            first,
            last,
            before,
            after,
            cause,
            time: Timestamp(clock::now()),
            signatures: Vec::new(),
        };
        gap.signatures.push(keys.sign(&gap.signed()));
        gap
    }

    /// The bytes that are signed.
    pub fn signed(&self) -> Vec<u8> {
        let mut bytes = b"zt-audit-gap-1".to_vec();
        bytes.extend_from_slice(self.writer.as_bytes());
        bytes.extend_from_slice(&self.first.to_be_bytes());
        bytes.extend_from_slice(&self.last.to_be_bytes());
        match self.before {
            Some(before) => {
                bytes.push(1);
                bytes.extend_from_slice(&before.0);
            }
            None => bytes.push(0),
        }
        bytes.extend_from_slice(&self.after.0);
        bytes.extend_from_slice(&self.time.0.to_be_bytes());
        bytes.extend_from_slice(self.cause.name().as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::chain::START;

    #[test]
    fn nothing_of_a_gap_can_be_changed() {
        let directory = tempfile::tempdir().expect("directory");
        let keys = Keys::open(directory.path()).expect("makes one");
        let (writer, hashes) = (Uuid::from_u128(7), (Some(START), Hash([1; 32])));
        let signed = Gap::sign(writer, (3, 9), hashes, Cause::SpoolOldest, &keys);
        let holds = |gap: &Gap| keys.current().has_signed(&gap.signed(), &gap.signatures);
        assert!(holds(&signed));
        let changes: [fn(&mut Gap); 8] = [
            |gap| gap.writer = Uuid::from_u128(8),
            |gap| gap.first -= 1,
            |gap| gap.last += 1,
            |gap| gap.before = None,
            |gap| gap.before = Some(Hash([2; 32])),
            |gap| gap.after.0[0] ^= 1,
            |gap| gap.cause = Cause::Pruned,
            |gap| gap.time.0 += 1,
        ];
        for change in changes {
            let mut changed = signed.clone();
            change(&mut changed);
            assert!(!holds(&changed), "{changed:?}");
        }
    }

    #[test]
    fn causes_are_called_the_same_everywhere() {
        for cause in Cause::ALL {
            assert_eq!(Cause::from_name(cause.name()), Some(cause));
            let json = serde_json::to_string(&cause).expect("writes");
            assert_eq!(json, format!("\"{}\"", cause.name()));
        }
    }
}
