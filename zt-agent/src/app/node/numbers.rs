// SPDX-License-Identifier: Apache-2.0
//! By which numbers the kernel is told of names. While one table takes the place of another, a name that is nobody by either
//! is nobody: it is never taken for the other name that has its number.

use std::collections::HashSet;
use std::sync::Arc;

use zt_common::identity;

use crate::policy::{AllowTable, Party};
use crate::spiffe_id::SpiffeId;
use crate::state::Front;

/// The numbers that all of these tables agree about. Without any, nobody has one.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    tables: Vec<Arc<AllowTable>>,
    /// Names that there are no rules for yet: they are nobody.
    without: HashSet<SpiffeId>,
}

impl Numbers {
    /// Those of a table.
    pub(super) fn of(table: Option<&Arc<AllowTable>>) -> Self {
        Self {
            tables: table.into_iter().cloned().collect(),
            without: HashSet::new(),
        }
    }

    /// The same, without these names.
    pub(super) fn without(self, names: &HashSet<SpiffeId>) -> Self {
        Self {
            without: names.clone(),
            ..self
        }
    }

    /// Those that hold before, while and after `next` takes the place of `now`; `None` where they are the same.
    pub(super) fn between(now: &Arc<AllowTable>, next: &Arc<AllowTable>) -> Option<Self> {
        let same = now.alike() == next.alike() && now.undecided() == next.undecided();
        (!same).then(|| Self {
            tables: vec![Arc::clone(now), Arc::clone(next)],
            without: HashSet::new(),
        })
    }

    /// The number of a workload.
    pub(super) fn workload(&self, id: &SpiffeId) -> u64 {
        if self.without.contains(id) {
            return identity::UNKNOWN;
        }
        self.agreed(|table| table.number(Party::Spiffe(id)))
    }

    /// The number of whoever is behind a virtual address.
    pub(super) fn behind(&self, front: &Front) -> u64 {
        self.agreed(|table| front.number_in(table))
    }

    fn agreed(&self, number: impl Fn(&AllowTable) -> u64) -> u64 {
        let mut numbers = self.tables.iter().map(|table| number(table));
        let first = numbers.next();
        first
            .filter(|first| numbers.all(|other| other == *first))
            .unwrap_or(identity::UNKNOWN)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::policy::{PolicySet, Settings, compile};

    fn table(ids: &[&SpiffeId]) -> Arc<AllowTable> {
        let ids: BTreeSet<SpiffeId> = ids.iter().copied().cloned().collect();
        Arc::new(compile(&PolicySet::default(), &ids, &Settings::default(), 1).expect("it fits"))
    }

    #[test]
    fn who_is_nobody_before_or_after_is_nobody_between() {
        let [one, other] =
            ["a", "b"].map(|name| SpiffeId::numbered(&format!("spiffe://hanzo.ai/{name}"), 1 << 40));
        let web = SpiffeId::parse("spiffe://hanzo.ai/web").expect("literal");
        let (alone, both) = (table(&[&one, &web]), table(&[&one, &other, &web]));
        assert!(Numbers::between(&alone, &alone).is_none());
        for between in [(&alone, &both), (&both, &alone)] {
            let numbers = Numbers::between(between.0, between.1).expect("they differ");
            assert_eq!(numbers.workload(&one), identity::UNKNOWN);
            assert_eq!(numbers.workload(&web), web.number());
        }
        assert_eq!(Numbers::of(Some(&alone)).workload(&one), one.number());
        let without = Numbers::of(Some(&alone)).without(&HashSet::from([web.clone()]));
        assert_eq!(
            without.workload(&web),
            identity::UNKNOWN,
            "there are no rules for it"
        );
        assert_eq!(without.workload(&one), one.number());
        assert_eq!(Numbers::of(None).workload(&web), identity::UNKNOWN);
    }
}
