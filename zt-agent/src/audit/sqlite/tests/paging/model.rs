// SPDX-License-Identifier: Apache-2.0
//! Somebody reads on from page to page while records come: what may happen, and what must have been read then. The tests of every
//! store have this file.

use std::fmt::Debug;

use proptest::prelude::*;

/// A record to be made: one of a handful of times, so that many share one, and something that makes its id.
pub(crate) type Made = (u8, u64);

/// What comes may have any time, so that it may lie ahead of the reader for ever: it does not come without end.
const ROUNDS: usize = 40;

/// What happens.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// There at the start.
    pub(crate) first: Vec<Made>,
    /// Records of a page, page by page, and again from the beginning.
    sizes: Vec<u32>,
    /// What comes behind a page, likewise.
    between: Vec<Vec<Made>>,
    /// Asked for are those of one source.
    pub(crate) of_one_source: bool,
}

/// Anything that may happen.
pub(crate) fn case() -> impl Strategy<Value = Case> {
    let made = || (0_u8..12, any::<u64>());
    let between = prop::collection::vec(prop::collection::vec(made(), 0..5), 1..6);
    let sizes = prop::collection::vec(1_u32..9, 1..6);
    let all = (
        prop::collection::vec(made(), 1..80),
        sizes,
        between,
        any::<bool>(),
    );
    all.prop_map(|(first, sizes, between, of_one_source)| Case {
        first,
        sizes,
        between,
        of_one_source,
    })
}

impl Case {
    /// How many records are asked for at a time.
    pub(crate) fn size(&self, round: usize) -> u32 {
        self.sizes[round % self.sizes.len()]
    }

    /// What comes when that page was read.
    pub(crate) fn comes(&self, round: usize) -> &[Made] {
        if round < ROUNDS {
            &self.between[round % self.between.len()]
        } else {
            &[]
        }
    }
}

/// Each record that was there at the start and is asked for was read once, the newest first, and nothing that is not asked for.
pub(crate) fn holds<R: PartialEq + Debug, K: Ord>(
    start: &[R],
    found: &[R],
    place: impl Fn(&R) -> K,
    asked: impl Fn(&R) -> bool,
) -> Result<(), TestCaseError> {
    prop_assert!(
        found.windows(2).all(|pair| place(&pair[0]) > place(&pair[1])),
        "newest first, none twice"
    );
    for record in start.iter().filter(|record| asked(record)) {
        let times = found.iter().filter(|other| *other == record).count();
        prop_assert_eq!(times, 1, "{:?}", record);
    }
    prop_assert!(found.iter().all(asked));
    Ok(())
}
