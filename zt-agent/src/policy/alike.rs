// SPDX-License-Identifier: Apache-2.0
//! Names with one number, which the kernel could not tell apart.
//!
//! Whoever may name service accounts and pods as he likes can make two such names. He must gain nothing by it, and cost
//! nobody else anything: such a name is nobody. One that a policy writes keeps its number, as that is what the policy is
//! about; two that policies write are an error of the policy.

use std::collections::{BTreeMap, BTreeSet};

use crate::spiffe_id::SpiffeId;

/// Names that are nobody, each with the other one that has its number.
pub type Alike = BTreeMap<SpiffeId, SpiffeId>;

/// All names that can be told apart, sorted by text, and those that cannot. `written` are those that policies write.
pub(super) fn told_apart(
    written: &BTreeSet<SpiffeId>,
    known: [&BTreeSet<SpiffeId>; 2],
) -> (Vec<SpiffeId>, Alike) {
    let all: BTreeSet<&SpiffeId> = known.into_iter().flatten().chain(written).collect();
    let mut all: Vec<SpiffeId> = all.into_iter().cloned().collect();
    let mut numbers: Vec<u64> = all.iter().map(SpiffeId::number).collect();
    numbers.sort_unstable();
    let twice: BTreeSet<u64> = numbers
        .windows(2)
        .filter_map(|pair| match pair {
            [one, other] if one == other => Some(*one),
            _ => None,
        })
        .collect();
    let mut alike = Alike::new();
    for number in twice {
        let same: Vec<&SpiffeId> = all.iter().filter(|id| id.number() == number).collect();
        let keeps = same.iter().copied().find(|id| written.contains(*id));
        for id in same.iter().copied().filter(|id| Some(*id) != keeps) {
            let other = keeps.or_else(|| same.iter().copied().find(|other| *other != id));
            alike.extend(other.map(|other| (id.clone(), other.clone())));
        }
    }
    if !alike.is_empty() {
        all.retain(|id| !alike.contains_key(id));
    }
    (all, alike)
}
