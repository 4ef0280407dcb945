// SPDX-License-Identifier: Apache-2.0
//! Denials that repeat: those that are equal in all that a record says but the moment become one record with a `count`, once
//! they come faster than anybody would read them. Pure; its time is that of the decisions.
//!
//! Who tries again and again is refused a hundred thousand times a second, and each row of it would push one out that says
//! something else. So the first ones are records of their own, and only what follows is joined: within one batch, so that
//! records and the position in the ring buffer are one transaction as ever, and within a second of the first, so that a
//! record is as good as a moment.
//!
//! What policy allows is never joined: each was a connection, and who looks into one wants its port and its time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::RandomState;

use super::decode::Decision;

/// So many equal denials of a second are records of their own. A program that tries again after a refusal stays below, also
/// with a few threads; and one that never stays above it adds less than a million rows a day.
pub const ALONE: u32 = 10;
/// The record of those that follow stands for no more than this, in nanoseconds.
pub const SPAN: u64 = SECOND;

const SECOND: u64 = 1_000_000_000;
/// Different denials that are remembered: what a table of 1.5 MB holds. Who makes more of them in a second is not repeating itself.
const MOST_KINDS: usize = 7168;

/// What becomes of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has a record of its own.
    Alone,
    /// It repeats others, and has a record that more may join.
    Opens,
    /// It joins the record at this place of the batch.
    Joins(usize),
}

/// What was denied of late.
#[derive(Debug, Default)]
pub struct Joining {
    kinds: HashMap<Kind, Seen, RandomState>,
    /// The latest second, since the start of the machine.
    second: u64,
    /// Which batch is under way.
    batch: u64,
}

/// A decision without what differs from one try to the next: time, latency, socket, source port, how its SYN went.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind(Decision);

impl Kind {
    fn of(decision: &Decision) -> Self {
        Self(Decision {
            time: 0,
            latency: 0,
            cookie: 0,
            source_port: 0,
            omitted: false,
            ..decision.clone()
        })
    }
}

/// How often a kind was denied.
#[derive(Debug, Default)]
struct Seen {
    /// When last, in seconds.
    second: u64,
    /// How often in that second.
    times: u32,
    /// How often in the one before.
    before: u32,
    open: Option<Open>,
}

/// A record that others may join.
#[derive(Clone, Copy, Debug)]
struct Open {
    batch: u64,
    place: usize,
    /// The time of its decision.
    since: u64,
}

impl Seen {
    fn again(&mut self, second: u64) {
        // Processors do not take turns: what is a little older counts as now.
        if second > self.second {
            self.before = if second == self.second + 1 { self.times } else { 0 };
            (self.second, self.times) = (second, 0);
        }
        self.times = self.times.saturating_add(1);
    }

    const fn repeats(&self) -> bool {
        self.times > ALONE || self.before > ALONE
    }
}

impl Joining {
    /// Another batch begins: nothing joins a record of those before.
    pub const fn begin(&mut self) {
        self.batch += 1;
    }

    /// What becomes of the next decision of the batch. `next` is the place that its record has, if it has one of its own.
    pub fn place(&mut self, decision: &Decision, next: usize) -> Place {
        if decision.allowed {
            return Place::Alone;
        }
        let second = decision.time / SECOND;
        self.forget_before(second);
        let full = self.kinds.len() >= MOST_KINDS;
        let seen = match self.kinds.entry(Kind::of(decision)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if full => return Place::Alone,
            Entry::Vacant(new) => new.insert(Seen::default()),
        };
        seen.again(second);
        if !seen.repeats() {
            return Place::Alone;
        }
        let batch = self.batch;
        let open = seen
            .open
            .filter(|open| open.batch == batch && open.since.abs_diff(decision.time) < SPAN);
        if let Some(open) = open {
            return Place::Joins(open.place);
        }
        seen.open = Some(Open {
            batch,
            place: next,
            since: decision.time,
        });
        Place::Opens
    }

    /// Forgets what was not denied in this second or the one before.
    fn forget_before(&mut self, second: u64) {
        if second <= self.second {
            return;
        }
        self.second = second;
        self.kinds.retain(|_, seen| seen.second + 1 >= second);
        self.kinds.shrink_to(2 * self.kinds.len());
    }
}

#[cfg(test)]
mod tests;
