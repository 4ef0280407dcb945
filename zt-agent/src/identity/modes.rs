// SPDX-License-Identifier: Apache-2.0
//! In which mode a workload is that names none itself.

use std::sync::Arc;

use super::Mode;
use crate::spiffe_id::{Pattern, SpiffeId};

/// The mode of all workloads that a pattern matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeRule {
    /// Which workloads.
    pub spiffe: Pattern,
    /// Their mode.
    pub mode: Mode,
}

/// The modes of a node. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modes {
    rules: Arc<[ModeRule]>,
    default: Mode,
}

impl Modes {
    /// The first of `rules` that matches a workload has its mode; where none does, it is `default`.
    pub fn new(rules: &[ModeRule], default: Mode) -> Self {
        Self {
            rules: rules.into(),
            default,
        }
    }

    /// The mode of a workload that names none itself.
    pub fn of(&self, id: &SpiffeId) -> Mode {
        self.named(id).unwrap_or(self.default)
    }

    /// The mode that a pattern gives it, if one does.
    pub fn named(&self, id: &SpiffeId) -> Option<Mode> {
        let rule = self.rules.iter().find(|rule| rule.spiffe.matches(id));
        rule.map(|rule| rule.mode)
    }

    /// The mode of those that no pattern matches.
    pub const fn default_mode(&self) -> Mode {
        self.default
    }
}

impl From<Mode> for Modes {
    /// Everybody in one mode.
    fn from(mode: Mode) -> Self {
        Self::new(&[], mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_that_matches_decides() {
        let rule = |pattern: &str, mode| ModeRule {
            spiffe: Pattern::parse(pattern).expect("pattern"),
            mode,
        };
        let modes = Modes::new(
            &[
                rule("spiffe://hanzo.ai/c/kube-system/coredns", Mode::Enforce),
                rule("spiffe://hanzo.ai/c/kube-system/*", Mode::Observe),
            ],
            Mode::Enforce,
        );
        for (path, mode) in [
            ("c/kube-system/coredns", Mode::Enforce),
            ("c/kube-system/cilium", Mode::Observe),
            ("c/hanzo/iam", Mode::Enforce),
        ] {
            let id = SpiffeId::parse(&format!("spiffe://hanzo.ai/{path}")).expect("id");
            assert_eq!(modes.of(&id), mode, "{path}");
        }
        assert_eq!(modes.default_mode(), Mode::Enforce);
    }
}
