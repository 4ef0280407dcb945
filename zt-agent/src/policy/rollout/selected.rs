// SPDX-License-Identifier: Apache-2.0
//! Whether a stage selects anybody: one that does not is most likely misspelled.

use super::Stage;
use super::redundant::{covers, meet};
use crate::spiffe_id::{Pattern, SpiffeId};

impl Stage {
    /// Whether it selects anybody: of `known`, or of those for whom one of `patterns` stands. `None` where that cannot be told: none
    /// of these, and there may be somebody whom it selects and for whom such a pattern stands, too.
    pub fn selects_anybody<'a>(
        &self,
        mut known: impl Iterator<Item = &'a SpiffeId>,
        patterns: impl Iterator<Item = &'a Pattern>,
    ) -> Option<bool> {
        let is_for_all = self.require_policy || self.identities.contains(&Pattern::Any);
        if is_for_all || known.any(|id| self.selects(id)) {
            return Some(true);
        }
        let mut may = false;
        for pattern in patterns {
            if self.identities.iter().any(|own| covers(own, pattern)) {
                return Some(true);
            }
            may |= self.identities.iter().any(|own| meet(own, pattern));
        }
        (!may).then_some(false)
    }
}
