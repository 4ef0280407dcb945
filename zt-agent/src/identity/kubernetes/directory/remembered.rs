// SPDX-License-Identifier: Apache-2.0
//! What is kept for the next start, and taken up by it.

use std::sync::Arc;

use super::{Directory, MOST_EACH};
use crate::identity::kubernetes::known::{Known, Part};
use crate::identity::kubernetes::naming::is_name;
use crate::identity::kubernetes::paths::is_uid;

impl Directory {
    /// All pods, for the next start.
    pub fn remembered(&self) -> impl Iterator<Item = (Part, &Arc<str>, &Known)> {
        let here = self.here.iter().map(|(name, known)| (Part::Here, name, known));
        let elsewhere = self.elsewhere.iter();
        here.chain(elsewhere.map(|(name, known)| (Part::Elsewhere, name, known)))
    }

    /// How pods are named, with what is the same for all filled in: what is remembered holds as long as this does.
    pub fn naming(&self) -> &str {
        self.naming.text()
    }

    /// Takes up a pod that was remembered.
    pub fn recall(&mut self, part: Part, name: Arc<str>, known: Known) {
        let believable = is_uid(&known.uid)
            && is_uid(&known.cgroup_uid)
            && name
                .split_once('/')
                .is_some_and(|(namespace, name)| is_name(namespace) && is_name(name))
            && known.addresses.len() + known.host_addresses.len() <= 2 * MOST_EACH;
        if believable && self.has_room(part, &name, &known.node, known.is_over) {
            let node = if part == Part::Here {
                self.pods_known();
                Arc::from(self.node.as_str())
            } else {
                self.shares.name(&known.node)
            };
            let cgroup_uid = if known.cgroup_uid == known.uid {
                Arc::clone(&known.uid)
            } else {
                known.cgroup_uid
            };
            let known = Known {
                node,
                cgroup_uid,
                ..known
            };
            self.replace(part, name, known);
        }
    }
}
