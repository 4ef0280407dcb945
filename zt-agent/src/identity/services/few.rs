// SPDX-License-Identifier: Apache-2.0
//! A set that mostly has one member, and then takes the room of one.

use smallvec::SmallVec;

/// Members in order, each once.
#[derive(Debug)]
pub(super) struct Few<T>(SmallVec<[T; 1]>);

impl<T: Ord> Few<T> {
    /// Takes one in, if it is not there.
    pub(super) fn insert(&mut self, member: T) {
        if let Err(place) = self.0.binary_search(&member) {
            self.0.insert(place, member);
        }
    }

    /// Takes one out, if it is there.
    pub(super) fn remove(&mut self, member: &T) {
        if let Ok(place) = self.0.binary_search(member) {
            self.0.remove(place);
        }
    }
}

impl<T> Few<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(SmallVec::new())
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_in_order(changes in proptest::collection::vec((any::<bool>(), 0_u8..8), 0..40)) {
            let (mut few, mut set) = (Few::default(), BTreeSet::new());
            for (comes, member) in changes {
                if comes {
                    few.insert(member);
                    set.insert(member);
                } else {
                    few.remove(&member);
                    set.remove(&member);
                }
                prop_assert!(few.iter().eq(set.iter()));
                prop_assert_eq!(few.is_empty(), set.is_empty());
            }
        }
    }
}
