// SPDX-License-Identifier: Apache-2.0
//! Names, and the ids that stand for them in the file.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::audit::record::Entry;

/// Ids of names by their text.
pub(super) type Names = HashMap<Arc<str>, i64, RandomState>;

/// The ids of the names of an entry; 0 where it has no such name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids([i64; NAMES]);

/// Names of an entry.
const NAMES: usize = 8;

impl Ids {
    /// Source, destination, rule, the nodes of both, and the cluster: what is of an entry's shape.
    pub(super) fn of_shape(&self) -> [i64; 6] {
        let [
            source,
            destination,
            rule,
            source_node,
            destination_node,
            cluster,
            ..,
        ] = self.0;
        [source, destination, rule, source_node, destination_node, cluster]
    }

    pub(super) fn source_pod(&self) -> Option<i64> {
        Some(self.0[6]).filter(|id| *id != 0)
    }

    pub(super) fn destination_pod(&self) -> Option<i64> {
        Some(self.0[7]).filter(|id| *id != 0)
    }
}

/// The names that an entry refers to, each in its place.
pub(super) fn names_of(entry: &Entry) -> [Option<&Arc<str>>; NAMES] {
    match entry {
        Entry::Decision(record) => {
            let (source, destination) = (&record.source, &record.destination);
            [
                source.spiffe_id.as_ref().or(source.entity.as_ref()),
                destination.spiffe_id.as_ref().or(destination.entity.as_ref()),
                record.policy_matched.as_ref(),
                source.node.as_ref(),
                destination.node.as_ref(),
                Some(&record.cluster),
                source.pod.as_ref(),
                destination.pod.as_ref(),
            ]
        }
        Entry::PolicyChange(change) | Entry::ModeChange(change) | Entry::IdentityChange(change) => {
            let (node, cluster) = (Some(&change.node), Some(&change.cluster));
            [None, None, None, node, None, cluster, None, None]
        }
    }
}

/// The ids of the names of each entry. What has none yet is added to `unknown`.
pub(super) fn ids_of<'e>(
    entries: &'e [Entry],
    known: &Names,
    unknown: &mut HashSet<&'e Arc<str>>,
) -> Vec<Ids> {
    // Entries that follow each other share most of their names, and then the very texts.
    let mut last: [Option<(&Arc<str>, i64)>; NAMES] = [None; NAMES];
    let ids = |entry: &'e Entry| {
        for (name, last) in names_of(entry).into_iter().zip(&mut last) {
            if let (Some(name), Some((same, _))) = (name, &last)
                && Arc::ptr_eq(name, same)
            {
                continue;
            }
            *last = name.map(|name| {
                let id = known.get(name).copied().unwrap_or_else(|| {
                    unknown.insert(name);
                    0
                });
                (name, id)
            });
        }
        Ids(last.map(|last| last.map_or(0, |(_, id)| id)))
    };
    entries.iter().map(ids).collect()
}
