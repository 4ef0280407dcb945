// SPDX-License-Identifier: Apache-2.0
//! The places that are taken, by whose they are: whom to clear is found without looking at all of them, and so is how many
//! somebody has. Who fills a listener must not make each further connection cost more.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Seat;

/// Whose places; `None` while hands are shaken.
type Owner = Option<Arc<str>>;

/// The taken places of one listener. Numbers grow: the smallest is the oldest.
#[derive(Default)]
pub(super) struct Taken {
    owners: HashMap<Owner, BTreeMap<u64, Arc<Seat>>>,
    /// Those with most places first, of equals those who have had one longest.
    order: BTreeSet<(Reverse<usize>, u64, Owner)>,
    count: usize,
}

impl Taken {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// How many of them are this caller's.
    pub(super) fn places_of(&self, account: &Arc<str>) -> usize {
        self.owners
            .get(&Some(Arc::clone(account)))
            .map_or(0, BTreeMap::len)
    }

    /// One more, of somebody who is not known yet.
    pub(super) fn insert(&mut self, number: u64, seat: Arc<Seat>) {
        self.add(&None, number, seat);
    }

    /// Says whose it is, once.
    pub(super) fn belongs(&mut self, number: u64, seat: &Arc<Seat>, account: &Arc<str>) {
        // Who was cleared meanwhile has no place that could be anybody's.
        if seat.account.get().is_some() || !self.take_out(&None, number) {
            return;
        }
        let _ = seat.account.set(Arc::clone(account));
        self.add(&Some(Arc::clone(account)), number, Arc::clone(seat));
    }

    /// It is free.
    pub(super) fn remove(&mut self, number: u64, seat: &Seat) {
        self.take_out(&seat.account.get().cloned(), number);
    }

    /// Clears the place of whoever has been idle longest among those who have most places, or else the next most: who
    /// fills a listener drives out themselves. Where nobody is idle, it is the oldest one whose answer is being sent. With
    /// an account, only places of theirs.
    pub(super) fn clear(&mut self, account: Option<&Arc<str>>) -> Option<()> {
        let (number, owner) = self.first(account, false).or_else(|| self.first(account, true))?;
        let seat = self.owners.get(&owner)?.get(&number).cloned();
        self.take_out(&owner, number);
        if let Some(seat) = seat {
            seat.evicted.notify_one();
        }
        Some(())
    }

    /// The first that may go: idle, or with an answer on its way.
    fn first(&self, account: Option<&Arc<str>>, answering: bool) -> Option<(u64, Owner)> {
        let free = |owner: &Owner| {
            let mut seats = self.owners.get(owner)?.iter();
            let free = seats.find(|(_, seat)| !seat.has_requests() && seat.has_answers() == answering);
            free.map(|(number, _)| *number)
        };
        if let Some(account) = account {
            let owner = Some(Arc::clone(account));
            return free(&owner).map(|number| (number, owner));
        }
        let mut best: Option<(Reverse<usize>, u64, &Owner)> = None;
        for (places, oldest, owner) in &self.order {
            // Nobody after this has more places, and of as many nobody an older one.
            if best.is_some_and(|(most, number, _)| (most, number) < (*places, *oldest)) {
                break;
            }
            if let Some(number) = free(owner)
                && best.is_none_or(|(most, other, _)| (*places, number) < (most, other))
            {
                best = Some((*places, number, owner));
            }
        }
        best.map(|(_, number, owner)| (number, owner.clone()))
    }

    fn add(&mut self, owner: &Owner, number: u64, seat: Arc<Seat>) {
        self.reorder(owner, |seats| seats.insert(number, seat).is_none());
    }

    /// Whether it was there.
    fn take_out(&mut self, owner: &Owner, number: u64) -> bool {
        self.reorder(owner, |seats| seats.remove(&number).is_some())
    }

    /// Changes what one has, and their place in the order.
    fn reorder(&mut self, owner: &Owner, change: impl FnOnce(&mut BTreeMap<u64, Arc<Seat>>) -> bool) -> bool {
        let place = |seats: &BTreeMap<u64, Arc<Seat>>| {
            let oldest = seats.first_key_value().map(|(number, _)| *number);
            oldest.map(|oldest| (Reverse(seats.len()), oldest, owner.clone()))
        };
        let seats = self.owners.entry(owner.clone()).or_default();
        let (before, had) = (place(seats), seats.len());
        let changed = change(seats);
        let (after, has) = (place(seats), seats.len());
        if has == 0 {
            self.owners.remove(owner);
        }
        self.count = self.count + has - had;
        if let Some(before) = before {
            self.order.remove(&before);
        }
        self.order.extend(after);
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;

    /// Whom the rule names, found by looking at all.
    fn by_looking_at_all(all: &BTreeMap<u64, Arc<Seat>>, account: Option<&Arc<str>>) -> Option<u64> {
        let mut places: HashMap<Option<&Arc<str>>, usize> = HashMap::new();
        for seat in all.values() {
            *places.entry(seat.account.get()).or_default() += 1;
        }
        let of = |seat: &Seat| account.is_none() || seat.account.get() == account;
        let free = all.iter().filter(|(_, seat)| of(seat) && !seat.has_requests());
        let first = free.min_by_key(|(number, seat)| {
            let most = places.get(&seat.account.get()).copied().unwrap_or(0);
            (seat.has_answers(), Reverse(most), **number)
        });
        first.map(|(number, _)| *number)
    }

    proptest! {
        #[test]
        fn the_one_that_goes_is_the_one_that_the_rule_names(
            steps in prop::collection::vec((0..8_u8, 0..6_usize, 0..1000_usize), 0..200)
        ) {
            let accounts: Vec<Arc<str>> = (0..6).map(|number| Arc::from(format!("a{number}"))).collect();
            let (mut taken, mut all) = (Taken::default(), BTreeMap::<u64, Arc<Seat>>::new());
            let mut next = 0;
            for (step, account, which) in steps {
                let account = &accounts[account];
                let chosen = all.iter().nth(which % all.len().max(1)).map(|(n, seat)| (*n, Arc::clone(seat)));
                match (step, chosen) {
                    (0..=2, _) | (_, None) => {
                        let seat = Arc::<Seat>::default();
                        taken.insert(next, Arc::clone(&seat));
                        all.insert(next, seat);
                        next += 1;
                    }
                    (3, Some((number, seat))) => taken.belongs(number, &seat, account),
                    (4, Some((_, seat))) => seat.requests.store(u32::from(which % 2 == 0), Ordering::Relaxed),
                    (5, Some((_, seat))) => seat.answers.store(u32::from(which % 2 == 0), Ordering::Relaxed),
                    (6, Some((number, seat))) => {
                        taken.remove(number, &seat);
                        all.remove(&number);
                    }
                    (_, Some(_)) => {
                        let only = (which % 3 == 0).then_some(account);
                        let named = by_looking_at_all(&all, only);
                        prop_assert_eq!(taken.first(only, false).or_else(|| taken.first(only, true)).map(|found| found.0), named);
                        prop_assert_eq!(taken.clear(only).is_some(), named.is_some());
                        named.map(|number| all.remove(&number));
                    }
                }
                prop_assert_eq!(taken.len(), all.len());
                for account in &accounts {
                    let theirs = all.values().filter(|seat| seat.account.get() == Some(account)).count();
                    prop_assert_eq!(taken.places_of(account), theirs);
                }
                prop_assert_eq!(taken.order.len(), taken.owners.len());
            }
        }
    }
}
