// SPDX-License-Identifier: Apache-2.0
//! How long the other end may leave this one waiting. Time in which this end was not at work itself does not count: what the other
//! one said then has not been read. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::peers::Timing;

/// What the other end has done, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    beat: Duration,
    silence: Duration,
    /// Until when it has to say who it is; `None` where it has.
    greets: Option<Instant>,
    /// When something was heard last.
    heard: Instant,
    /// When it took something last, or there was nothing for it.
    taken: Instant,
    /// When this end was at work last.
    worked: Instant,
}

impl Patience {
    pub(super) fn new(timing: &Timing, now: Instant) -> Self {
        Self {
            beat: timing.beat,
            silence: timing.silence,
            greets: Some(now + timing.handshake),
            heard: now,
            taken: now,
            worked: now,
        }
    }

    /// This end is at work, which it is at every beat unless something keeps it from it.
    pub(super) fn at_work(&mut self, now: Instant, is_idle: bool) {
        let away = now.saturating_duration_since(self.worked);
        self.worked = now;
        if away > self.beat * 2 {
            self.greets = self.greets.map(|until| until + away);
            self.heard = (self.heard + away).min(now);
            self.taken = (self.taken + away).min(now);
        }
        if is_idle {
            self.taken = now;
        }
    }

    /// It has said who it is.
    pub(super) fn greeted(&mut self) {
        self.greets = None;
    }

    /// Something was heard.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// It took something.
    pub(super) fn took(&mut self, now: Instant) {
        self.taken = now;
    }

    /// Until when there is patience.
    pub(super) fn until(&self) -> Instant {
        let silent = self.heard + self.silence;
        silent.min(self.greets.unwrap_or(self.taken + self.silence))
    }

    /// Why there is none left.
    pub(super) fn is_over(&mut self, now: Instant) -> Option<&'static str> {
        // It may have been kept from its work until this very moment.
        self.at_work(now, false);
        if now < self.until() {
            return None;
        }
        Some(match self.greets {
            _ if now >= self.heard + self.silence => "it says nothing",
            Some(_) => "it did not say in time who it is",
            None => "it does not take what it is told",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin() -> (Patience, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let timing = Timing::default();
        (Patience::new(&timing, start), move |seconds| {
            start + Duration::from_secs(seconds)
        })
    }

    #[test]
    fn who_says_nothing_or_takes_nothing_is_not_waited_for() {
        let (mut patience, at) = begin();
        for second in (0..10).step_by(5) {
            patience.at_work(at(second), true);
            patience.heard(at(second));
            assert_eq!(patience.is_over(at(second)), None);
        }
        assert_eq!(patience.is_over(at(10)), Some("it did not say in time who it is"));
        patience.greeted();
        assert_eq!(patience.is_over(at(10)), None);
        let mut silent = patience;
        for second in (10..25).step_by(5) {
            silent.at_work(at(second), true);
            assert_eq!(silent.is_over(at(second)), None);
        }
        assert_eq!(silent.is_over(at(25)), Some("it says nothing"));
        let mut full = patience;
        full.at_work(at(10), true);
        for second in (15..30).step_by(5) {
            full.heard(at(second));
            full.at_work(at(second), false);
            assert_eq!(full.is_over(at(second)), None);
        }
        full.heard(at(30));
        assert_eq!(full.is_over(at(30)), Some("it does not take what it is told"));
    }

    #[test]
    fn who_could_not_be_listened_to_is_not_taken_for_silent() {
        let (mut patience, at) = begin();
        patience.greeted();
        patience.at_work(at(5), true);
        patience.heard(at(5));
        // This end stands still for an hour, and looks at the clock before it reads.
        assert_eq!(patience.is_over(at(3605)), None);
        patience.at_work(at(3605), false);
        for second in (3605..3625).step_by(5) {
            assert_eq!(patience.is_over(at(second)), None, "{second}");
        }
        assert_eq!(patience.is_over(at(3625)), Some("it says nothing"));
    }
}
