// SPDX-License-Identifier: Apache-2.0
//! When policies came into force in this run of the agent, as far as it saw that: also what is not in the trail yet, and what was
//! recorded before it was in force.

use std::collections::BTreeMap;

use crate::audit::record::Timestamp;
use crate::policy::{AnyPolicy, PolicySet};

/// The moments.
#[derive(Clone, Debug, Default)]
pub(in crate::api) struct Noted {
    /// When this run had a policy in force first.
    begun: Option<Timestamp>,
    /// When it was found that any policy may have been changed, and not which.
    any: Option<Timestamp>,
    /// When each that has come into force since did.
    policies: BTreeMap<String, Timestamp>,
}

impl Noted {
    /// When this run had a policy in force first; `None` before that.
    pub(in crate::api) const fn begun(&self) -> Option<Timestamp> {
        self.begun
    }

    /// When a policy came to be what it is; `None` where it was so when this run began.
    pub(in crate::api) fn of(&self, policy: &str) -> Option<Timestamp> {
        self.policies.get(policy).copied().max(self.any)
    }

    /// A policy is in force from now on.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.begun.get_or_insert(now);
    }

    /// Any policy may be another from now on.
    pub(super) fn any_changed(&mut self, now: Timestamp) {
        self.any = Some(now);
    }

    /// `after` took the place of `before`.
    pub(super) fn changed(&mut self, before: &PolicySet, after: &PolicySet, now: Timestamp) {
        for policy in after.all() {
            let was = before.get(policy.name()).map(AnyPolicy::digest);
            if was != Some(policy.digest()) {
                self.policies.insert(policy.name().to_owned(), now);
            }
        }
        self.policies.retain(|name, _| after.get(name).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sample::of_ports;

    #[test]
    fn each_policy_has_the_moment_of_its_own_last_change() {
        let mut noted = Noted::default();
        let of = |noted: &Noted, name: &str| noted.of(name).map(|time| time.0);
        noted.begin(Timestamp(1));
        let first = of_ports(&[("a", 1), ("b", 1)]);
        assert_eq!((of(&noted, "a"), noted.begun()), (None, Some(Timestamp(1))));
        let second = of_ports(&[("a", 2), ("b", 1), ("c", 1)]);
        noted.changed(&first, &second, Timestamp(2));
        let seen = ["a", "b", "c"].map(|name| of(&noted, name));
        assert_eq!(seen, [Some(2), None, Some(2)]);
        let third = of_ports(&[("a", 2), ("b", 3)]);
        noted.changed(&second, &third, Timestamp(3));
        let seen = ["a", "b", "c"].map(|name| of(&noted, name));
        assert_eq!(seen, [Some(2), Some(3), None]);
        noted.any_changed(Timestamp(4));
        noted.begin(Timestamp(5));
        assert_eq!((of(&noted, "a"), of(&noted, "c")), (Some(4), Some(4)));
        noted.changed(&third, &first, Timestamp(6));
        assert_eq!((of(&noted, "a"), noted.begun()), (Some(6), Some(Timestamp(1))));
    }
}
