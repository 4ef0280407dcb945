// SPDX-License-Identifier: Apache-2.0
//! When an answer that contradicts what was known counts. Pure.

use std::time::Duration;

use crate::spiffe_id::SpiffeId;

/// So many answers in a row must agree.
const AGREE: u32 = 3;
/// Between two of them.
pub(super) const PAUSE: Duration = Duration::from_millis(700);

/// Answers in a row that contradict what was known.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// Who the last one says it is.
    said: Option<SpiffeId>,
    times: u32,
}

impl Doubt {
    /// Takes an answer that contradicts. Whether it counts by now.
    pub(super) fn counts(&mut self, said: Option<&SpiffeId>) -> bool {
        if self.times == 0 || self.said.as_ref() != said {
            self.said = said.cloned();
            self.times = 0;
        }
        self.times += 1;
        self.times >= AGREE
    }

    /// Nothing contradicts any more.
    pub(super) fn over(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_in_a_row_that_agree_count() {
        let chat = SpiffeId::parse("spiffe://hanzo.ai/ns/hanzo/sa/chat").expect("id");
        let mut doubt = Doubt::default();
        assert!(!doubt.counts(None) && !doubt.counts(None));
        assert!(!doubt.counts(Some(&chat)), "another one");
        assert!(!doubt.counts(Some(&chat)));
        doubt.over();
        assert!(!doubt.counts(Some(&chat)) && !doubt.counts(Some(&chat)));
        assert!(doubt.counts(Some(&chat)));
    }
}
