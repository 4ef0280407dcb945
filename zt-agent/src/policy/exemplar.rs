// SPDX-License-Identifier: Apache-2.0
//! Identities that stand for patterns, where policy is asked about without the workloads of a cluster.
//!
//! A table has a pattern written out for identities that are known. Of files alone, those are the identities that policies name
//! outright, and a pattern may match none of them. So each pattern is given one identity that nothing else names, and each
//! two patterns that can match the same identity one that both match.

use std::collections::{BTreeMap, BTreeSet};

use super::endpoint::Endpoint;
use super::set::PolicySet;
use crate::spiffe_id::{Pattern, SpiffeId};

/// What stands in the place of `*`. No name of Kubernetes has a capital letter.
const ANYTHING: &str = "ANY";

/// Identities that stand for patterns, with the pattern each stands for.
pub type Exemplars = BTreeMap<SpiffeId, String>;

/// One identity for each pattern of these policies, and for what two of them share.
pub fn exemplars<'p>(sets: impl IntoIterator<Item = &'p PolicySet>) -> Exemplars {
    let mut texts: BTreeSet<&str> = BTreeSet::new();
    let rules = sets
        .into_iter()
        .flat_map(PolicySet::policies)
        .flat_map(|policy| &policy.rules);
    for rule in rules {
        let targets = rule.to.iter().map(|target| &target.endpoint);
        for endpoint in std::iter::once(&rule.from).chain(targets) {
            if let Endpoint::Spiffe(Pattern::Segments(pattern)) = endpoint {
                texts.insert(pattern.as_str());
            }
        }
    }
    let patterns: Vec<&str> = texts.into_iter().collect();
    let mut all: BTreeSet<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
    for (index, one) in patterns.iter().enumerate() {
        all.extend(
            patterns
                .iter()
                .skip(index + 1)
                .filter_map(|other| shared(one, other)),
        );
    }
    let stands_for = |text: String| {
        let id = text
            .split('/')
            .map(|segment| if segment == "*" { ANYTHING } else { segment })
            .collect::<Vec<_>>()
            .join("/");
        Some((SpiffeId::parse(&id).ok()?, text))
    };
    all.into_iter().filter_map(stands_for).collect()
}

/// The pattern, or the one identity, that both match.
fn shared(one: &str, other: &str) -> Option<String> {
    let (ours, theirs): (Vec<&str>, Vec<&str>) = (one.split('/').collect(), other.split('/').collect());
    if ours.len() != theirs.len() {
        return None;
    }
    let both = ours.iter().zip(&theirs).map(|(our, their)| match (*our, *their) {
        ("*", segment) | (segment, "*") => Some(segment),
        (our, their) => (our == their).then_some(our),
    });
    both.collect::<Option<Vec<_>>>().map(|both| both.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_share_what_both_match() {
        assert_eq!(
            shared("spiffe://d/x/*", "spiffe://d/*/a").as_deref(),
            Some("spiffe://d/x/a")
        );
        assert_eq!(shared("spiffe://d/x/*", "spiffe://d/y/*"), None);
        assert_eq!(shared("spiffe://d/x/*", "spiffe://d/*"), None);
        assert_eq!(
            shared("spiffe://d/x/*/*", "spiffe://d/*/a/*").as_deref(),
            Some("spiffe://d/x/a/*")
        );
    }
}
