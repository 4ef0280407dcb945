// SPDX-License-Identifier: Apache-2.0
//! Writers in memory, each with keys of its own.

use uuid::Uuid;

use super::*;
use crate::audit::chain::START;
use crate::audit::record::Kept;
use crate::audit::seal::{Cause, Gap};

/// A writer in memory, with keys in a directory.
pub(super) struct Node {
    directory: TempDir,
    pub keys: Keys,
    pub head: Head,
    /// The hash at each place, that before the first included.
    hashes: Vec<Hash>,
    pub kept: Vec<Kept>,
    pub checkpoints: Vec<Checkpoint>,
    pub gaps: Vec<Gap>,
}

impl Node {
    pub(super) fn new(number: u128) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let keys = Keys::open(directory.path()).expect("makes one");
        let mut node = Self {
            directory,
            keys,
            head: Head::new(Uuid::from_u128(number)),
            hashes: vec![START],
            kept: Vec::new(),
            checkpoints: Vec::new(),
            gaps: Vec::new(),
        };
        node.seal();
        node
    }

    /// Writes entries, and signs where the chain stands.
    pub(super) fn write(&mut self, count: u64) {
        for _ in 0..count {
            let entry = entry(self.head.seq);
            let link = Some(self.head.link(&entry));
            self.hashes.push(self.head.hash);
            self.kept.push(Kept { entry, link });
        }
        self.seal();
    }

    pub(super) fn seal(&mut self) {
        let checkpoint = Checkpoint::sign(self.head, Timestamp(1), (0, START), &self.keys);
        self.checkpoints.push(checkpoint);
    }

    pub(super) fn rotate(&mut self) {
        self.keys = Keys::rotate(self.directory.path()).expect("rotates");
    }

    /// What `keys` would state of some of its entries.
    pub(super) fn gap(&self, first: u64, last: u64, cause: Cause, keys: &Keys) -> Gap {
        let before = (cause != Cause::Pruned).then(|| self.hashes[first as usize - 1]);
        let hashes = (before, self.hashes[last as usize]);
        Gap::sign(self.head.writer, (first, last), hashes, cause, keys)
    }

    /// Some of its entries are not there.
    pub(super) fn remove(&mut self, first: u64, last: u64) {
        self.kept.retain(|kept| !(first..=last).contains(&seq(kept)));
    }

    /// The same, and it says so.
    pub(super) fn lose(&mut self, first: u64, last: u64, cause: Cause) {
        self.remove(first, last);
        self.gaps.push(self.gap(first, last, cause, &self.keys));
    }

    pub(super) fn root(&self) -> String {
        self.keys.records()[0].key.clone()
    }
}

pub(super) fn seq(kept: &Kept) -> u64 {
    kept.link.expect("a link").seq
}

pub(super) fn trust(nodes: &[Node]) -> Trust {
    Trust::from(nodes.iter().map(Node::root).collect::<Vec<_>>())
}

/// The trail of these, and of a maintainer.
pub(super) fn check(trust: Trust, nodes: &[Node], maintainer: Option<&Node>) -> Report {
    let mut verifier = Verifier::new(trust);
    for node in nodes.iter().chain(maintainer) {
        // Newest first: the order is of no account.
        node.keys.records().iter().rev().for_each(|key| verifier.key(key));
    }
    for node in nodes.iter().chain(maintainer) {
        node.checkpoints
            .iter()
            .for_each(|checkpoint| verifier.checkpoint(checkpoint));
        node.gaps.iter().for_each(|gap| verifier.gap(gap));
    }
    for node in nodes {
        node.kept.iter().for_each(|kept| verifier.entry(kept));
    }
    verifier.finish()
}

pub(super) fn three() -> Vec<Node> {
    let mut nodes: Vec<Node> = (1..=3).map(Node::new).collect();
    for node in &mut nodes {
        node.write(20);
        node.rotate();
        node.write(20);
    }
    nodes
}
