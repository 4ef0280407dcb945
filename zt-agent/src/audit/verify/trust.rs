// SPDX-License-Identifier: Apache-2.0
//! Whom a verifier trusts, and the keys that follow from it.
//!
//! Each node has a chain of keys of its own: the first is trusted by its id, each of the others is signed by one before
//! it. Together they are a forest. What a key says counts as what the first key of its chain says, its *root*.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::Finding;
use super::report::Report;
use crate::audit::seal::keys::ALGORITHM;
use crate::audit::seal::{KeyRecord, Signature};

/// Whom a verifier trusts.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Ids of first keys.
    pub roots: BTreeSet<String>,
    /// Those of them that may state for any writer that entries were pruned.
    pub maintainers: BTreeSet<String>,
    /// Whose writer is whose. The first that signs for any other writer has it.
    pub writers: BTreeMap<Uuid, String>,
    /// Writers that must be in the trail.
    pub expected: BTreeSet<Uuid>,
}

impl From<Vec<String>> for Trust {
    fn from(roots: Vec<String>) -> Self {
        Self {
            roots: roots.into_iter().collect(),
            ..Self::default()
        }
    }
}

/// The keys of all.
#[derive(Debug, Default)]
pub(super) struct Forest {
    /// Each key that leads to a root, by its id, and that root's id.
    known: BTreeMap<String, (KeyRecord, String)>,
    /// Keys whose signer is not known yet.
    waiting: Vec<KeyRecord>,
    /// Some of those may have their signer by now.
    grows: bool,
}

impl Forest {
    pub(super) fn add(&mut self, key: &KeyRecord) {
        self.waiting.push(key.clone());
        self.grows = true;
    }

    /// Takes the keys in that lead to a root, in whatever order they came.
    pub(super) fn grow(&mut self, trust: &Trust, report: &mut Report) {
        while self.grows {
            self.grows = false;
            for key in std::mem::take(&mut self.waiting) {
                match self.root_of(&key, trust) {
                    Some(root) => self.take(key, root, report),
                    None => self.waiting.push(key),
                }
            }
        }
    }

    fn take(&mut self, key: KeyRecord, root: String, report: &mut Report) {
        match self.known.get(&key.key) {
            None => {
                self.known.insert(key.key.clone(), (key, root));
                self.grows = true;
            }
            Some((_, owner)) if *owner != root => report.found(Finding::SharedKey {
                key: key.key,
                owner: owner.clone(),
                other: root,
            }),
            // The same key, told twice.
            Some(_) => {}
        }
    }

    fn root_of(&self, key: &KeyRecord, trust: &Trust) -> Option<String> {
        if trust.roots.contains(&key.key) && key.is_signed_by(&[]) {
            return Some(key.key.clone());
        }
        let signer = |signature: &Signature| {
            let (signer, root) = self.known.get(&signature.key)?;
            key.is_signed_by(std::slice::from_ref(signer))
                .then(|| root.clone())
        };
        key.signatures.iter().find_map(signer)
    }

    /// The root of the one who signed. Of the algorithm that we know every signature must hold, and all of them be of
    /// one root; others may stand beside them.
    pub(super) fn signer(&self, bytes: &[u8], signatures: &[Signature]) -> Option<&str> {
        let mut signer = None;
        for signature in signatures {
            if signature.algorithm != ALGORITHM {
                continue;
            }
            let (key, root) = self.known.get(&signature.key)?;
            let holds = key.has_signed(bytes, std::slice::from_ref(signature));
            if !holds || signer.is_some_and(|other| other != root) {
                return None;
            }
            signer = Some(root.as_str());
        }
        signer
    }

    /// The keys that lead to no root.
    pub(super) fn strangers(&self) -> impl Iterator<Item = &str> {
        self.waiting.iter().map(|key| key.key.as_str())
    }
}
