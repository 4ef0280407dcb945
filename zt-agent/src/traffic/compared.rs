// SPDX-License-Identifier: Apache-2.0
//! What policies are missing of what was recorded, and what of them nothing used.

use super::{Range, Recorded};
use crate::policy::{self, AllowTable, PolicySet, Undecided, Unused};

/// Policies beside what was recorded.
#[derive(Clone, Debug)]
pub struct Compared<'r> {
    /// What they deny of the connections that went through or, where those denied are included, shall.
    pub missing: Vec<&'r Recorded>,
    /// Which of these they cannot be asked about, though policies may have something to say, with why.
    pub undecided: Vec<(&'r Recorded, Undecided)>,
    /// Their rules, or parts of them, that nothing was about.
    pub unused: Vec<Unused>,
}

impl<'r> Compared<'r> {
    /// Lays `set` beside a range. `table` is what it was compiled to, for all workloads of that.
    pub fn of(range: &'r Range, set: &PolicySet, table: &AllowTable, include_denied: bool) -> Self {
        let (mut missing, mut undecided) = (Vec::new(), Vec::new());
        for recorded in &range.recorded {
            if recorded.passed(include_denied) == 0 || recorded.falls_back() {
                continue;
            }
            match recorded.judge(table) {
                Ok(decision) if decision.allowed => {}
                Ok(_) => missing.push(recorded),
                // No policy could say anything about it.
                Err(why) if why.is_beyond_policy() => {}
                Err(why) => undecided.push((recorded, why)),
            }
        }
        // Rules that deny are used by what was refused.
        let flows = range.recorded.iter().flat_map(Recorded::flows);
        Self {
            missing,
            undecided,
            unused: policy::unused(set, table, flows, range.holders().as_ref()),
        }
    }

    /// Whether anything is missing, unused, or cannot be judged.
    pub fn differs(&self) -> bool {
        !(self.missing.is_empty() && self.undecided.is_empty() && self.unused.is_empty())
    }
}
