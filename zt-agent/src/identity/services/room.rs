// SPDX-License-Identifier: Apache-2.0
//! How much is kept of what the API says of Services. Whoever may write in one namespace must neither use up the memory of
//! every node, nor the room of the other namespaces, nor hide a backend by writing more than is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::ObjectName;

/// One namespace has at most this part of each.
const SHARE: usize = 4;
/// Slices without room that are told apart. A namespace that has more of them is without room until all are listed again.
const MOST_WITHOUT: usize = 262_144;

/// Services, `EndpointSlice`s and endpoints: how many there are, or may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Services.
    pub services: usize,
    /// `EndpointSlice`s.
    pub slices: usize,
    /// Endpoints in them.
    pub endpoints: usize,
}

impl Amount {
    const NONE: Self = Self {
        services: 0,
        slices: 0,
        endpoints: 0,
    };
    /// All that a node keeps.
    pub const MOST: Self = Self {
        services: 65_536,
        slices: 65_536,
        endpoints: 262_144,
    };

    fn map2(self, other: Self, of: impl Fn(usize, usize) -> usize) -> Self {
        Self {
            services: of(self.services, other.services),
            slices: of(self.slices, other.slices),
            endpoints: of(self.endpoints, other.endpoints),
        }
    }

    /// Whether this and `more` are within `most`.
    fn fits(self, more: Self, most: Self) -> bool {
        let sum = self.map2(more, usize::saturating_add);
        sum.services <= most.services && sum.slices <= most.slices && sum.endpoints <= most.endpoints
    }
}

/// What is kept, and what there was no room for.
#[derive(Debug)]
pub(super) struct Room {
    most: Amount,
    all: Amount,
    of_namespace: HashMap<Arc<str>, Amount>,
    /// Slices without room, by namespace and name; an empty set is more than are told apart.
    without: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    told_apart: usize,
    refused: u64,
}

impl Default for Room {
    fn default() -> Self {
        Self::of(Amount::MOST)
    }
}

impl Room {
    pub(super) fn of(most: Amount) -> Self {
        Self {
            most,
            all: Amount::NONE,
            of_namespace: HashMap::new(),
            without: BTreeMap::new(),
            told_apart: 0,
            refused: 0,
        }
    }

    /// Takes room for a Service, if there is some.
    pub(super) fn take_service(&mut self, namespace: &Arc<str>) -> bool {
        self.take(
            namespace,
            Amount {
                services: 1,
                ..Amount::NONE
            },
        )
    }

    /// Takes room for a slice with so many endpoints, if there is some.
    pub(super) fn take_slice(&mut self, namespace: &Arc<str>, endpoints: usize) -> bool {
        self.take(namespace, slice(endpoints))
    }

    /// A Service is gone.
    pub(super) fn give_service(&mut self, namespace: &Arc<str>) {
        let services = 1;
        self.give(
            namespace,
            Amount {
                services,
                ..Amount::NONE
            },
        );
    }

    /// A slice with so many endpoints is gone.
    pub(super) fn give_slice(&mut self, namespace: &Arc<str>, endpoints: usize) {
        self.give(namespace, slice(endpoints));
    }

    fn take(&mut self, namespace: &Arc<str>, amount: Amount) -> bool {
        let of_one = self.most.map2(self.most, |most, _| most.div_ceil(SHARE));
        let here = self.of_namespace.get(namespace).copied().unwrap_or(Amount::NONE);
        if !self.all.fits(amount, self.most) || !here.fits(amount, of_one) {
            self.refused += 1;
            return false;
        }
        self.all = self.all.map2(amount, usize::saturating_add);
        self.of_namespace
            .insert(Arc::clone(namespace), here.map2(amount, usize::saturating_add));
        true
    }

    fn give(&mut self, namespace: &Arc<str>, amount: Amount) {
        self.all = self.all.map2(amount, usize::saturating_sub);
        if let Some(here) = self.of_namespace.get_mut(namespace) {
            *here = here.map2(amount, usize::saturating_sub);
            if *here == Amount::NONE {
                self.of_namespace.remove(namespace);
            }
        }
    }

    /// A slice has no room. Whether its namespace had all it needs before.
    pub(super) fn is_without(&mut self, slice: &ObjectName) -> bool {
        let (namespace, name) = slice;
        let had_all = !self.without.contains_key(namespace);
        let full = self.told_apart >= MOST_WITHOUT;
        let names = self.without.entry(Arc::clone(namespace)).or_default();
        if !had_all && names.is_empty() {
            return false;
        }
        if full {
            self.told_apart -= names.len();
            names.clear();
        } else if names.insert(Arc::clone(name)) {
            self.told_apart += 1;
        }
        had_all
    }

    /// A slice is gone, or has room now. Whether its namespace has all it needs by that.
    pub(super) fn is_within(&mut self, slice: &ObjectName) -> bool {
        let (namespace, name) = slice;
        let Some(names) = self.without.get_mut(namespace) else {
            return false;
        };
        if !names.remove(name) {
            return false;
        }
        self.told_apart -= 1;
        let whole = names.is_empty();
        if whole {
            self.without.remove(namespace);
        }
        whole
    }

    /// All slices are going to be listed: what had no room is among them. The namespaces that were concerned.
    pub(super) fn listed_anew(&mut self) -> Vec<Arc<str>> {
        self.told_apart = 0;
        std::mem::take(&mut self.without).into_keys().collect()
    }

    /// Whether a namespace has slices that are not kept.
    pub(super) fn lacks(&self, namespace: &Arc<str>) -> bool {
        self.without.contains_key(namespace)
    }

    /// How often there was no room, so far.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }
}

fn slice(endpoints: usize) -> Amount {
    Amount {
        slices: 1,
        endpoints,
        ..Amount::NONE
    }
}
