// SPDX-License-Identifier: Apache-2.0
//! The addresses of ends that have no name of their own: how many, and the first of them.

use std::net::IpAddr;

/// Most addresses that are told one by one.
pub const MAX_TOLD: usize = 16;

/// Different addresses; of most connections there are none, and nothing is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(Option<Box<All>>);

/// One at least.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct All {
    /// The first of them, in order, at most [`MAX_TOLD`].
    told: Vec<IpAddr>,
    /// How many more there are.
    more: u64,
}

impl Addresses {
    /// The first of them, in order, at most [`MAX_TOLD`].
    pub fn told(&self) -> &[IpAddr] {
        self.0.as_ref().map_or(&[], |all| all.told.as_slice())
    }

    /// The first one.
    pub fn first(&self) -> Option<IpAddr> {
        self.told().first().copied()
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.untold().saturating_add(self.told().len() as u64)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.told().is_empty()
    }

    /// Takes one in that may be there already. Gives back the one that is not told for it, to be counted if it never was: one
    /// that was given back is behind all that are told from then on, and will not be among them.
    pub(super) fn take(&mut self, address: IpAddr) -> Option<IpAddr> {
        let told = &mut self.0.get_or_insert_default().told;
        let Err(place) = told.binary_search(&address) else {
            return None;
        };
        if place == MAX_TOLD {
            return Some(address);
        }
        told.insert(place, address);
        if told.len() > MAX_TOLD { told.pop() } else { None }
    }

    /// Counts so many that are not told.
    pub(super) fn count_more(&mut self, number: u64) {
        if number > 0 {
            let all = self.0.get_or_insert_default();
            all.more = all.more.saturating_add(number);
        }
    }

    /// How many are not told.
    pub(super) fn untold(&self) -> u64 {
        self.0.as_ref().map_or(0, |all| all.more)
    }

    /// Takes in those of another class, which are others.
    pub fn join(&mut self, others: &Self) {
        for address in others.told() {
            if self.take(*address).is_some() {
                self.count_more(1);
            }
        }
        self.count_more(others.untold());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn of(numbers: impl IntoIterator<Item = u32>) -> Addresses {
        let mut addresses = Addresses::default();
        for number in numbers {
            if addresses.take(Ipv4Addr::from_bits(number).into()).is_some() {
                addresses.count_more(1);
            }
        }
        addresses
    }

    #[test]
    fn the_first_are_told_in_whatever_order_they_come_and_all_are_counted() {
        let upwards = of(0..100);
        assert_eq!((upwards.told().len(), upwards.count()), (MAX_TOLD, 100));
        assert_eq!(upwards, of((0..100).rev()));
        assert_eq!(upwards.first(), Some(Ipv4Addr::UNSPECIFIED.into()));
        // What is told is known again.
        assert_eq!(of((0..10).chain(0..10)).count(), 10);
        assert!(of([]).is_empty());
    }

    #[test]
    fn those_of_two_are_those_of_one_that_has_all() {
        for (one, other) in [(0..5, 5..9), (10..40, 0..3), (0..40, 40..80), (50..90, 0..20)] {
            let all = of(one.clone().chain(other.clone()));
            let mut joined = of(one);
            joined.join(&of(other));
            assert_eq!(joined, all);
        }
    }
}
