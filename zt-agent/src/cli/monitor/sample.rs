// SPDX-License-Identifier: Apache-2.0
//! How many decisions are put on the screen, of how many.

use std::collections::VecDeque;
use std::time::Duration;

/// Rows that are taken between two frames, and that many again where they are denials: one refusal among thousands that
/// were allowed is what somebody looks for.
const ROOM: u32 = 40;
/// Over which time the rate is averaged.
const WINDOW: Duration = Duration::from_secs(2);

/// The room of this frame, and what there was no room for.
#[derive(Debug)]
pub(super) struct Sample {
    room: u32,
    room_for_denials: u32,
    /// Decisions on the screen.
    pub(super) shown: u64,
    /// Decisions that there were: shown, not shown, and missed.
    pub(super) all: u64,
    /// Of these, records that the agent did not send, for they came faster than they were read.
    pub(super) missed: u64,
    ticks: VecDeque<(Duration, u64)>,
    since_tick: u64,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            room: ROOM,
            room_for_denials: ROOM,
            shown: 0,
            all: 0,
            missed: 0,
            ticks: VecDeque::new(),
            since_tick: 0,
        }
    }
}

impl Sample {
    /// Counts that many decisions; true where there is room to show them.
    pub(super) fn admits(&mut self, weight: u64, is_denial: bool) -> bool {
        self.all = self.all.saturating_add(weight);
        let room = if self.room > 0 {
            &mut self.room
        } else if is_denial {
            &mut self.room_for_denials
        } else {
            return false;
        };
        if *room == 0 {
            return false;
        }
        *room -= 1;
        self.shown = self.shown.saturating_add(weight);
        true
    }

    /// Counts decisions that are not shown.
    pub(super) fn keeps_away(&mut self, weight: u64) {
        self.all = self.all.saturating_add(weight);
    }

    /// Counts records that never came.
    pub(super) fn misses(&mut self, count: u64) {
        self.all = self.all.saturating_add(count);
        self.missed = self.missed.saturating_add(count);
        self.arrived(count);
    }

    /// Counts what arrived, wanted or not.
    pub(super) fn arrived(&mut self, weight: u64) {
        self.since_tick = self.since_tick.saturating_add(weight);
    }

    /// A frame has been drawn, that long after the view began.
    pub(super) fn tick(&mut self, now: Duration) {
        (self.room, self.room_for_denials) = (ROOM, ROOM);
        self.ticks.push_back((now, std::mem::take(&mut self.since_tick)));
        while self
            .ticks
            .front()
            .is_some_and(|(then, _)| now.saturating_sub(*then) > WINDOW)
        {
            self.ticks.pop_front();
        }
    }

    /// Decisions a second, of late.
    pub(super) fn rate(&self) -> u64 {
        let (Some((first, of_first)), Some((last, _))) = (self.ticks.front(), self.ticks.back()) else {
            return 0;
        };
        // What was counted at the first tick came before it.
        let sum: u64 = self.ticks.iter().map(|(_, count)| count).sum::<u64>() - of_first;
        let millis = u64::try_from(last.saturating_sub(*first).as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return 0;
        }
        sum.saturating_mul(1000) / millis
    }

    /// Counts anew what is shown of how many: another filter holds.
    pub(super) fn restart(&mut self) {
        (self.shown, self.all, self.missed) = (0, 0, 0);
    }
}
