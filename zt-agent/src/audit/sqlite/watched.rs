// SPDX-License-Identifier: Apache-2.0
//! What this process knows of a chain, whatever the file says. It gave the last entry its place, so that it can testify
//! where the chain ended: also of entries that were not signed yet when somebody changed them.

use std::path::{Path, PathBuf};

use super::Use;
use crate::audit::chain::Head;

/// What is known of the chain of a file.
#[derive(Debug)]
pub(super) struct Watched {
    /// The file.
    pub(super) path: PathBuf,
    /// What it is for.
    pub(super) used_as: Use,
    /// Whether nobody else may move the chain.
    alone: bool,
    /// Where the chain ended when this process saw or moved it last; `None` before that, and where it is not known what
    /// became of a transaction.
    at: Option<Head>,
    /// Whether it was seen to go on from what was signed, up to there.
    verified: bool,
    /// Whether it was only moved from here since somebody began to look.
    followed: bool,
    /// Where it ended when somebody else moved it, the first time.
    altered: Option<Head>,
}

impl Watched {
    /// The chain ends at a place, as the file says, and nobody else may move it; `None` where others may.
    pub(super) fn new(path: &Path, used_as: Use, at: Option<Head>) -> Self {
        Self {
            path: path.to_owned(),
            used_as,
            alone: at.is_some(),
            at,
            verified: false,
            followed: false,
            altered: None,
        }
    }

    /// A transaction that adds entries behind `before` is about to be committed. Given up half-way, nobody knows what
    /// became of it.
    pub(super) fn leaves(&mut self, before: Head) {
        self.sees(before);
        if self.at.take().is_none() {
            (self.verified, self.followed) = (false, false);
        }
    }

    /// That is committed.
    pub(super) const fn arrives(&mut self, head: Head) {
        self.at = Some(head);
    }

    /// The file says that the chain ends there.
    pub(super) fn sees(&mut self, head: Head) {
        if let Some(at) = self.at.filter(|at| *at != head) {
            (self.verified, self.followed) = (false, false);
            if self.alone {
                self.altered.get_or_insert(at);
            }
            self.at = Some(head);
        }
    }

    /// Where the chain ended when this process saw or moved it last; `None` where that is not known.
    pub(super) const fn at(&self) -> Option<Head> {
        self.at
    }

    /// Where the chain ended when somebody else moved it.
    pub(super) const fn altered(&self) -> Option<Head> {
        self.altered
    }

    /// Whether the chain was seen to go on from what was signed up to there, and was moved only from here since.
    pub(super) fn trusts(&self, head: Head) -> bool {
        self.verified && self.at == Some(head)
    }

    /// What there is to be said of it up to there has been said.
    pub(super) const fn settle(&mut self, head: Head) {
        (self.at, self.verified, self.altered) = (Some(head), true, None);
    }

    /// Whether somebody has looked since the start.
    pub(super) const fn is_verified(&self) -> bool {
        self.verified
    }

    /// Somebody begins to look whether the chain up to there goes on from what was signed; false where it is not needed, or
    /// of no use.
    pub(super) fn begin(&mut self, head: Head) -> bool {
        self.followed = !self.verified && self.at == Some(head);
        self.followed
    }

    /// It does.
    pub(super) const fn end(&mut self) {
        self.verified |= self.followed;
        self.followed = false;
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::audit::chain::Hash;

    fn head(seq: u64) -> Head {
        Head {
            seq,
            hash: Hash([seq as u8; 32]),
            ..Head::new(Uuid::from_u128(7))
        }
    }

    fn at(seq: u64) -> Watched {
        Watched::new(Path::new("/audit.db"), Use::Trail, Some(head(seq)))
    }

    #[test]
    fn who_moves_the_chain_knows_when_somebody_else_did() {
        let mut watched = at(3);
        watched.leaves(head(3));
        watched.arrives(head(5));
        watched.sees(head(5));
        assert_eq!(watched.altered(), None);
        watched.leaves(head(4));
        watched.arrives(head(6));
        watched.leaves(head(9));
        watched.arrives(head(10));
        assert_eq!(watched.altered(), Some(head(5)), "the first time");
        watched.settle(head(10));
        assert!(watched.altered().is_none() && watched.trusts(head(10)));
    }

    #[test]
    fn nothing_is_said_after_a_transaction_of_which_nobody_knows_what_became() {
        let mut watched = at(3);
        watched.settle(head(3));
        watched.leaves(head(3));
        // Given up: it was kept, or was not.
        watched.sees(head(5));
        watched.leaves(head(5));
        watched.arrives(head(6));
        assert!(watched.altered().is_none() && !watched.trusts(head(6)));
    }

    #[test]
    fn who_is_not_alone_does_not_testify() {
        let mut watched = Watched::new(Path::new("/audit.db"), Use::Trail, None);
        watched.settle(head(3));
        assert!(watched.trusts(head(3)));
        watched.sees(head(5));
        assert!(watched.altered().is_none() && !watched.trusts(head(5)));
    }

    #[test]
    fn a_look_counts_where_the_chain_was_moved_from_here_alone_meanwhile() {
        let mut watched = at(3);
        assert!(!watched.begin(head(2)));
        assert!(watched.begin(head(3)));
        watched.leaves(head(3));
        watched.arrives(head(4));
        watched.end();
        assert!(watched.trusts(head(4)) && !watched.begin(head(4)));

        let mut watched = at(3);
        assert!(watched.begin(head(3)));
        watched.leaves(head(2));
        watched.arrives(head(3));
        watched.end();
        assert!(!watched.trusts(head(3)));
    }
}
