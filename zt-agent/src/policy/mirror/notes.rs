// SPDX-License-Identifier: Apache-2.0
//! What the objects do not say.

use std::collections::{BTreeMap, BTreeSet};

use super::Workload;
use super::place::Layout;
use crate::policy::set::PolicySet;

/// Services that a note names one by one.
const NAMED: usize = 2;

/// What objects do not allow though policy does, or the other way round, with the services that it is about.
pub(super) type Lacking = BTreeMap<String, BTreeSet<String>>;

/// One note for each thing, however many services it is about.
pub(super) fn told(lacking: &Lacking) -> impl Iterator<Item = String> {
    lacking.iter().map(|(what, services)| match services.len() {
        0..=NAMED => {
            let services: Vec<&str> = services.iter().map(String::as_str).collect();
            format!("{}: {what}", services.join(", "))
        }
        more => format!("{more} services: {what}"),
    })
}

/// What a pattern matches is known to nobody here.
pub(super) fn without(workload: &Workload) -> Option<String> {
    let pattern = workload.pattern.as_ref()?.as_str();
    Some(format!(
        "{pattern}: whom it matches has an object only where a policy names him outright, or --workload does; \
         in Kubernetes everybody may reach the others"
    ))
}

impl Layout<'_> {
    /// That the cluster's DNS may be among services with objects, though no label says so.
    pub(super) fn names_dns(&self, workloads: &[Workload]) -> Option<String> {
        let (namespace, (key, value)) = self.mapping.dns.as_ref()?;
        let mut there = workloads.iter().filter(|one| {
            let place = one.place.as_ref();
            one.pattern.is_none() && place.is_ok_and(|place| place.namespace.as_ref() == Some(namespace))
        });
        let first = there.next()?;
        let told = |one: &Workload| one.place.as_ref().is_ok_and(|place| self.is_dns(place));
        (!told(first) && !there.any(told)).then(|| {
            format!(
                "no object of the namespace {namespace} has the label {key}={value}: if {} or another service there is the cluster's \
                 DNS, only whom policy names reaches it at port 53 (--label, --dns)",
                first.name()
            )
        })
    }
}

/// What policies say that no `NetworkPolicy` is about.
pub(super) fn beyond(set: &PolicySet) -> Vec<String> {
    let rules = || set.policies().iter().flat_map(|policy| &policy.rules);
    let proof = rules().filter(|rule| rule.to.iter().any(|target| target.require_proof));
    let proof = proof.map(|rule| {
        format!(
            "{}: proof is not required by a NetworkPolicy",
            set.rule_name(rule.number)
        )
    });
    let raw = rules().filter(|rule| rule.raw_sockets);
    let raw = raw.map(|rule| {
        format!(
            "{}: raw sockets are not a NetworkPolicy's matter",
            set.rule_name(rule.number)
        )
    });
    proof.chain(raw).collect()
}
