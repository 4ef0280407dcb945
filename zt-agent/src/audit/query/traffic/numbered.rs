// SPDX-License-Identifier: Apache-2.0
//! Values that come again and again, by numbers.

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;

/// Different values, each numbered: there are few of them beside the connections, whose keys and their order are numbers then.
#[derive(Debug)]
pub(super) struct Numbered<T> {
    numbers: HashMap<T, u32, RandomState>,
    values: Vec<T>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self {
            numbers: HashMap::default(),
            values: Vec::new(),
        }
    }
}

impl<T: Clone + Eq + Hash + Ord> Numbered<T> {
    /// The number of a value, which gets one where it has none.
    pub(super) fn number(&mut self, value: &T) -> u32 {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        // There are never more than counts that were taken in.
        let number = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        self.numbers.insert(value.clone(), number);
        self.values.push(value.clone());
        number
    }

    /// The value of a number.
    pub(super) fn value(&self, number: u32) -> Option<&T> {
        self.values.get(number as usize)
    }

    /// The place of each number in the order of the values.
    pub(super) fn places(&self) -> Vec<u32> {
        let mut numbers: Vec<(&T, u32)> = self.values.iter().zip(0..).collect();
        numbers.sort_unstable();
        let mut places = vec![0; numbers.len()];
        for ((_, number), place) in numbers.into_iter().zip(0..) {
            if let Some(of) = places.get_mut(number as usize) {
                *of = place;
            }
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_order_of_coming_and_places_those_of_the_values() {
        let mut numbered = Numbered::default();
        let numbers = ["b", "c", "b", "a", "c"].map(|value| numbered.number(&value));
        assert_eq!(numbers, [0, 1, 0, 2, 1]);
        assert_eq!((numbered.value(2), numbered.value(3)), (Some(&"a"), None));
        assert_eq!(numbered.places(), [1, 2, 0]);
    }
}
