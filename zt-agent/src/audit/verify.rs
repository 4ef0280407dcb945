// SPDX-License-Identifier: Apache-2.0
//! Finds what was changed, removed, moved or inserted in a trail. Pure: what keeps the trail hands over keys,
//! checkpoints and then the entries, each writer's in the order of their numbers.

mod lines;

use std::collections::BTreeMap;

use uuid::Uuid;

pub use self::lines::{Line, LineError, read_line};
use super::chain::{Hash, Head, digest};
use super::record::Kept;
use super::seal::keys::ALGORITHM;
use super::seal::{Checkpoint, KeyRecord, Signature};

/// Problems that are told one by one. A trail with more has more than a few entries changed.
const MOST: usize = 1000;

/// What is wrong with a trail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// An entry does not say what it said.
    #[error("entry {seq} of {writer} was changed, or inserted (id {id})")]
    Changed {
        /// Whose.
        writer: Uuid,
        /// Its number.
        seq: u64,
        /// Its id.
        id: String,
    },
    /// Entries are not there.
    #[error("entries {first} to {last} of {writer} are missing")]
    Missing {
        /// Whose.
        writer: Uuid,
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// An entry is where it does not belong.
    #[error("entry {seq} of {writer} is out of its order, twice there, or was inserted (id {id})")]
    Misplaced {
        /// Whose.
        writer: Uuid,
        /// Its number.
        seq: u64,
        /// Its id.
        id: String,
    },
    /// An entry without a place.
    #[error("an entry has no place in a chain (id {id}): it was inserted, or is older than the chain")]
    Unchained {
        /// Its id.
        id: String,
    },
    /// An entry that cannot be read.
    #[error("entry {seq} of {writer} cannot be read: {cause}")]
    Unreadable {
        /// Whose.
        writer: Uuid,
        /// Its number.
        seq: u64,
        /// Why not.
        cause: String,
    },
    /// The hash of an entry is not the one that was signed.
    #[error(
        "what {writer} had written up to entry {seq} was rewritten: its checkpoint of {time} signs another hash"
    )]
    Rewritten {
        /// Whose.
        writer: Uuid,
        /// Number of the entry that the checkpoint names.
        seq: u64,
        /// When it was signed.
        time: String,
    },
    /// A checkpoint that no trusted key has signed.
    #[error("the checkpoint of {writer} at entry {seq} has no signature that a trusted key has made")]
    Forged {
        /// Whose.
        writer: Uuid,
        /// At which entry.
        seq: u64,
    },
    /// A key that no trusted key has signed.
    #[error("the key {key} is signed by no key that is trusted")]
    UntrustedKey {
        /// Its id.
        key: String,
    },
    /// No checkpoint at all.
    #[error("{writer} has no checkpoint that a trusted key has signed: nothing of it is proven")]
    Unsealed {
        /// Whose.
        writer: Uuid,
    },
    /// A checkpoint that was noted apart from the trail and is not in it.
    #[error(
        "the checkpoint of {writer} at entry {seq} is not in the trail: it was removed, or the trail's end was cut off"
    )]
    Lacking {
        /// Whose.
        writer: Uuid,
        /// At which entry.
        seq: u64,
    },
    /// Something else that should not be.
    #[error("{0}")]
    Other(String),
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong, at most a thousand.
    pub findings: Vec<Finding>,
    /// All that is wrong.
    pub count: u64,
    /// Entries that were looked at.
    pub entries: u64,
    /// Checkpoints whose signature holds.
    pub checkpoints: u64,
    /// Each writer, how far it is proven, and how many entries lie behind its last checkpoint.
    pub writers: Vec<(Uuid, u64, u64)>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.count == 0
    }
}

/// Looks at a trail, piece by piece.
#[derive(Debug)]
pub struct Verifier {
    /// Ids that are trusted from the start.
    roots: Vec<String>,
    keys: Vec<KeyRecord>,
    writers: BTreeMap<Uuid, Writer>,
    report: Report,
}

#[derive(Debug)]
struct Writer {
    /// Hashes that were signed, by number.
    signed: BTreeMap<u64, (Hash, String)>,
    /// The latest checkpoint: of the most entries, and of those the one after the most pruning.
    latest: Option<Checkpoint>,
    /// Where we are.
    head: Option<Head>,
}

impl Verifier {
    /// Trusts the keys with these ids, and those that they have signed.
    pub fn new(roots: Vec<String>) -> Self {
        Self {
            roots,
            keys: Vec::new(),
            writers: BTreeMap::new(),
            report: Report::default(),
        }
    }

    /// A key, in the order in which they were made.
    pub fn key(&mut self, key: &KeyRecord) {
        // The first is trusted by its id and signed by itself, every other one is signed by one before it.
        let first = self.keys.is_empty();
        if (!first || self.roots.contains(&key.key)) && key.is_signed_by(&self.keys) {
            self.keys.push(key.clone());
        } else {
            self.found(Finding::UntrustedKey { key: key.key.clone() });
        }
    }

    /// A checkpoint; all of them before the first entry.
    pub fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        let bytes = checkpoint.signed();
        let (writer, seq) = (checkpoint.writer, checkpoint.seq);
        // Of algorithms that we know every signature must hold; others may stand beside them.
        let holds = |signature: &Signature| {
            let signature = std::slice::from_ref(signature);
            self.keys.iter().any(|key| key.has_signed(&bytes, signature))
        };
        let mut ours = checkpoint
            .signatures
            .iter()
            .filter(|signature| signature.algorithm == ALGORITHM)
            .peekable();
        let holds = ours.peek().is_some() && ours.all(holds);
        if !holds {
            self.found(Finding::Forged { writer, seq });
            return;
        }
        self.report.checkpoints += 1;
        let time = checkpoint.time.to_string();
        let of = self.writer(writer);
        let other = of.signed.insert(seq, (checkpoint.hash, time.clone()));
        let later = |latest: &Checkpoint| {
            (latest.seq, latest.pruned, latest.time) < (seq, checkpoint.pruned, checkpoint.time)
        };
        if of.latest.as_ref().is_none_or(later) {
            of.latest = Some(checkpoint.clone());
        }
        if other.is_some_and(|(hash, _)| hash != checkpoint.hash) {
            self.found(Finding::Rewritten { writer, seq, time });
        }
    }

    /// The next entry.
    pub fn entry(&mut self, kept: &Kept) {
        self.report.entries += 1;
        let id = kept.entry.id().to_string();
        match kept.link {
            Some(link) => self.digest(link.writer, link.seq, digest(&kept.entry), Some(link.hash), &id),
            None => self.found(Finding::Unchained { id }),
        }
    }

    /// The next entry, of which only the digest is there.
    pub fn omitted(&mut self, writer: Uuid, seq: u64, digest: Hash) {
        self.digest(writer, seq, digest, None, "left out");
    }

    /// The next entry, which is there and cannot be read.
    pub fn unreadable(&mut self, writer: Uuid, seq: u64, cause: String) {
        self.report.entries += 1;
        self.found(Finding::Unreadable { writer, seq, cause });
    }

    /// Something that the one who reads the trail has found.
    pub fn found(&mut self, finding: Finding) {
        self.report.count += 1;
        if self.report.findings.len() < MOST {
            self.report.findings.push(finding);
        }
    }

    /// The last checkpoints that are kept apart from the trail, for those who have them: after those of the trail and
    /// before the first entry. A trail that lacks one was cut off.
    pub fn noted(&mut self, checkpoints: &[Checkpoint]) {
        for checkpoint in checkpoints {
            let (writer, seq) = (checkpoint.writer, checkpoint.seq);
            let known = &self.writer(writer).latest;
            if known.as_ref().is_some_and(|latest| latest.seq >= seq) {
                continue;
            }
            self.found(Finding::Lacking { writer, seq });
            self.checkpoint(checkpoint);
        }
    }

    /// The end.
    pub fn finish(mut self) -> Report {
        let writers = std::mem::take(&mut self.writers);
        for (writer, of) in writers {
            let Some(latest) = of.latest else {
                self.found(Finding::Unsealed { writer });
                continue;
            };
            let reached = of.head.map_or(latest.pruned, |head| head.seq);
            if reached < latest.seq {
                self.found(Finding::Missing {
                    writer,
                    first: reached + 1,
                    last: latest.seq,
                });
            }
            let behind = reached.saturating_sub(latest.seq);
            self.report.writers.push((writer, latest.seq, behind));
        }
        self.report
    }

    fn writer(&mut self, writer: Uuid) -> &mut Writer {
        self.writers.entry(writer).or_insert_with(|| Writer {
            signed: BTreeMap::new(),
            latest: None,
            head: None,
        })
    }

    fn digest(&mut self, writer: Uuid, seq: u64, digest: Hash, hash: Option<Hash>, id: &str) {
        let id = || id.to_owned();
        let of = self.writer(writer);
        // What was pruned ends where the latest checkpoint says, and what is left begins there.
        let start = of.latest.as_ref().map_or(Head::new(writer), |latest| Head {
            writer,
            seq: latest.pruned,
            hash: latest.pruned_hash,
        });
        let mut head = *of.head.get_or_insert(start);
        if seq <= head.seq {
            self.found(Finding::Misplaced {
                writer,
                seq,
                id: id(),
            });
            return;
        }
        let gap = seq > head.seq + 1;
        if gap {
            self.found(Finding::Missing {
                writer,
                first: head.seq + 1,
                last: seq - 1,
            });
        }
        head.seq = seq - 1;
        let link = head.link_digest(digest);
        // Behind a gap nothing can be said of the first entry but what the signatures say.
        if let Some(hash) = hash.filter(|hash| *hash != link.hash && !gap) {
            self.found(Finding::Changed {
                writer,
                seq,
                id: id(),
            });
            return self.go_on(writer, seq, hash);
        }
        self.go_on(writer, seq, hash.unwrap_or(link.hash));
    }

    /// Goes on from an entry by the hash that it claims, so that each change is found where it is.
    fn go_on(&mut self, writer: Uuid, seq: u64, hash: Hash) {
        let of = self.writer(writer);
        of.head = Some(Head { writer, seq, hash });
        if let Some((_, time)) = of.signed.get(&seq).filter(|(signed, _)| *signed != hash) {
            let time = time.clone();
            self.found(Finding::Rewritten { writer, seq, time });
        }
    }
}

#[cfg(test)]
mod tests;
