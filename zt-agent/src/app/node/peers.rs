// SPDX-License-Identifier: Apache-2.0
//! What the agents of other nodes say, and the keys of handshakes with them, into the kernel's maps.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use zt_common::identity;

use super::numbers::Numbers;
use super::{AppError, Node};
use crate::config::Handshake;
use crate::kernel::KernelError;
use crate::peers::{Recalled, Told};

impl Node {
    /// Begins with what the last agent knew of other nodes, and forgets those that it did not.
    pub(super) fn recall_peers(&mut self, recalled: Recalled) -> Result<(), AppError> {
        let known: HashSet<u32> = recalled.identities.keys().copied().collect();
        // Whoever lived there and is not recalled lives there no longer.
        self.residents_changed.extend(&known);
        let kernel = &mut self.parts.kernel;
        kernel.keep_nodes(&known)?;
        if self.parts.config.handshake == Handshake::Off {
            kernel.forget_all_node_keys()?;
        }
        for (address, located) in recalled.addresses {
            self.elsewhere.locate(located.node, address, Some(located));
        }
        for (node, networks) in recalled.networks {
            self.elsewhere.speaks(node, networks);
        }
        for (node, identities) in recalled.identities {
            self.elsewhere.live(node, identities);
        }
        Ok(())
    }

    /// The agent of another node says something. What is new at addresses is noted in `moved`; whether who lives there is.
    pub(super) fn peer_said(&mut self, told: Told, moved: &mut Vec<IpAddr>) -> bool {
        let kernel = &mut self.parts.kernel;
        let done = match told {
            Told::Changed {
                node,
                addresses,
                identities,
            } => {
                for (address, located) in addresses {
                    self.elsewhere.locate(node, address, located);
                    self.fronting.moved(address);
                    moved.push(address);
                }
                let lives = identities.is_some();
                if let Some(identities) = identities {
                    self.elsewhere.live(node, identities);
                    self.residents_changed.insert(node);
                }
                return lives;
            }
            Told::Verify {
                node,
                epoch,
                key,
                needed,
                done,
            } => kernel.verify_node(node, epoch, key, &needed).map(|()| {
                // The connection may have ended meanwhile.
                let _ = done.send(());
            }),
            Told::Needed { node, needed } => kernel.need_keys(node, &needed),
            Told::Use {
                node,
                epoch,
                key,
                done,
            } => kernel.use_key(node, epoch, key).map(|()| {
                let _ = done.send(());
            }),
            Told::Speaks { node, networks } => {
                for address in self.elsewhere.speaks(node, networks) {
                    self.fronting.moved(address);
                    moved.push(address);
                }
                return false;
            }
            Told::Forget { node } => kernel.forget_node_keys(node),
            Told::Removed { node } => {
                let done = kernel.forget_node_keys(node);
                for address in self.elsewhere.located_on(node) {
                    self.elsewhere.locate(node, address, None);
                    self.fronting.moved(address);
                    moved.push(address);
                }
                for address in self.elsewhere.speaks(node, Vec::new()) {
                    self.fronting.moved(address);
                    moved.push(address);
                }
                self.elsewhere.live(node, Vec::new());
                self.residents_changed.insert(node);
                failed(done);
                return true;
            }
        };
        failed(done);
        false
    }

    /// Says who lives on the nodes where that has changed. Where that fails it has changed still, and is written with what is merged
    /// next.
    pub(super) fn write_residents(&mut self, numbers: &Numbers) {
        let changed = std::mem::take(&mut self.residents_changed);
        let (elsewhere, kernel) = (&self.elsewhere, &mut self.parts.kernel);
        let (left, why) = each(changed, |node| {
            let identities = elsewhere.residents_of(node).iter();
            let identities: HashSet<u64> = identities
                .map(|id| numbers.workload(id))
                .filter(|number| *number != identity::UNKNOWN)
                .collect();
            kernel.set_residents(node, &identities)
        });
        if let Some(error) = why {
            if left != self.residents_left {
                tracing::error!(%error, nodes = left.len(), "who lives on other nodes is not written whole: what they prove may not be believed, and who has gone may be; trying again");
            }
            self.pending.merge = true;
        }
        self.residents_left.clone_from(&left);
        self.residents_changed = left;
    }

    /// The same for all of them: names may have other numbers.
    pub(super) fn write_all_residents(&mut self, numbers: &Numbers) {
        let nodes: Vec<u32> = self.elsewhere.residents().map(|(node, _)| node).collect();
        self.residents_changed.extend(nodes);
        self.write_residents(numbers);
    }
}

/// Writes what there is to write of each node, whatever became of the others: those that failed, and why the first one did.
fn each<E>(nodes: BTreeSet<u32>, mut write: impl FnMut(u32) -> Result<(), E>) -> (BTreeSet<u32>, Option<E>) {
    let mut why = None;
    let is_left = |node: &u32| match write(*node) {
        Ok(()) => false,
        Err(error) => {
            why.get_or_insert(error);
            true
        }
    };
    let left = nodes.into_iter().filter(is_left).collect();
    (left, why)
}

/// The connection comes to its end where it waits for an answer, and is made anew; what stays is refused, not believed.
fn failed(done: Result<(), KernelError>) {
    if let Err(error) = done {
        tracing::error!(%error, "a key of handshakes with another node could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_cannot_be_written_keeps_no_other_one_waiting() {
        let mut written = Vec::new();
        let (left, why) = each(BTreeSet::from([1, 2, 3, 4]), |node| {
            if node % 2 == 0 {
                return Err(node);
            }
            written.push(node);
            Ok(())
        });
        assert_eq!(written, [1, 3]);
        assert_eq!((left, why), (BTreeSet::from([2, 4]), Some(2)));
    }
}
