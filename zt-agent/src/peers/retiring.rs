// SPDX-License-Identifier: Apache-2.0
//! Keys that the other end no longer uses: what it sent with them may still be on its way. Pure.

use tokio::time::Instant;
use zt_common::handshake::EPOCH_MASK;

/// Places of keys in the kernel's map, of one node.
const SLOTS: usize = EPOCH_MASK as usize + 1;

/// How long the key in each place is accepted beside those that are needed anyway.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retiring([Option<Instant>; SLOTS]);

impl Retiring {
    /// Whatever is there, for an agent that has just begun and does not know.
    pub(super) const fn all(until: Instant) -> Self {
        Self([Some(until); SLOTS])
    }

    /// The key of an epoch is not used any more.
    pub(super) fn add(&mut self, epoch: u64, until: Instant) {
        if epoch != 0 {
            self.0[slot(epoch)] = Some(until);
        }
    }

    /// The key of a newer epoch is put in its place.
    pub(super) fn replace(&mut self, epoch: u64) {
        self.0[slot(epoch)] = None;
    }

    /// The places whose keys are accepted: those of the epochs that are needed, and those whose time has not come.
    pub(super) fn places(&mut self, needed: [u64; 2], now: Instant) -> Vec<u64> {
        for until in &mut self.0 {
            *until = until.filter(|until| *until > now);
        }
        let needed = needed.into_iter().filter(|epoch| *epoch != 0).map(slot);
        let mut places: Vec<u64> = needed.map(|slot| slot as u64).collect();
        for (slot, until) in self.0.iter().enumerate() {
            if until.is_some() && !places.contains(&(slot as u64)) {
                places.push(slot as u64);
            }
        }
        places
    }

    /// When the time of the next one comes.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }
}

const fn slot(epoch: u64) -> usize {
    (epoch & EPOCH_MASK) as usize
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_key_that_is_no_longer_used_is_accepted_for_its_time_or_until_its_place_is_needed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut retiring = Retiring::default();
        retiring.add(0, at(100));
        assert_eq!(retiring.places([1, 0], start), [1]);
        retiring.add(5, at(180));
        assert_eq!(retiring.places([6, 6], at(1)), [2, 2, 1]);
        assert_eq!(retiring.next(), Some(at(180)));
        retiring.add(6, at(200));
        assert_eq!(retiring.places([7, 7], at(179)), [3, 3, 1, 2]);
        assert_eq!(retiring.places([7, 7], at(180)), [3, 3, 2]);
        retiring.replace(10);
        assert_eq!(retiring.places([10, 7], at(181)), [2, 3]);
        assert_eq!(retiring.next(), None);
        assert_eq!(Retiring::all(at(9)).places([1, 1], start), [1, 1, 0, 2, 3]);
    }
}
