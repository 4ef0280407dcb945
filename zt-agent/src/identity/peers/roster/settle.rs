// SPDX-License-Identifier: Apache-2.0
//! Whose an address is that several nodes claim. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Dispute, Rank, Speaker};

/// Finds what more than one claims, and says so to each of them who has the worse claim, or none better than the other's.
pub(super) fn settle(
    mut claims: Vec<(IpNet, Rank, Arc<str>)>,
    speakers: &mut BTreeMap<Arc<str>, Speaker>,
) -> Vec<Dispute> {
    // In this order a network comes after all that it lies in.
    claims.sort_by(|(one, ..), (other, ..)| {
        (one.network(), one.prefix_len()).cmp(&(other.network(), other.prefix_len()))
    });
    let mut found: BTreeMap<IpNet, BTreeMap<Arc<str>, Rank>> = BTreeMap::new();
    let mut around: Vec<&(IpNet, Rank, Arc<str>)> = Vec::new();
    for claim in &claims {
        let (net, rank, name) = claim;
        while around.last().is_some_and(|(outer, ..)| !outer.contains(net)) {
            around.pop();
        }
        let others = around.iter().filter(|(_, _, other)| other != name);
        for (_, other_rank, other) in others {
            let claimants = found.entry(*net).or_default();
            for (claimant, rank) in [(name, rank), (other, other_rank)] {
                let best = claimants.entry(Arc::clone(claimant)).or_insert(*rank);
                *best = (*best).max(*rank);
            }
        }
        around.push(claim);
    }
    let mut disputes = Vec::new();
    for (net, claimants) in found {
        let Some(best) = claimants.values().max().copied() else {
            continue;
        };
        let mut with_best = claimants.iter().filter(|(_, rank)| **rank == best);
        let (first, second) = (with_best.next(), with_best.next());
        let owner = first
            .filter(|_| second.is_none())
            .map(|(name, _)| Arc::clone(name));
        for (name, rank) in &claimants {
            let Some(speaker) = speakers.get_mut(name).filter(|_| owner.as_ref() != Some(name)) else {
                continue;
            };
            let list = if *rank < best {
                &mut speaker.without
            } else {
                &mut speaker.disputed
            };
            list.push(net);
        }
        let claimants = claimants.into_keys();
        disputes.push(Dispute {
            net,
            claimants: claimants.filter(|name| owner.as_ref() != Some(name)).collect(),
            owner,
        });
    }
    disputes
}

/// What is left of a network without these.
pub(super) fn minus(net: IpNet, without: &[IpNet]) -> Vec<IpNet> {
    if without.iter().any(|hole| hole.contains(&net)) {
        return Vec::new();
    }
    let inside: Vec<IpNet> = without
        .iter()
        .copied()
        .filter(|hole| net.contains(hole))
        .collect();
    if inside.is_empty() {
        return vec![net];
    }
    let Ok(halves) = net.subnets(net.prefix_len() + 1) else {
        return Vec::new();
    };
    halves.flat_map(|half| minus(half, &inside)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_network_is_all_but_what_was_taken_out() {
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().expect("literal")).collect()
        };
        for (net, without, left) in [
            ("10.1.0.0/24", &[][..], &["10.1.0.0/24"][..]),
            ("10.1.0.0/24", &["10.2.0.0/16"], &["10.1.0.0/24"]),
            ("10.1.0.0/24", &["10.1.0.128/25"], &["10.1.0.0/25"]),
            ("10.1.0.0/24", &["10.0.0.0/8"], &[]),
            ("10.1.0.7/32", &["10.1.0.7/32"], &[]),
            (
                "10.1.0.0/30",
                &["10.1.0.1/32", "10.1.0.2/32"],
                &["10.1.0.0/32", "10.1.0.3/32"],
            ),
        ] {
            let found = minus(net.parse().expect("literal"), &nets(without));
            assert_eq!(found, nets(left), "{net} without {without:?}");
        }
        let all = minus("fd00::/64".parse().expect("literal"), &nets(&["fd00::5/128"]));
        assert_eq!(all.len(), 64);
    }
}
