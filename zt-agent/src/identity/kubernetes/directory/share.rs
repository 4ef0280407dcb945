// SPDX-License-Identifier: Apache-2.0
//! How much room the pods of each node take. Each has a share: whoever has taken one kubelet over takes nobody else's room.

use std::collections::HashMap;
use std::sync::Arc;

use crate::identity::kubernetes::known::Known;

/// Pods of one other node that are known at most, of those that have not ended. A kubelet runs some hundreds.
pub(super) const MOST_PODS: usize = 1024;
/// Pods of one other node that have ended and are remembered: only that what was said before about them is not believed.
pub(super) const MOST_OVER: usize = 4096;
/// Addresses that the pods of one other node have at most, those of the node included as often as they are said.
pub(super) const MOST_ADDRESSES: usize = 4096;

/// What the pods of one node take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) pods: usize,
    pub(super) over: usize,
    pub(super) addresses: usize,
}

impl Share {
    fn of(known: &Known) -> Self {
        Self {
            pods: usize::from(!known.is_over),
            over: usize::from(known.is_over),
            addresses: known.addresses.len() + known.host_addresses.len(),
        }
    }
}

/// What the pods of all other nodes take, by node.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<Arc<str>, Share>);

impl Shares {
    /// A node's name, which all its pods share.
    pub(super) fn name(&self, node: &str) -> Arc<str> {
        let known = self.0.get_key_value(node);
        known.map_or_else(|| Arc::from(node), |(name, _)| Arc::clone(name))
    }

    /// What the pods of a node take; without `but`, if that is one of them.
    pub(super) fn of(&self, node: &str, but: Option<&Known>) -> Share {
        let share = self.0.get(node).copied().unwrap_or_default();
        let but = but
            .filter(|known| *known.node == *node)
            .map(Share::of)
            .unwrap_or_default();
        Share {
            pods: share.pods.saturating_sub(but.pods),
            over: share.over.saturating_sub(but.over),
            addresses: share.addresses.saturating_sub(but.addresses),
        }
    }

    /// There is one more.
    pub(super) fn add(&mut self, known: &Known) {
        let (share, its) = (
            self.0.entry(Arc::clone(&known.node)).or_default(),
            Share::of(known),
        );
        share.pods += its.pods;
        share.over += its.over;
        share.addresses += its.addresses;
    }

    /// There is one fewer.
    pub(super) fn remove(&mut self, known: &Known) {
        let rest = self.of(&known.node, Some(known));
        if rest == Share::default() {
            self.0.remove(&known.node);
        } else {
            self.0.insert(Arc::clone(&known.node), rest);
        }
    }
}
