// SPDX-License-Identifier: Apache-2.0
//! What a table says about groups to those whom it was not compiled for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use zt_common::entry::AllowEntry;

/// What a table says about a group to those who are not in it and whom the same rules are about.
type AboutGroup = (u64, Box<[u64]>);

/// What was found out about groups. A question about one is asked of all of its members, and there may be thousands.
#[derive(Debug, Default)]
pub(in crate::policy) struct ToStrangers(Mutex<HashMap<AboutGroup, Option<AllowEntry>>>);

/// Answers that are kept.
const MOST_ANSWERS: usize = 4096;

impl Clone for ToStrangers {
    /// A table that is made of another one has its own.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl ToStrangers {
    pub(super) fn get(
        &self,
        about: AboutGroup,
        find: impl FnOnce() -> Option<AllowEntry>,
    ) -> Option<AllowEntry> {
        let known = self.kept().get(&about).copied();
        known.unwrap_or_else(|| {
            let found = find();
            let mut kept = self.kept();
            if kept.len() >= MOST_ANSWERS {
                kept.clear();
            }
            kept.insert(about, found);
            found
        })
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<AboutGroup, Option<AllowEntry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_asked_once_for_all_whom_the_same_rules_are_about() {
        let kept = ToStrangers::default();
        let entry = AllowEntry { number: 7, bits: 1 };
        let mut asked = 0;
        for group in [1, 2, 1, 2, 1] {
            let found = kept.get((group, [3, 4].into()), || {
                asked += 1;
                (group == 1).then_some(entry)
            });
            assert_eq!(found, (group == 1).then_some(entry));
        }
        assert_eq!(asked, 2);
        assert_eq!(kept.get((1, [3].into()), || None), None, "other rules are");
        assert_eq!(kept.clone().get((1, [3, 4].into()), || None), None);
        for group in 0..2 * MOST_ANSWERS as u64 {
            kept.get((group, [].into()), || None);
        }
        assert!(kept.kept().len() <= MOST_ANSWERS);
    }
}
