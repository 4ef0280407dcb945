// SPDX-License-Identifier: Apache-2.0
//! Whether a stage selects anybody: one that does not is most likely misspelled.

use super::redundant::{covers, meet};
use super::{EnforcementRollout, Stage};
use crate::policy::set::PolicySet;
use crate::spiffe_id::{Pattern, SpiffeId};

/// As many identities of a stage are named.
const SHOWN: usize = 3;

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

impl EnforcementRollout {
    /// A sentence about each stage that selects nobody at present: of `known`, of those whom `policies` name, and of those for whom
    /// their patterns stand. Where `known` are all that there are, a pattern that may stand for somebody else stands for nobody.
    pub fn selecting_nobody<'a>(
        &self,
        known: impl Iterator<Item = &'a SpiffeId> + Clone,
        policies: &'a PolicySet,
        known_are_all: bool,
    ) -> Vec<String> {
        let named = policies.identities().iter();
        let known = known.chain(named);
        let selects_nobody = |stage: &&Stage| {
            let told = stage.selects_anybody(known.clone(), policies.patterns());
            !told.unwrap_or(!known_are_all)
        };
        let stages = self.stages.iter().filter(selects_nobody);
        stages.map(Stage::selecting_nobody).collect()
    }
}

impl Stage {
    /// That it selects nobody, and who that would be.
    fn selecting_nobody(&self) -> String {
        let identities = self.identities.iter().take(SHOWN);
        let mut identities: Vec<String> = identities.map(ToString::to_string).collect();
        if self.identities.len() > SHOWN {
            identities.push(format!("{} more", self.identities.len() - SHOWN));
        }
        format!(
            "stage `{}` selects nobody at present: none of the workloads and policies that are known is {}",
            self.name,
            identities.join(" or ")
        )
    }
}
