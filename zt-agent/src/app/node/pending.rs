// SPDX-License-Identifier: Apache-2.0
//! What could not be done, or has to wait: it is tried again on the tick, ever less often while it goes on failing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kernel::RefusedSocket;
use crate::policy::PolicySet;
use crate::problem::Problem;

/// Refused sockets that wait for another try; beyond that, all sockets are looked at instead.
const MOST_REFUSED: usize = 4096;
/// How often a socket is looked for that was connecting: over some 30 s, in which the slowest of tasks comes to run.
const MOST_LOOKS: u32 = 6;
/// After the hooks were attached to a root that was made anew, for so long cgroups come to be known that were there before them.
const COME_TO_BE_KNOWN: Duration = Duration::from_secs(10);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A policy that waits for the kernel, and why it is not what the documents say, if it is not.
pub(super) type Waiting = (Arc<PolicySet>, Option<Arc<Vec<Problem>>>);

/// What is left to do.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// A policy that the kernel did not take for a reason that may pass, and why it is not what the documents say, if it is not.
    pub policies: Option<Waiting>,
    /// Who is who was not written whole.
    pub merge: bool,
    /// Live connections were not judged, or not all that were revoked are gone.
    pub sweep: bool,
    /// Revoked sockets that are still there, by cookie: each is on record already.
    pub unswept: HashSet<u64>,
    /// Datagram sockets that were in the middle of their `connect` when it was revoked, and how often they were looked
    /// for since. One that has connected to nobody meanwhile never comes.
    pub connecting: HashMap<u64, u32>,
    /// Something was lost on its way to us: every socket is to be looked at.
    pub recover: bool,
    /// Namespaces in which somebody listens whose owner is not known.
    pub unowned: BTreeSet<u64>,
    /// These only wait for their turn, which is then: nothing failed.
    pub unowned_turn: Option<Instant>,
    /// Workloads whose guard could not be attached.
    pub guards: BTreeSet<u64>,
    /// Fenced sockets that could not be destroyed.
    pub refused: Vec<RefusedSocket>,
    /// When the hooks were last attached to a root that was made anew.
    pub attached: Option<Instant>,
    /// Who is who has a pause of its own: what has no room for good keeps nothing else waiting.
    merge_pause: Pause,
    pause: Pause,
}

/// Between two tries.
#[derive(Debug, Default)]
struct Pause {
    /// Tries in a row after which something was left.
    failures: u32,
    next: Option<Instant>,
}

impl Pause {
    fn is_over(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// Notes how a try went: after one that left nothing, the next failure is tried again at once.
    fn tried(&mut self, left: bool, now: Instant) {
        if !left {
            *self = Self::default();
            return;
        }
        self.failures = (self.failures + 1).min(8);
        let pause = Duration::from_millis(500) * 2_u32.pow(self.failures);
        self.next = Some(now + pause.min(LONGEST_PAUSE));
    }
}

impl Pending {
    /// Whether something is left to do, and it is time to try; who is who is not asked for here.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.is_left() && self.pause.is_over(now)
    }

    /// Whether who is who is to be written once more, and it is time to try.
    pub(super) fn is_merge_due(&self, now: Instant) -> bool {
        self.merge && self.merge_pause.is_over(now)
    }

    fn is_left(&self) -> bool {
        self.policies.is_some()
            || self.sweep
            || self.recover
            || (!self.unowned.is_empty() && self.unowned_turn.is_none())
            || !self.guards.is_empty()
            || !self.refused.is_empty()
    }

    /// Whether a cgroup that is told of now may have been there before the hooks: its sockets were nobody's when they were looked at.
    pub(super) fn may_have_passed(&self) -> bool {
        self.attached.is_some_and(|at| at.elapsed() < COME_TO_BE_KNOWN)
    }

    /// Notes that a revoked socket is still connecting; whether it is worth another look. `looked` is what was noted by
    /// the last one.
    pub(super) fn keep_connecting(&mut self, looked: &HashMap<u64, u32>, cookie: u64) -> bool {
        let looks = looked.get(&cookie).map_or(1, |looks| looks + 1).min(MOST_LOOKS);
        // Kept even then: it is what says that it has been looked for long enough.
        self.connecting.insert(cookie, looks);
        looks < MOST_LOOKS
    }

    /// Keeps a refused socket for the next try.
    pub(super) fn keep_refused(&mut self, socket: RefusedSocket) {
        if self.refused.len() < MOST_REFUSED {
            self.refused.push(socket);
        } else {
            self.recover = true;
        }
    }

    /// Notes how a try went.
    pub(super) fn tried(&mut self, now: Instant) {
        self.pause.tried(self.is_left(), now);
    }

    /// Who is who was written; `left`: not all of it.
    pub(super) fn merged(&mut self, left: bool, now: Instant) {
        self.merge = left;
        self.merge_pause.tried(left, now);
    }

    /// A table came in force. Whoever is nobody by it was somebody when what he has open was judged: where numbers are written anew, it
    /// is judged again.
    pub(super) fn ruled(&mut self, renumbered: bool) {
        self.sweep |= renumbered;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_never_connects_is_not_looked_for_for_ever() {
        let mut pending = Pending::default();
        let mut looks = Vec::new();
        for _ in 0..8 {
            let looked = std::mem::take(&mut pending.connecting);
            looks.push(pending.keep_connecting(&looked, 7));
        }
        assert_eq!(looks, [true, true, true, true, true, false, false, false]);
        assert!(pending.keep_connecting(&HashMap::new(), 8), "another one is");
    }

    #[test]
    fn what_goes_on_failing_is_tried_ever_less_often_and_never_given_up() {
        let mut now = Instant::now();
        let mut pending = Pending::default();
        assert!(!pending.is_due(now));
        pending.sweep = true;
        assert!(pending.is_due(now));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pending.tried(now);
            assert!(!pending.is_due(now));
            let start = now;
            while !pending.is_due(now) {
                now += Duration::from_secs(1);
            }
            pauses.push((now - start).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 15, 15, 15, 15]);
        pending.sweep = false;
        pending.tried(now);
        pending.recover = true;
        assert!(pending.is_due(now), "the next failure is another matter");
    }

    #[test]
    fn who_has_no_room_for_good_keeps_nothing_else_waiting() {
        let now = Instant::now();
        let mut pending = Pending::default();
        for _ in 0..8 {
            pending.merged(true, now);
            pending.tried(now);
        }
        assert!(!pending.is_merge_due(now) && !pending.is_due(now));
        pending.sweep = true;
        assert!(pending.is_due(now), "the first failure of another kind");
        pending.tried(now);
        assert!(!pending.is_due(now));
        assert!(pending.is_merge_due(now + LONGEST_PAUSE), "it is never given up");
        // And the other way round.
        pending.merged(false, now);
        pending.merge = true;
        assert!(pending.is_merge_due(now) && !pending.is_due(now));
    }

    #[test]
    fn what_is_open_is_judged_again_after_numbers_were_written_anew() {
        let mut pending = Pending::default();
        pending.ruled(false);
        assert!(!pending.sweep);
        pending.ruled(true);
        assert!(pending.sweep);
        pending.ruled(false);
        assert!(pending.sweep, "it was not done yet");
    }

    #[test]
    fn what_waits_for_its_turn_is_no_failure() {
        let now = Instant::now();
        let mut pending = Pending::default();
        pending.unowned.insert(7);
        pending.unowned_turn = Some(now + LONGEST_PAUSE);
        pending.tried(now);
        pending.unowned_turn = None;
        assert!(pending.is_due(now), "it is not put off");
    }
}
